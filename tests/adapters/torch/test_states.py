"""States of other tables, of strangers, and such as went through arithmetic."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
from strategies import pairwise
from torch_tables import CASES, DIM, NAMES, VOCAB

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import load_model, save_model  # noqa: E402
from torch import nn  # noqa: E402
from torch_modules import numbers  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag  # noqa: E402

pytestmark = pytest.mark.torch

IDS = torch.arange(VOCAB)
case = st.sampled_from(CASES)


def made(case, kind=Embedding, seed=1, **more):
    method, options = case
    return kind(VOCAB, DIM, method=method, seed=seed, **{**options, **more})


def vectors(module):
    return module(IDS[:, None] if isinstance(module, EmbeddingBag) else IDS).detach().clone()


# --- states of another table ------------------------------------------------------------------------------------------


def assert_refused(module, state, names, **how):
    """The error names each of `names`, and the module is as it was."""
    before = numbers(module)
    with pytest.raises(RuntimeError) as raised:
        module.load_state_dict(state, **how)
    for name in names:
        assert name in str(raised.value)
    for name, value in numbers(module).items():
        assert torch.equal(value, before[name]), name


@given(case, case, st.booleans(), st.booleans(), st.sampled_from([Embedding, EmbeddingBag]), st.booleans())
def test_a_state_of_another_table_is_refused_by_name(first, second, strict, assign, kind, nested):
    """One of the same table in its other phase is followed there."""
    one, two = made(first), made(second, kind, seed=2)
    if nested:
        one, two = nn.Sequential(one), nn.Sequential(two)
    emb, other = (m[0] if nested else m for m in (one, two))
    ours, theirs = ({**s.as_json(), **s.as_json()["options"]} for s in (other.spec, emb.spec))
    differ = [
        n for n in ours.keys() | theirs.keys() if n not in ("options", "seed", "phase") and ours.get(n) != theirs.get(n)
    ]
    if not differ:
        two.load_state_dict(one.state_dict(), strict=strict, assign=assign)
        assert torch.equal(vectors(other), vectors(emb))
        assert other.spec.options == emb.spec.options
        return
    said = [f"{n}: " for n in differ] + [f"{theirs[n]!r} in the state" for n in differ if n in theirs]
    assert_refused(two, one.state_dict(), said, strict=strict, assign=assign)


def test_a_state_of_another_size_is_refused_by_name():
    one, two = (Embedding(1000 + k, DIM, method="hash", num_params=200, seed=0) for k in (0, 1))
    assert_refused(two, one.state_dict(), ["vocab: 1000 in the state, 1001 here"])


def test_states_go_through_files_of_tensors_alone(tmp_path):
    model = nn.ModuleDict(
        {"a": made(("cce", {"num_params": 300})), "b": made(("hash", {"num_params": 200}), EmbeddingBag)}
    )
    model["a"].cluster()
    again = nn.ModuleDict(
        {
            "a": made(("cce", {"num_params": 300}), seed=5),
            "b": made(("hash", {"num_params": 200}), EmbeddingBag, seed=5),
        }
    )
    save_model(model, tmp_path / "model.safetensors")
    load_model(again, tmp_path / "model.safetensors")
    for name in model:
        assert torch.equal(vectors(again[name]), vectors(model[name]))
        assert again[name].spec == model[name].spec
    wrong = nn.ModuleDict(
        {
            "a": made(("cce", {"num_params": 300})),
            "b": made(("hash", {"num_params": 200, "signed": True}), EmbeddingBag),
        }
    )
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"state of b is refused: .*signed: False in the state, True here"):
            load_model(wrong, tmp_path / "model.safetensors", strict=strict)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(RuntimeError, match="signed: False in the state, True here"):
        wrong.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True, mmap=True))


def test_a_distributed_checkpoint_brings_the_stamp(tmp_path):
    """It writes into the module's own tensors, before anybody asks."""
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    one, other = made(("hash", {"num_params": 200})), made(("hash", {"num_params": 200}), seed=7)
    expected = vectors(one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(one.state_dict(), checkpoint_id=tmp_path / "a", no_dist=True)
        checkpoint.load(other.state_dict(), checkpoint_id=tmp_path / "a", no_dist=True)
    assert torch.equal(vectors(other), expected)
    assert other.spec == one.spec
    first, second = (
        Embedding(VOCAB, DIM, method="ce", num_params=400, n_chunks=2, combine=c, seed=1) for c in ("add", "mul")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(first.state_dict(), checkpoint_id=tmp_path / "b", no_dist=True)
        checkpoint.load(second.state_dict(), checkpoint_id=tmp_path / "b", no_dist=True)
    with pytest.raises(RuntimeError, match="combine: 'add' in the state, 'mul' here"):
        second(IDS)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_state_of_before_there_were_stamps(case):
    emb = made(case)
    old = {name: value for name, value in emb.state_dict().items() if name != "stamp"}
    for assign in (False, True):
        other = made(case, seed=2)
        other.load_state_dict(old, assign=assign)
        assert torch.equal(vectors(other), vectors(emb))
        assert torch.equal(other.stamp, emb.stamp)
    meta = made(case, device="meta")
    meta.load_state_dict(old, assign=True)
    assert torch.equal(vectors(meta), vectors(emb))
    assert {"memory", "w0", "core0"} & old.keys() == {n for n, _ in emb.named_parameters()} & {"memory", "w0", "core0"}


def crafted(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    words = np.frombuffer(data + b" " * (-len(data) % 8), np.int64)
    return torch.from_numpy(np.concatenate([np.zeros(2, np.int64), words]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), st.lists, max_leaves=9
)
fields = st.sampled_from(["method", "vocab", "dim", "rank", "sizes", "options", "codec", "seed", "rounding", "more"])


@given(
    st.one_of(
        st.dictionaries(fields, json_values).map(lambda d: crafted({"method": "hash", **d})),
        st.binary(max_size=400).map(crafted),
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=80).map(lambda w: torch.tensor(w, dtype=torch.int64)),
        st.sampled_from(
            [
                crafted(b"[" * 60_000),
                crafted(b'{"method":' + b"9" * 50_000 + b"}"),
                torch.zeros(2**16, dtype=torch.int64),
            ]
        ),
        st.sampled_from(
            [torch.zeros((), dtype=torch.int64), torch.zeros(40, 2, dtype=torch.int64), torch.zeros(40), "x", None, 3]
        ),
    ),
    st.booleans(),
)
def test_stamps_of_strangers(stamp, strict):
    """Whatever a state says of itself: an error of states, and the module as before."""
    emb = made(("hash", {"num_params": 200}))
    before = vectors(emb)
    with pytest.raises(RuntimeError):
        emb.load_state_dict({**made(("hash", {"num_params": 200}), seed=9).state_dict(), "stamp": stamp}, strict=strict)
    del before


# --- arithmetic on states ---------------------------------------------------------------------------------------------

ARITHMETIC = {
    "average": lambda a, b: 0.9 * a + 0.1 * b,
    "in float64": lambda a, b: 0.9 * a.double() + 0.1 * b.double(),
    "as it was": lambda a, b: (0.9 * a + 0.1 * b).to(a.dtype),
    "in float64, as it was": lambda a, b: (0.9 * a.double() + 0.1 * b.double()).to(a.dtype),
    "mean": lambda a, b: torch.stack([a.float(), b.float()]).mean(0),
    "mean, as it was": lambda a, b: torch.stack([a.float(), b.float()]).mean(0).to(a.dtype),
}


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_an_averaged_state_is_refused(case):
    emb, other, third = made(case), made(case), made(case)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    ours, theirs, expected = emb.state_dict(), other.state_dict(), vectors(emb)
    for how, mean in ARITHMETIC.items():
        state = {name: mean(value, theirs[name]) for name, value in ours.items()}
        assert_refused(emb, state, ["Average the float tensors alone"])
        kept = {name: state[name] if value.is_floating_point() else value for name, value in ours.items()}
        third.load_state_dict(ours)
        third.load_state_dict(kept)
        assert not torch.equal(vectors(third), expected), how


@pytest.mark.parametrize(
    ("case", "how", "where"),
    pairwise(CASES, ["as it was", "in float64, as it was", "mean, as it was"], ["buffers", "state_dict"]),
    ids=str,
)
def test_averaging_in_place_harms_no_sketch(case, how, where):
    """Equal integers that went through floats are told from the original, which is at hand; where it isn't, nobody looks up."""
    emb = made(case)
    mean, expected = copy.deepcopy(emb), vectors(emb)
    tensors = (lambda m: m.buffers()) if where == "buffers" else (lambda m: m.state_dict().values())
    for a, b in zip(tensors(mean), tensors(emb), strict=True):
        a.copy_(ARITHMETIC[how](a, b))
    torch.testing.assert_close(vectors(mean), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(mean.stamp, emb.stamp)
    lone = made(case, seed=77)
    for b in lone.buffers():
        b.copy_(ARITHMETIC[how](b, b))
    for use in (vectors, lambda m: m(IDS[:1]), lambda m: m.load_state_dict(copy.deepcopy(m.state_dict()))):
        with pytest.raises(RuntimeError, match="Average the float tensors alone"):
            use(lone)
