"""What `Embedding` and `EmbeddingBag` share: a core table whose arrays are a module's parameters and buffers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cce_core import _check
from cce_core.adapters.torch import guard
from cce_core.adapters.torch.distributed import ddp
from cce_core.adapters.torch.distributed.pointers import Shares
from cce_core.adapters.torch.distributed.ranks import ranks_of
from cce_core.adapters.torch.modules import clustering
from cce_core.adapters.torch.modules.arguments import dtype_of, is_plain, optimizers_of, padding_of
from cce_core.adapters.torch.modules.forward import lookup
from cce_core.adapters.torch.modules.owned import Owned, check_owned
from cce_core.adapters.torch.modules.phases import PHASED
from cce_core.adapters.torch.modules.stamp import checksum, stamped
from cce_core.adapters.torch.modules.states import SMALL, Averages, reading
from cce_core.adapters.torch.modules.weight import PADDING, Weighted
from cce_core.adapters.torch.operators.arrays import Device, float32, put, tensor_of, words, write
from cce_core.adapters.torch.operators.eager import check_range
from cce_core.adapters.torch.operators.facts import MEMORY, WEIGHTS, Facts, array_specs, facts_of, part_of
from cce_core.adapters.torch.operators.pooled import Bags
from cce_core.adapters.torch.optim.moments import HOW, Pointed
from cce_core.learning.cluster import ClusterReport
from cce_core.learning.least_squares import learn
from cce_core.method import get_method, resolved
from cce_core.method.deep_hash import hash_keys
from cce_core.method.spec import CODES, ROUNDINGS, TableSpec
from cce_core.storage.codec import codec as get_codec
from cce_core.storage.ledger import Ledger
from cce_core.tables.make import make_table
from cce_core.tables.table import Table

Optimizers: TypeAlias = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None
Weights: TypeAlias = Tensor | ArrayLike | None
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


class Compressed(Owned, Weighted):
    """A module around one table.

    Trained arrays are parameters, blocks as rows: `memory` (units, unit), `weights` likewise, `projection` (rank + 1, dim), and
    whatever else the method trains. Hash `keys` and packed `pointers` are int64 buffers with the bits of the core's uint64,
    beside the `generation` and the `seed`; the `stamp` says of which spec they are, and that they belong together
    (`stamp.py`). With a codec `memory` holds the float32 values that are trained; a lookup sees them rounded, and gradients pass
    straight through. A table with phases has buffers of its own (`phases.py`). A `padding` row other than 0 is one, too.
    """

    pointers: Tensor
    shard: Tensor

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
        padding_idx: int | None,
        max_norm: float | None,
        norm_type: float,
        scale_grad_by_freq: bool,
        sparse: bool,
        device: Device | None,
        dtype: torch.dtype | None,
        method: str,
        seed: int | None,
        shard_pointers: bool,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        options = {**options, "rounding": options.get("rounding") or ROUNDINGS[0]}
        if scale_grad_by_freq and num_embeddings is None:
            raise ValueError("scale_grad_by_freq counts ids up to num_embeddings: give it a number")
        rule = get_method(resolved(_check.instance("method", method, str, "a method's name"))[0])
        if rule.phased and shard_pointers:
            raise ValueError(
                f"a {rule.name!r} table has no pointers to share out before it is clustered: leave shard_pointers out, or "
                "take 'pq'"
            )
        device = torch.get_default_device() if device is None else torch.device(device)
        dtype = dtype_of(dtype)
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a float type, got {dtype}")
        plain = is_plain(method, options)
        if seed is None:  # torch's own generator says it; but a full table then begins as torch's does
            seed = 0 if plain else int(torch.randint(2**63 - 1, (), device="cpu"))
        table = make_table(method, num_embeddings, embedding_dim, seed=seed, **options)
        if rule.owned:
            check_owned(table.spec, dtype, shard_pointers)
        self.num_embeddings, self.embedding_dim = num_embeddings, table.spec.dim
        self.padding_idx = padding_of(padding_idx, num_embeddings)
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse
        self._spec: TableSpec = table.spec
        self._facts: Facts = facts_of(table.spec)
        self._plain = plain
        if max_norm is not None and not plain:
            raise ValueError(
                f"max_norm rescales rows in place, and a {method!r} table has no row of its own for every id: leave max_norm "
                "out, or take method='full' without rank and codec"
            )
        units = table.block_sizes()
        if self._facts.stored:
            self._store(clustering.tensors_of(table), device, dtype)
        for name, values in table.parameters().items():
            if name not in self._parameters:
                rows = values.reshape(-1, units[name]) if name in ("memory", "weights") else values
                self.register_parameter(name, torch.nn.Parameter(tensor_of(rows, device, dtype)))
        buffers = table.buffers()
        whole = buffers.get("pointers")
        self.shard_pointers = shard_pointers and "pointers" in buffers
        if self.shard_pointers:
            shares = self._shares()
            buffers["pointers"] = shares.own(buffers["pointers"])
            place = np.array([shares.ranks.rank, shares.ranks.size])
            self.register_buffer("shard", tensor_of(place, device))
        for name, values in buffers.items():
            if name not in ("memory", "scales"):
                self.register_buffer(name, tensor_of(values, device))
        for name, drawn in self._drawn().items():
            self.register_buffer(name, tensor_of(drawn, device))
        for name in PHASED if rule.phased else ("generation",) if rule.owned else ():  # of the other phase
            if name not in self._buffers:
                self.register_buffer(name, None)
        self.register_buffer(PADDING, None)
        self._begin(device, whole)
        self._hollow()
        if plain:
            self.reset_parameters()

    def _drawn(self) -> dict[str, NDArray[np.int64]]:
        """The buffers that the core's table does not keep: the seed, and a network's hash keys, which follow from it."""
        spec = self._spec
        out = {"seed": np.array(spec.seed, np.uint64).view(np.int64)}
        if "counts" in array_specs(spec):
            out["passes"] = np.zeros(1, np.int64)
        if self._facts.kind == "network":
            out["keys"] = hash_keys(spec).view(np.int64)
        return out

    def reset_parameters(self) -> None:
        """Begin anew: N(0, 1) as torch does for a full table, the core's own first values, keys and pointers for all others.

        After `to_empty` it makes a module of the meta device a fresh one. The padding row of a full table is 0.
        """
        if self._is_meta():
            return
        with guard.writing(self), guard.changing():
            for name, values in self._drawn().items():
                write(getattr(self, name), values)
            self.register_buffer(PADDING, None)
            if not self._plain:
                self._take(Table(self._spec))
                return
            write(self.stamp, self._stamped(0))
            self._settled()
        with torch.no_grad():
            torch.nn.init.normal_(self.memory)
            if self.padding_idx is not None:
                self.memory[self.padding_idx].fill_(0)

    def _is_meta(self) -> bool:
        """Whether the module holds shapes alone."""
        return any(p.device.type == "meta" for p in self.parameters())

    @reading
    def _vectors(self, ids: Tensor, bags: Bags | None = None, wide: bool = False) -> Tensor:
        """The vectors of one row of int64 ids, with what padding and frequencies do to them.

        Args:
            ids: int64 (n,).
            bags: whose sums are meant; padding and frequencies are the caller's then.
            wide: whether they are left in the type of sums, rather than rounded to the parameters'.
        """
        if self.max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(self.memory.detach(), ids.contiguous(), self.max_norm, self.norm_type)
        arrays: dict[str, Any] = {**self._parameters, **self._buffers}
        for name in self._facts.arrays:
            if arrays.get(name) is None:  # something stands in its place, such as a parametrisation
                arrays[name] = getattr(self, name)
        if self.shard_pointers:
            arrays["pointers"], arrays["rows"] = self._fetched(ids)
        if PHASED[0] in arrays:  # a backward pass looks at the version of all that it reads: it is not of another phase
            arrays["keys"] = self.generation
        vectors, kind = lookup(self._facts, arrays, ids, self.sparse, bags), arrays[self._facts.arrays[0]].dtype
        if bags is None and (self.scale_grad_by_freq or self.padding_idx is not None):
            vectors = self._scaled(vectors, ids)
        return vectors if wide or vectors.dtype == kind else vectors.to(kind)

    def _shares(self) -> Shares:
        return Shares(self._spec.vocab or 0, part_of(self._facts.text, MEMORY).layout.bits_per_id)

    @torch.compiler.disable
    def _fetched(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Pointers from the ranks that hold them."""
        shares = self._shares()
        shares.check(self.shard)
        check_range(ids, self._facts.text)
        return shares.fetch(self.pointers, ids)

    def _scaled(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """The same vectors, their gradients over the id's count in the batch, and none for the padding row."""
        if self.scale_grad_by_freq:
            counts = ids.new_zeros(self.num_embeddings or 0).index_add(0, ids, torch.ones_like(ids))
            scale = 1.0 / counts[ids, None].to(vectors.dtype)
            change = scale * (vectors - vectors.detach())
            vectors = vectors.detach() + torch.where(vectors.isfinite(), change, 0.0)  # ∞ − ∞ is no 0
        if self.padding_idx is not None:
            hidden, row = (ids == self.padding_idx)[:, None], self._buffers.get(PADDING)
            if self._plain:
                vectors = torch.where(hidden, vectors.detach(), vectors)
            else:
                vectors = vectors.masked_fill(hidden, 0.0) if row is None else torch.where(hidden, row, vectors)
        return vectors

    def _row(self, input: Tensor) -> Tensor:
        """The ids as one row of int64, on the parameters' device; errors as torch's users know them.

        What is 2^63 or more keeps its 64 bits, and so becomes negative: words to hash, which a bounded table refuses.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"ids must be a tensor of integers, got {type(input).__name__}: ids = torch.as_tensor(ids)")
        if input.dtype not in INTEGERS:
            raise RuntimeError(
                f"ids must be integers (any signed or unsigned type), got {input.dtype}: ids = ids.long()"
            )
        first: Any = self._parameters.get(self._facts.arrays[0])
        if first is None:  # something stands in its place
            first = getattr(self, self._facts.arrays[0])
        if input.device != first.device:
            raise RuntimeError(
                f"ids are on {input.device}, but the table is on {first.device}: move the ids or the module with .to(…)"
            )
        return input.reshape(-1).to(torch.int64)

    # --- the core's table ---------------------------------------------------------------------------------------------

    @property
    def table(self) -> Table:
        """The core's table over the same memory where it can be (CPU, float32 and no codec), over copies elsewhere."""
        return self._table(self._arrays())

    def _table(self, arrays: dict[str, NDArray[Any]]) -> Table:
        table = self._core(arrays)
        if self._facts.coded and not self._facts.stored:
            table.parameters()[MEMORY][:] = float32(self.memory).reshape(-1)
        return table

    @guard.reading
    def _copied(self) -> Table:
        """The core's table as it is now, for itself."""
        return self._table({name: values.copy() for name, values in self._arrays().items()})

    def _arrays(self) -> dict[str, NDArray[Any]]:
        out: dict[str, NDArray[Any]] = {}
        for name, (dtype, shape, unit) in array_specs(self.spec).items():
            if self._facts.coded and name in (MEMORY, "scales"):
                continue
            tensor = getattr(self, name)
            values = float32(tensor) if unit else words(tensor)
            if name == "pointers" and self.shard_pointers:
                values = self._shares().whole(values)
            out[name] = values.view(dtype).reshape(shape)
        if self._facts.stored:
            out[MEMORY] = words(self.codes).view(array_specs(self.spec)[MEMORY].dtype)
            if self.scales.numel():
                out["scales"] = float32(self.scales)
        elif self._facts.coded:
            out[MEMORY], scales = get_codec(self.spec.codec).encode(float32(self.memory).reshape(-1))
            if scales.size:
                out["scales"] = scales
        return out

    def ledger(self) -> Ledger:
        """Every byte that the table costs once it is saved, and what training holds beside it; see `cce_core.Ledger`."""
        table = self.table
        table.training_bytes.pop("values", None)
        if self._facts.coded and not self._facts.stored:
            table.training_bytes["values"] = self.memory.numel() * self.memory.element_size()
        found, row = table.ledger(), self._buffers.get(PADDING)
        return found if row is None else dataclasses.replace(found, stored={**found.stored, PADDING: row.nbytes})

    def cluster(
        self,
        *,
        optimizer: Optimizers = None,
        weights: Weights = None,
        moments: str = "remap",
        averaged: Averages = None,
        group: torch.distributed.ProcessGroup | None = None,
        **settings: Any,
    ) -> ClusterReport:
        """Learn the sketch from the vectors as they are now, in place: parameters and buffers keep their places and shapes.

        Of a `vq` table, which goes from rows to codes, the parameters keep their identity alone: the memory has other numbers of
        another shape, without a gradient, and buffers come and go. An optimiser that trains it must be given, then.

        Ids of a `tiered` table settle, with settings (`num_bytes`, `bits`, `keep`, …) and a report as of `TieredTable.cluster`.
        Parameters keep their identity alone there too, moments go with the rows, and averages do not come along.

        Averages of this module (`torch.optim.swa_utils.AveragedModel` and the like) must come along, since rows mean something
        else afterwards: they get the new pointers, and a memory whose vectors are near those that they had. A copy whose buffers
        something keeps equal to this module's comes by itself; any other is given as `averaged`.

        Lookups in other threads (not of compiled graphs) see the table as before, then as afterwards; a backward pass of a lookup
        before raises. Steps of an optimiser meanwhile are lost. While it computes, a copy of the table is held. Two threads that
        cluster one module do so in turn.

        Under a process group every rank must call it, with the same arguments: each takes its share of the ids, and all come to
        the same table.

        On a GPU, without a group, the Triton kernels cluster what they can there, where they are installed (not within
        `max_bytes`, nor from the `vectors` of a table with a rank); a first clustering then starts from other centroids than on
        the CPU.

        Args:
            optimizer: a torch optimiser, or several, that must not go on with moments of rows which mean something else now.
            weights: how much each id counts, real numbers (num_embeddings,): a tensor, an array or a list. Of a `tiered` table
                it is the owner of each own row.
            moments: "remap" gives each new row the mean of the moments that its ids had (their sum, where each had a row of its
                own, since the gradient of a shared row is the sum of theirs); "reset" forgets them, as for a new parameter. Both
                concern the memory and its weights alone. On MovieLens 100K they train alike (GMF with AdamW, four clusterings:
                AUC 0.838 and 0.837, means of three seeds).
            averaged: a module that averages this one, or several; its copy of this table, or a model that holds one.
            group: the process group; None is the default one, where there is one.
            settings: as for `cce_core.learning.cluster.cluster`.

        Returns:
            A `ClusterReport`.

        Raises:
            ValueError: the method learns nothing, a `vq` table was clustered and not reopened, the weights do not fit, no
                optimiser trains a memory that is to have another shape, or `averaged` holds no table of this sketch. The module
                is as before.
            RuntimeError: the ranks of a group hold different tables.
        """
        optimizers, remap = optimizers_of(optimizer), _check.choice("moments", moments, HOW) == HOW[0]
        if isinstance(weights, Tensor):
            weights = weights.detach().cpu().numpy()
        with guard.writing(self):
            copies = self._averages(averaged)
            return clustering.cluster(self, optimizers, weights, remap, copies, ranks_of(group), settings)

    def reopen(self, *, optimizer: Optimizers = None, moments: str = "remap", averaged: Averages = None) -> None:
        """Give every id of a clustered `vq` table a row again, that of its pointers, for new data; counters begin at 0.

        Of a `tiered` table every settled id, as far as the rows go that there were before: see `TieredTable.reopen`.

        Args:
            optimizer, moments, averaged: as for `cluster`.

        Raises:
            ValueError: the ids have rows, or the method no phases. The module is as before.
        """
        optimizers, remap = optimizers_of(optimizer), _check.choice("moments", moments, HOW) == HOW[0]
        with guard.writing(self):
            clustering.reopen(self, optimizers, remap, self._averages(averaged))

    def sparse_parameters(self) -> list[Tensor]:
        """The parameters whose gradients are sparse: with `sparse=True` the memory, its weights and a train's cores."""
        named = self.named_parameters() if self.sparse else ()
        return [p for name, p in named if name in (MEMORY, WEIGHTS) or name.startswith("core")]

    def _pointed(self) -> Pointed:
        """What addresses follow from."""
        keys, pointers = (self._buffers.get(name) for name in ("keys", "pointers"))
        if pointers is not None and self.shard_pointers:
            pointers = tensor_of(self._shares().whole(words(pointers)).view(np.int64), pointers.device)
        return Pointed(self._facts.text, keys, pointers)

    def _learn(self, weight: Tensor, **settings: Any) -> None:
        """Make the table come near to a trained one: copied for a full table, else learned or solved for."""
        expected = (self.num_embeddings, self.embedding_dim)
        _check.instance("weight", weight, Tensor, f"a tensor {expected}")
        if tuple(weight.shape) != expected:
            raise AssertionError(f"weight must have the shape {expected}, got {tuple(weight.shape)}")
        if self._plain:
            with guard.changing():
                put([(self.memory, weight)])
        elif self._is_meta():
            raise RuntimeError("a module on the meta device learns nothing: give another device")
        else:
            # A copy: the table may lie over the module's own memory, in which other threads look vectors up.
            table = copy.deepcopy(self.table)
            if table.phase == CODES:
                table.reopen()
            learn(table, float32(weight), **settings)
            self._take(table)

    def _take(self, table: Table) -> None:
        """Make a table's numbers this module's, in place."""
        with guard.changing():
            self._become(table.spec, clustering.tensors_of(table))
            self._settled()

    def _changes(self, new: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Tensors of this module, and what they are to be for it to hold these arrays; its stamp among them."""
        out = []
        for name in array_specs(self._spec):
            if name == "pointers" and self.shard_pointers:
                own = self._shares().own(words(new[name]))
                out.append((self.pointers, torch.from_numpy(own.view(np.int64))))
            elif name == MEMORY and self._facts.stored:
                out += [(self.codes, new["codes"]), (self.scales, new["scales"])]
            elif name != "scales":
                out.append((getattr(self, name), new[name]))
        small = [words(new.get(name, getattr(self, name))) for name in SMALL if self._buffers.get(name) is not None]
        of_pointers = checksum(words(new["pointers"]) if "pointers" in new else None)
        return [*out, (self.stamp, torch.from_numpy(stamped(self._facts.text, small, of_pointers)))]

    def extra_repr(self) -> str:
        """The sizes, the method, and what was chosen."""
        spec = self._spec
        vocab = "unbounded" if spec.vocab is None else str(spec.vocab)
        said = [vocab, str(spec.dim), f"method={spec.method!r}"]
        if spec.n_chunks > 1:
            said.append(f"n_chunks={spec.n_chunks}")
        if spec.rank:
            said.append(f"rank={spec.rank}")
        if spec.codec != "float32":
            said.append(f"codec={spec.codec!r}")
        said += [f"{name}={value!r}" for name, value in spec.options if value is not None]
        for name, usual in (
            ("padding_idx", None),
            ("max_norm", None),
            ("norm_type", 2.0),
            ("scale_grad_by_freq", False),
        ):
            if getattr(self, name) != usual:
                said.append(f"{name}={getattr(self, name)}")
        if self.sparse:
            said.append("sparse=True")
        said.append(f"num_params={sum(p.numel() for p in self.parameters())}")
        return ", ".join(said)


ddp.expect_sparse(Compressed)
