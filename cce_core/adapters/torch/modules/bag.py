"""`EmbeddingBag`: torch.nn.EmbeddingBag, its table compressed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cce_core.adapters.torch.modules.arguments import shape_of
from cce_core.adapters.torch.modules.forward import pool
from cce_core.adapters.torch.modules.module import INTEGERS, Compressed
from cce_core.adapters.torch.operators import blocks
from cce_core.adapters.torch.operators.arrays import Device
from cce_core.adapters.torch.operators.eager import wide_type
from cce_core.adapters.torch.operators.pooled import Bags, counts

_MODES = ("sum", "mean", "max")


def _may_drop(ids: Tensor) -> bool:
    """Whether padding may be left out, rather than count as 0 times its row, which is NaN where the row holds NaN.

    How many ids are left is known on the CPU alone, and not while a graph or a transform is made.
    """
    plain_one = type(ids) is Tensor and ids.device.type == "cpu"
    return plain_one and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


class EmbeddingBag(Compressed):
    """A drop-in for `torch.nn.EmbeddingBag` whose table is compressed: the sum, mean or maximum of the vectors of each bag.

    Bags are the rows of a 2-D input, or the stretches of a 1-D input that start at `offsets`. An empty bag is 0; the padding id
    counts for nothing. Amounts and vectors are added up in float32, or in float64 by a module of that type, and rounded once, at
    the end; ids are counted in int64. A maximum over a NaN is NaN.

    Stricter than torch, which drops ids in silence: every id belongs to a bag. With `include_last_offset` the last of the offsets
    must be the number of ids, and without bags there must be no ids.

    Args:
        num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, sparse, padding_idx, device, dtype: as in torch,
            and as for `Embedding`.
        mode: "sum", "mean" or "max".
        include_last_offset: whether `offsets` ends with the end of the last bag, the number of ids.
        method, num_params, num_bytes, n_chunks, rank, codec, seed, shard_pointers, options: as for
            `Embedding`.

    Shape:
        input: integers (bags, length), or (n,) with offsets (bags,), integers too; output: (bags, embedding_dim).

    Raises:
        ValueError: shapes, mode and options do not fit together.
        RuntimeError: offsets do not begin at 0, decrease, or do not end with the number of ids. On a GPU an assertion on the
            device, later, so that nothing waits for it; what is traced (compiled, exported) checks when it runs.
        IndexError, RuntimeError: as for `Embedding`.

    Example:
        >>> import torch
        >>> from cce_core.adapters.torch import EmbeddingBag
        >>> bag = EmbeddingBag(1000, 16, mode="sum", method="cce", num_params=2048, seed=0)
        >>> bag(torch.tensor([1, 2, 4, 5]), torch.tensor([0, 1])).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
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
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, device, dtype,
            method, seed, shard_pointers, {**sizes, **options},
        )  # fmt: skip
        self.mode, self.include_last_offset = mode, include_last_offset
        if _weight is not None:
            self._learn(_weight)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """The bags' vectors: (bags, embedding_dim)."""
        input = self._ids(input)
        self._check(input, offsets, per_sample_weights)
        ids = self._row(input)
        ends = self._ends(input, offsets)
        weights, keep = per_sample_weights, None if self.padding_idx is None else ids != self.padding_idx
        if keep is None or not _may_drop(ids):
            return self._pooled(ids, ends, weights, keep)
        within = functional.pad(keep.cumsum(0), (1, 0))
        try:
            weights = None if weights is None else weights.reshape(-1)[keep]
            return self._pooled(ids[keep], within[ends], weights, None)
        except IndexError:
            return self._pooled(ids, ends, per_sample_weights, keep)  # which names the place in what came

    def _pooled(self, ids: Tensor, ends: Tensor, weights: Tensor | None, keep: Tensor | None) -> Tensor:
        """The same of one row of ids, of which those count that `keep` says, None for all."""
        if self.mode == "max":
            return self._largest(
                self._counted(self._vectors(ids), ids), blocks.bags(ends, ids), ends.shape[0] - 1, keep
            )
        if weights is not None or keep is not None:
            wide = wide_type(getattr(self, self._facts.arrays[0]).dtype)
            weights = None if weights is None else weights.reshape(-1).to(wide)
            if keep is not None:
                weights = keep.to(wide) if weights is None else weights.masked_fill(~keep, 0.0)
        bags, kind = Bags(ends, weights), getattr(self, self._facts.arrays[0]).dtype
        out = self._counted(self._vectors(ids, None if self.scale_grad_by_freq else bags, True), ids)
        if self.scale_grad_by_freq:
            out = pool(out, ids, bags)
        if self.mode == "mean":
            out = out / counts(ids, ends, keep).clamp(min=1)[:, None].to(out.dtype)
        return out if out.dtype == kind else out.to(kind)

    def _check(self, input: Tensor, offsets: Tensor | None, weights: Tensor | None) -> None:
        """What torch refuses."""
        if not isinstance(input, Tensor):
            raise TypeError(f"ids must be a tensor of integers, got {type(input).__name__}: ids = torch.as_tensor(ids)")
        for name, given in (("offsets", offsets), ("per_sample_weights", weights)):
            if given is not None and not isinstance(given, Tensor):
                raise TypeError(
                    f"{name} must be a tensor, got {type(given).__name__}: {name} = torch.as_tensor({name})"
                )
        if weights is not None and weights.is_complex():
            raise TypeError(f"per_sample_weights must be real numbers, got {weights.dtype}")
        if weights is not None and input.shape != weights.shape:
            raise ValueError(
                f"per_sample_weights ({tuple(weights.shape)}) must have the same shape as the input ({tuple(input.shape)})"
            )
        if input.dim() == 2:
            if offsets is not None:
                raise ValueError(f"offsets must be None for a 2-D input, whose rows are the bags; got {type(offsets)}")
        elif input.dim() == 1:
            if offsets is None or offsets.dim() != 1:
                raise ValueError(f"offsets has to be a 1D Tensor for a 1-D input, got {offsets}")
        else:
            raise ValueError(f"input has to be 1D or 2D Tensor, but got Tensor of dimension {input.dim()}")
        if self.mode not in _MODES:
            raise ValueError(f"mode has to be one of sum, mean or max, got {self.mode!r}")
        if self.mode == "max" and (self.scale_grad_by_freq or self.sparse):
            raise ValueError("max mode supports neither sparse gradients nor scale_grad_by_freq")
        if weights is not None and self.mode != "sum":
            raise NotImplementedError(f"per_sample_weights is only supported for mode='sum', got mode={self.mode!r}")

    def _ends(self, input: Tensor, offsets: Tensor | None) -> Tensor:
        """Where the bags begin, and the end of the last, as int64."""
        if offsets is None:
            return torch.arange(input.shape[0] + 1, device=input.device) * input.shape[1]
        if offsets.dtype not in INTEGERS:
            raise RuntimeError(f"offsets must be integers (torch.int64 or another), got {offsets.dtype}")
        offsets = offsets.to(torch.int64)
        if self.include_last_offset:
            if offsets.shape[0] < 1:
                raise RuntimeError("include_last_offset: offsets must hold at least the end of the last bag")
            return offsets
        if offsets.shape[0] < 1 and input.shape[0] > 0:
            raise RuntimeError(
                f"offsets are empty, so that there is no bag, but {input.shape[0]} ids: offsets must begin with 0"
            )
        return torch.cat([offsets, offsets.new_full((1,), input.shape[0])])

    def _largest(self, vectors: Tensor, bag: Tensor, bags: int, keep: Tensor | None) -> Tensor:
        """The maximum of each coordinate in each bag; its gradient goes to the first id that has it. NaN is above all numbers."""
        n, dim = vectors.shape
        seen = vectors.detach()
        if keep is not None:
            seen = seen.masked_fill(~keep[:, None], float("-inf"))
        where = bag[:, None].expand(n, dim)
        most = seen.new_full((bags, dim), float("-inf")).scatter_reduce(0, where, seen, "amax")
        has = (seen == most[bag]) | seen.isnan()
        if keep is not None:
            has = has & keep[:, None]
        first = torch.where(has, torch.arange(n, device=bag.device)[:, None], n)
        first = first.new_full((bags, dim), n).scatter_reduce(0, where, first, "amin")
        padded = torch.cat([vectors, vectors.new_zeros(1, dim)])  # what an empty bag has
        return padded.gather(0, first)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        method: str = "full",
        **options: Any,
    ) -> EmbeddingBag:
        """Compress a trained table, as `Embedding.from_pretrained` does; the arguments are the constructor's, `freeze` aside.

        Example:
            >>> import torch
            >>> from cce_core.adapters.torch import EmbeddingBag
            >>> bag = EmbeddingBag.from_pretrained(torch.eye(3), mode="sum")
            >>> bag(torch.tensor([[0, 2]]))
            tensor([[1., 0., 1.]])
        """
        rows, dim = shape_of(embeddings)
        options = {"device": embeddings.device, "dtype": embeddings.dtype, **options}
        bag = cls(
            rows, dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse, embeddings, include_last_offset, padding_idx,
            method=method, **options,
        )  # fmt: skip
        return bag.requires_grad_(not freeze)

    def extra_repr(self) -> str:
        """As for `Embedding`, and the mode."""
        return f"{super().extra_repr()}, mode={self.mode!r}"
