"""Tensor trains on the device, in plain torch.

    T[i] = G₁[i₁] · G₂[i₂] ⋯ G_K[i_K],  (i₁, …, i_K) the digits of i

A batch is K − 1 batched products of small matrices, which torch hands to the vendor's library; a Triton kernel would have to hold
ranks that differ from table to table in registers. Which is quicker has not been measured: plain torch is here because it is the
shorter. Gradients come from torch's own differentiation, as `grad_fn` or through `backward`.
"""

from __future__ import annotations

from cce_core.method.spec import TableSpec
from cce_core.method.tensor_train import core_shapes
from cce_kernels.launch import Arrays
from cce_kernels.runtime import checked_ids, floats, on_device, torch


def cores_of(spec: TableSpec, arrays: Arrays) -> list[torch.Tensor]:
    """The cores, each (base, left, d, right); views of the arrays."""
    if spec.method != "tt":
        raise ValueError(f"a {spec.method!r} table has no tensor train; use cce_kernels.tables")
    out = []
    for k, (base, left, d, right) in enumerate(core_shapes(spec)):
        core = floats(f"core{k}", arrays[f"core{k}"], (base, left * d * right))
        out.append(core.view(base, left, d, right))
    return out


def lookup(spec: TableSpec, arrays: Arrays, ids: torch.Tensor, *, check: bool = True) -> torch.Tensor:
    """The vectors of ids, float32 (*ids.shape, dim); differentiable where the cores are.

    Args:
        spec, arrays: of a `tt` table, the arrays as torch tensors.
        ids: integers of any shape.
        check: raise IndexError for ids out of range (this waits for the device); without it they are clamped.

    Cost:
        K − 1 batched products; the products so far, (n, d₁⋯d_k, r_k), cross device memory once each way.
    """
    cores = cores_of(spec, arrays)
    on_device(ids=ids.contiguous(), core0=cores[0])
    rest = checked_ids(ids, spec.vocab, check)
    n, wide = len(rest), 1
    product = torch.ones((n, 1, 1), dtype=torch.float32, device=ids.device)
    for k, core in enumerate(cores):
        base, left, d, right = core.shape
        slices, rest, wide = core[rest % base].view(n, left, d * right), rest // base, wide * d
        product = (torch.bmm(product, slices) if k else slices).view(n, wide, right)
    return product.reshape(*ids.shape, spec.dim)


def backward(
    spec: TableSpec, arrays: Arrays, ids: torch.Tensor, grads: torch.Tensor, *, check: bool = True
) -> dict[str, torch.Tensor]:
    """The gradients of all cores, whole, given those of the vectors; the forward pass is made again.

    Under `torch.use_deterministic_algorithms(True)` torch adds them up in a fixed order.
    """
    own = {name: arrays[name].detach().requires_grad_() for name in arrays if name.startswith("core")}
    with torch.enable_grad():
        vectors = lookup(spec, own, ids, check=check)
    floats("grads", grads, tuple(vectors.shape))
    found = torch.autograd.grad(vectors, list(own.values()), grads)
    return dict(zip(own, found))
