"""What the tests of the torch adapter on a GPU share: the CPU's tensors sent the way of a GPU's, where there is none."""

from __future__ import annotations

import collections
import copy

import pytest
from kernel_tables import DEVICE, INTERPRETED, torch
from torch_tables import DIM, VOCAB

from cce_core.adapters.torch import Embedding
from cce_core.adapters.torch.operators import cuda, registry

IDS = torch.tensor([[5, 96, 0, 5], [3, 1, 2, 9]])


@pytest.fixture
def gpu(monkeypatch):
    """Tensors on the CPU take the way of those on a GPU, where there is none; gives how often each operator was called there."""
    calls = collections.Counter()
    if not INTERPRETED:
        yield calls
        return

    def counted(name):
        def run(*arguments):
            calls[name] += 1
            return registry.ON_GPU[name](*arguments)

        return run

    monkeypatch.setattr(cuda, "here", lambda tensor: True)
    # Where ordinary tensors of the CPU pass by the dispatcher, they are to go to it.
    monkeypatch.setattr(registry, "_ORDINARY", None)
    library = torch.library.Library("cce", "IMPL")
    for name in registry.ON_GPU:
        library.impl(name, counted(name), "CPU", allow_override=True)
    yield calls
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
