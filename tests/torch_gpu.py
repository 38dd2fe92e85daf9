"""What the tests of the torch adapter on a GPU share: the CPU's tensors sent the way of a GPU's, where there is none."""

from __future__ import annotations

import copy

import pytest
from kernel_tables import DEVICE, INTERPRETED, torch
from torch_tables import DIM, VOCAB

from cce_core.adapters.torch import Embedding, cuda, ops

IDS = torch.tensor([[5, 96, 0, 5], [3, 1, 2, 9]])


@pytest.fixture
def gpu(monkeypatch):
    """Tensors on the CPU take the way of those on a GPU, where there is none."""
    if not INTERPRETED:
        yield
        return
    monkeypatch.setattr(cuda, "here", lambda tensor: True)
    library = torch.library.Library("cce", "IMPL")
    for name, function in ops.ON_GPU.items():
        library.impl(name, function, "CPU", allow_override=True)
    yield
    library._destroy()


def table(case, **more):
    method, options = case
    return Embedding(VOCAB, DIM, method=method, seed=7, **{**options, **more})


def near(got, want, scale=1.0):
    torch.testing.assert_close(got.cpu(), want.cpu(), rtol=1e-4, atol=2e-5 * scale)


def both(case, **more):
    """A module, and the same on the device."""
    emb = table(case, **more)
    return emb, copy.deepcopy(emb).to(DEVICE)
