"""`Embedding`: torch.nn.Embedding, its table compressed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cce_core import _check
from cce_core.adapters.torch.modules.arguments import dtype_of, is_plain, shape_of
from cce_core.adapters.torch.modules.module import Compressed
from cce_core.adapters.torch.modules.weight import PADDING
from cce_core.adapters.torch.operators.arrays import Device


class Embedding(Compressed):
    """A drop-in for `torch.nn.Embedding` whose table takes a hundredth of the memory: `T[input]`.

    With `method="full"`, no rank and no codec, it is torch's own embedding in values, gradients and errors. Every other method of
    `cce_core.methods()` takes a budget.

    A table of the method `vq` has a row per id while it learns (`emb.phase == "rows"`), and one learned pointer per id to shared
    rows once `cluster()` was called ("codes"), late in training. A module of either phase takes a state of either.

    A table of the method `tiered` has own rows for the ids that earn them, found in a map, and shared rows for others. What is
    looked up in training mode is counted once its gradient has come back; after each step of whichever torch optimiser trains the
    `memory`, rows change hands, and what the optimiser knew of these is forgotten. It is trained on the CPU, in float32 or in
    codes; under DistributedDataParallel all ranks count what all have met. `emb.table` says who has rows.

    Args:
        num_embeddings: ids go from 0 to num_embeddings − 1; None, for methods that only hash, takes every 64-bit id, and strings.
        embedding_dim: floats of a vector.
        padding_idx: an id whose vector has no gradient; negative ones count from the end. It is 0, or its row of the trained
            table that this one is made from, kept beside it. For a full table, 0 at first, as in torch.
        max_norm, norm_type: as in torch, for full tables alone.
        scale_grad_by_freq: divide an id's gradient by how often it comes in the batch.
        sparse: sparse gradients of memory and weights, for SparseAdam and the like; a projection's stays dense.
        device, dtype: of the parameters, as in torch.
        method: a name among `cce_core.methods()`, or one that users of the paper's own code know.
        num_params: the most trained numbers, or
        num_bytes: the most stored bytes.
        n_chunks, rank: as for `cce_core.make_table`.
        codec: how the table is kept once it is saved: "float32", "bfloat16", "int8" or "int4". While it trains, the parameter and
            the state hold the float values; lookups see them rounded, and gradients pass straight through. `emb.table.save(path)`
            writes the codes, and `ledger()` counts both.
        rounding: "straight-through" (or None); or "stochastic": codes and scales alone are kept, as buffers, and rounded at
            random after each step of `FusedSGD`, `FusedAdagrad` or `FusedAdam`, the only optimisers that take them. The parameter
            `memory` then has a shape and gradients, but no numbers. DistributedDataParallel takes init_sync=False. Steps of int4
            are too coarse to be rounded at random: take int8.
        seed: of hashes and first values; None draws it from torch's generator.
        shard_pointers: keep on each rank of the default process group the pointers of its share of the ids alone, and ask the
            others for theirs at every lookup, which all ranks must then make together, like `weight`, `table` and `cluster()`
            (which hold all pointers for a while). States are each rank's own. Not for compiled graphs.
        options: the method's own.

    Shape:
        input: any integers (*), or of an unbounded table a list or array of strings, which `hash_strings` hashes;
        output: (*, embedding_dim).

    Raises:
        BudgetError, ValueError, TypeError: as for `cce_core.make_table`.
        IndexError: an id is out of range (of a forward pass on the CPU).
        RuntimeError: ids are not integers, or on another device, or a `tiered` table is not on the CPU (of a forward pass).

    Cost:
        That of `cce_core.Table.lookup`, and some 20 µs a call.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import Embedding
        >>> emb = Embedding(1000, 16, method="cce", num_params=2048, seed=0)
        >>> emb(torch.tensor([[1, 2], [3, 4]])).shape
        torch.Size([2, 2, 16])
        >>> report = emb.cluster()
        >>> report.generation
        1
    """

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        *,
        method: str = "full",
        num_params: int | None = None,
        num_bytes: int | None = None,
        n_chunks: int | None = None,
        rank: int | str | None = None,
        codec: str | None = None,
        seed: int | None = None,
        shard_pointers: bool = False,
        **options: Any,
    ) -> None:
        sizes = {"num_params": num_params, "num_bytes": num_bytes, "n_chunks": n_chunks, "rank": rank, "codec": codec}
        if _weight is not None:
            _check.instance("_weight", _weight, Tensor, "a tensor (num_embeddings, embedding_dim)")
        if padding_idx is not None:
            _check.integer("padding_idx", padding_idx, -(2**63), 2**64 - 1)
        row = None if _weight is None else _kept(_weight, padding_idx)
        if num_bytes is not None and row is not None and not is_plain(method, sizes):
            # That row is stored beside the table.
            sizes["num_bytes"] = max(0, num_bytes - row.numel() * dtype_of(dtype).itemsize)
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, device, dtype,
            method, seed, shard_pointers, {**sizes, **options},
        )  # fmt: skip
        if _weight is not None:
            self._learn(_weight)
        if _freeze:
            self.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """The vectors of ids of any shape: (*, embedding_dim)."""
        input = self._ids(input)
        ids = self._row(input)
        return self._counted(self._vectors(ids), ids).view(*input.shape, self.embedding_dim)

    def _learn(self, weight: Tensor, **settings: Any) -> None:
        """As for every table; a padding row that is not 0 is kept as it is."""
        super()._learn(weight, **settings)
        row = None if self._plain else _kept(weight, self.padding_idx)
        like = getattr(self, self._facts.arrays[0])
        self.register_buffer(PADDING, None if row is None else row.detach().to(like.device, like.dtype, copy=True))

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        method: str = "full",
        **options: Any,
    ) -> Embedding:
        """Compress a trained table; every argument after `embeddings` is the constructor's, `freeze` aside.

        Methods that learn their sketch (`cce`, `cce_robe`, `pq`, `sparse`, `sparse2`) learn it from these vectors. Those that
        are linear in their memory get the memory of least squares. Others are refused: they would have to be trained.

        Args:
            embeddings: float (num_embeddings, embedding_dim).
            freeze: whether the parameters are left without gradients.

        Raises:
            ValueError: the method cannot be solved for; or as for the constructor.

        Example:
            >>> import torch
            >>> from cce_core.adapters.torch import Embedding
            >>> trained = torch.nn.Embedding(1000, 16)
            >>> emb = Embedding.from_pretrained(trained.weight, method="pq", num_params=4096)
            >>> emb.weight.shape, emb.memory.requires_grad
            (torch.Size([1000, 16]), False)
        """
        rows, dim = shape_of(embeddings)
        options = {"device": embeddings.device, "dtype": embeddings.dtype, **options}
        return cls(
            rows, dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, embeddings, freeze, method=method, **options
        )  # fmt: skip


def _kept(weight: Tensor, padding_idx: int | None) -> Tensor | None:
    """The padding row of a trained table, where it is not 0."""
    if padding_idx is None or weight.dim() != 2 or not -len(weight) <= padding_idx < len(weight) or weight.is_meta:
        return None
    row = weight[padding_idx]
    return row if bool(row.any()) else None
