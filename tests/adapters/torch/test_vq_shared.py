"""Tables in torch of which rare ids share a row once they are clustered."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag, cluster_  # noqa: E402
from cce_core.adapters.torch.operators import eager  # noqa: E402
from cce_core.adapters.torch.operators.facts import MEMORY, part_of, text_of  # noqa: E402
from cce_core.storage import marks  # noqa: E402

pytestmark = pytest.mark.torch

VOCAB, DIM = 1500, 6
IDS = torch.arange(VOCAB)
COUNTS = np.where(np.arange(VOCAB) % 9 == 4, 500.0, 1.0)


def made(kind=Embedding, few=True, seed=1, **more):
    """A table that was clustered by counts of which a few are large, or all are alike."""
    table = kind(VOCAB, DIM, method="vq", seed=seed, **{"num_bytes": VOCAB // 2, "rank": 0, **more})
    with torch.no_grad():
        table.memory.normal_(generator=torch.Generator().manual_seed(seed))
    table.cluster(weights=COUNTS if few else np.ones(VOCAB))
    assert bool(table.spec.option("bits")) == few
    return table


def test_words_of_marks_are_read_as_the_core_reads_them():
    wanted = np.random.default_rng(0).random(1300) < 0.4
    wanted[470:490] = True
    words = np.zeros(marks.n_words(1300), np.uint64)
    marks.mark(words, 0, wanted, 0)
    ids = torch.from_numpy(np.random.default_rng(1).permutation(1300).reshape(2, 650))
    marked, entry = eager.entries(torch.from_numpy(words.view(np.int64)), ids)
    expected = marks.entries(words, ids.numpy().astype(np.uint64).ravel()).view(np.int64).reshape(2, 650)
    np.testing.assert_array_equal(marked, expected >= 0)
    np.testing.assert_array_equal(entry, np.maximum(expected, 0))


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_vectors_and_gradients_are_those_of_its_addresses(kind):
    """By the compiled loops and by torch's own operators, which higher derivatives and other devices take."""
    table = made(kind)
    layout = part_of(text_of(table.spec), MEMORY).layout
    at = eager.addresses(layout, IDS, None, table.pointers)[:, 0] // layout.unit
    assert (at == 0).sum() > VOCAB // 2
    np.testing.assert_array_equal(at, table.table.factors()[0].argmax(1) // (DIM if table.spec.rank else 1))
    ids = IDS if kind is Embedding else IDS[:, None]
    table(ids).square().sum().backward()
    twin = torch.zeros_like(table.memory).index_add_(0, at, 2 * table(ids).detach())
    torch.testing.assert_close(table.memory.grad, twin)
    torch.testing.assert_close(table(ids).detach(), torch.from_numpy(table.table.lookup(IDS.numpy())))


@pytest.mark.parametrize("stage", ["rows", "shared", "every"])
@pytest.mark.parametrize("of", ["rows", "shared", "every"])
def test_a_state_from_before_or_after_a_clustering_is_followed(stage, of):
    def at(stage, seed):
        module = made(few=stage != "every", seed=seed)
        if stage == "rows":
            module.reopen()
        return module

    module, state = at(stage, 1), at(of, 2)
    module.load_state_dict(copy.deepcopy(state.state_dict()))
    assert module.spec == state.spec
    assert torch.equal(module(IDS), state(IDS))


def test_an_optimiser_goes_on_and_a_compiled_module_follows():
    model = nn.Sequential(Embedding(VOCAB, DIM, method="vq", seed=1, num_bytes=VOCAB // 2, rank=0))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    often = torch.cat([IDS[IDS % 9 == 4]] * 20)
    for step in range(6):
        model(torch.cat([often, IDS[step::6]])).sin().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    cluster_(model, optimizer)
    table = model[0]
    assert table.spec.option("bits")
    assert optimizer.state[table.memory]["exp_avg"].shape == table.memory.shape
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(IDS), model(IDS))
    model(IDS).sum().backward()
    optimizer.step()
