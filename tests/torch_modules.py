"""What tests of torch's modules share: their numbers, before and after, and every kind of optimiser."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from cce_core.adapters.torch import FusedAdagrad, FusedAdam, FusedSGD  # noqa: E402

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.5),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "FusedSGD": lambda p: FusedSGD(p, lr=0.01, momentum=0.9),
    "FusedAdagrad": lambda p: FusedAdagrad(p),
    "FusedAdagrad by row": lambda p: FusedAdagrad(p, rowwise=True),
    "FusedAdam": lambda p: FusedAdam(p, lr=0.01),
}


def numbers(module):
    """Copies of all that a state dict holds."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(module, before):
    """The bits of `numbers` of before."""
    now = module.state_dict()
    assert now.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(now[name], value), name
