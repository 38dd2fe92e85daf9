"""Two and three processes come to what one comes to: clusterings, DistributedDataParallel, sharded pointers."""

from __future__ import annotations

import pickle
import types

import numpy as np
import pytest
import torch_ranks
from torch_ranks import VOCAB
from torch_tables import DIM

import cce_core as cce

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("this torch has no process groups", allow_module_level=True)

from cce_core.adapters.torch import Embedding, FusedSGD, leave_out_pointers  # noqa: E402
from cce_core.adapters.torch.distributed import ddp  # noqa: E402
from cce_core.adapters.torch.distributed.ranks import Ranks  # noqa: E402
from cce_core.learning import shared  # noqa: E402
from cce_core.learning.exact import Exact  # noqa: E402
from cce_core.storage.counters import estimates  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    """What every process found."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(
        torch_ranks.work, (request.param, str(folder)), nprocs=request.param, start_method="spawn"
    )
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(request.param)]


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """This process alone, as a group: the shared clustering by one."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield Ranks()
    torch.distributed.destroy_process_group()


def assert_equal(a, b):
    """The same bits, all the way down."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def test_all_ranks_come_to_the_same(ranks):
    for other in ranks[1:]:
        assert {**other, "disagreements": 0}.keys() == ranks[0].keys()
        for key in other:
            if key != "disagreements":
                assert_equal(other[key], ranks[0][key])


@pytest.mark.parametrize("name", ["cce", "rank", "int8", "robe", "robe4", "sparse", "sparse2"])
def test_a_clustering_is_that_of_one_process(ranks, group, monkeypatch, name):
    """The same bits: sums are exact, however the ids are shared."""
    monkeypatch.setattr("cce_core.adapters.torch.modules.module.ranks_of", lambda group: Ranks(group))
    assert_equal(ranks[0][f"clustered {name}"], torch_ranks.clustered(name))


def test_weights_and_given_vectors_too(ranks, group, monkeypatch):
    monkeypatch.setattr("cce_core.adapters.torch.modules.module.ranks_of", lambda group: Ranks(group))
    weights = np.arange(1.0, VOCAB + 1)
    for name in torch_ranks.WEIGHTED:
        expected = torch_ranks.clustered(name, weights=weights, points_per_centroid=8)
        assert_equal(ranks[0][f"weighted {name}"], expected)
    assert_equal(ranks[0]["learned"], torch_ranks.learned())


@pytest.mark.parametrize("name", ["cce", "rank", "int8", "robe", "robe4", "sparse", "sparse2"])
def test_a_clustering_is_as_good_as_the_cores(ranks, name):
    """Both are k-means from the same points; other rounding may lead elsewhere, not to worse."""
    first, alone = ranks[0][f"clustered {name}"]["said"], torch_ranks.clustered(name)["said"]
    np.testing.assert_allclose(first[0][0], alone[0][0], rtol=1e-4)  # nothing has led elsewhere yet
    for got, expected in zip(first, alone, strict=True):
        assert got[1] <= got[0]
        assert got[1] <= 1.1 * expected[1] + 1e-6


@pytest.mark.parametrize("name", ["cce", "hash"])
@pytest.mark.parametrize("how", ["wrapped", "left out", "fully sharded"])
def test_data_parallel_training_is_that_of_one_process(ranks, name, how):
    expected = torch_ranks.trained(lambda model: model, name)["state"]
    got = ranks[0][f"{how} {name}"]["state"]
    assert got.keys() == expected.keys()
    if name == "hash":  # where k-means has no say: the same numbers, but for the order of sums
        for key, value in expected.items():
            np.testing.assert_allclose(got[key], value, rtol=1e-4, atol=1e-5)
    assert_equal(ranks[0][f"wrapped {name}"], ranks[0][f"left out {name}"])
    assert_equal(ranks[0][f"sharded {name}"], ranks[0][f"left out {name}"])


@pytest.mark.parametrize("name", ["sparse hash", "sparse hemb", "sparse tt", "sparse narrow", "sparse and unused hemb"])
def test_sparse_gradients_under_data_parallel_training(ranks, name):
    """Those of memory, weights and cores are reduced as sparse ones, a projection's as dense; what learns is among `ranks`."""
    table = name.split()[-1]
    expected = torch_ranks.trained(lambda model: model, table, sparse=True)["state"]
    for key, value in expected.items():
        np.testing.assert_allclose(ranks[0][name]["state"][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["phased", "phased, left out", "phased, sparse", "phased, static", "phased, codes"])
def test_phases_within_data_parallel_training(ranks, name):
    """A wrapped model goes on after its table became another: the same gradients and bits on all ranks, and those of the core.

    (Ranks are held against each other above; in rows, against one process too, whose counters met the ids in another order.)
    """
    options = {"left out": {"stages": 2}, "sparse": {"sparse": True}, "codes": {"rounding": "stochastic"}}
    found, options = ranks[0][name], options.get(name[len("phased, ") :], {})
    alone = torch_ranks.phased(lambda model: model, **options)
    for key, gradient in alone["gradients 0"].items():  # the last bit of one may round another way
        atol = 1e-2 * np.abs(gradient).max() if "rounding" in options else 1e-5
        np.testing.assert_allclose(found["gradients 0"][key], gradient, rtol=1e-3, atol=atol)
    spec = torch_ranks.phased_table(**options).spec
    counts = np.stack([estimates(one) for one in found["met"].values()]).astype(np.float64)
    if name.endswith("out"):  # each has met its own ids, a part of them
        assert len({one.tobytes() for one in found["met"].values()}) == len(ranks)
        assert 0.8 * 5 * torch_ranks.IDS < counts.sum() < 1.25 * 5 * torch_ranks.IDS
    counts = np.rint(16 * counts).sum(0) / 16
    table = cce.Table(spec, {**found["before 0"], "counts": np.zeros(VOCAB, np.uint8)})
    table.cluster(weights=np.sqrt(counts))
    assert_equal(found["after 0"], table.arrays())
    table.reopen()
    assert found["before 1"].keys() == found["after 0"].keys()
    assert not np.array_equal(found["before 1"]["memory"], found["after 0"]["memory"])  # shared rows were tuned
    assert found["after 1"].keys() == table.arrays().keys() - {"counts"}
    for phase in range(3):
        assert all(np.abs(g).max() > 0 for g in found[f"gradients {phase}"].values())


@pytest.mark.parametrize("name", ["earning", "earning, left out", "earning, codes"])
def test_rows_are_given_to_the_ids_that_all_ranks_have_met(ranks, name):
    """Those that one process gives them to, and the same bits on all ranks (above), whatever each has met."""
    options = {"left out": {"sparse": True}, "codes": {"codec": "int8", "rounding": "stochastic"}}
    options = options.get(name[len("earning, ") :], {})
    alone, found = torch_ranks.earning(lambda model: model, len(ranks), **options), ranks[0][name]
    assert found["said"] == alone["said"]
    for key, value in alone["state"].items():
        if "out" in name and key.endswith(("memory", "projection", "pointers", "stamp", "weight", "bias")):
            continue  # ids have settled there, and the last bits of gradients may lead k-means elsewhere
        if key.endswith(("memory", "projection", "weight", "bias", "scales")):
            np.testing.assert_allclose(found["state"][key], value, rtol=1e-3, atol=0.1 if "codes" in name else 1e-5)
        elif not key.endswith("codes"):
            np.testing.assert_array_equal(found["state"][key], value)


def test_torchs_own_modules_are_left_to_it():
    from torch.nn.parallel import DistributedDataParallel

    ours = Embedding(VOCAB, DIM, method="cce", num_params=600, rank=4, sparse=True)
    model = torch.nn.Sequential(
        ours, torch.nn.Embedding(9, 2, sparse=True), torch.nn.Embedding(9, 2), torch.nn.Linear(2, 2)
    )
    fake = types.SimpleNamespace(module=model, parameters_to_ignore=set(), _assign_modules_buffers=lambda: None)
    parameters, expected = DistributedDataParallel._build_params_for_reducer(fake)
    sparse = {id(p) for p, flag in zip(parameters, expected, strict=True) if flag}
    assert sparse == {id(ours.memory), id(model[1].weight)}
    assert len(parameters) == len(list(model.parameters()))


def test_ranks_that_differ_are_told(ranks):
    for found in ranks:
        said = found["disagreements"]
        assert "before clustering, rank 1" in said["memory"]
        assert "different memory." in said["memory"]
        assert "different weights." in said["weights"]
        assert "specs" in said["seeds"]
        assert "different pointers" in said["seeds"] or "pointers" in said["seeds"]
        assert "before training, rank 1" in said["pointers"]
        assert "before clustering" in said["robe"]
        assert "communication hooks cannot follow" in said["hooked"]
        assert "different memory" in said["rows"]
        assert "vectors" in said["vectors"]
        assert "different memory" in said["replaced"]
        assert "replaced after DistributedDataParallel" in said["replaced"]
    for found in ranks[1:]:
        assert "holds the pointers of rank 0" in found["disagreements"]["shard"]


def test_shared_pointers_are_those_of_one_process(ranks, group, monkeypatch):
    """Within the processes they are compared with whole ones; here with those of one process."""
    monkeypatch.setattr("cce_core.adapters.torch.modules.module.ranks_of", lambda group: Ranks(group))
    assert_equal(torch_ranks.sharded(), ranks[0]["sharded"])


def test_sharing_needs_a_group(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match="init_process_group"):
        Embedding(VOCAB, DIM, method="cce", num_params=512, shard_pointers=True)


def test_sums_are_exact():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(999), [1e6]]) * 10.0 ** rng.integers(-6, 1, 1000)
    exact = Exact(1000, float(np.abs(values).max()))
    rounded = exact.rounded(values)
    totals = {float(rounded[rng.permutation(1000)].sum()) for _ in range(50)}
    assert len(totals) == 1
    assert abs(totals.pop() * exact.step - values.sum()) < 1e-4
    assert len({float(values[rng.permutation(1000)].sum()) for _ in range(50)}) > 1  # of floats as they come
    assert Exact(10, 0.0).rounded(np.zeros(3)).tolist() == [0, 0, 0]


def test_shares_cover_all_once():
    class Some(Ranks):
        def __init__(self, rank, size):
            self.rank, self.size = rank, size

    for size in (1, 2, 3, 7):
        for n in (0, 1, 63, 64, 65, 129, 1000):
            for align in (1, 64):
                shares = [Some(rank, size).share(n, align) for rank in range(size)]
                assert [x for low, high in shares for x in range(low, high)] == list(range(n))
                assert all(low % align == 0 or low == n for low, _ in shares)


def test_empty_clusters_are_filled(group):
    """More centroids than a start that has them all in one place."""
    x = np.repeat(np.arange(8, dtype=np.float32), 4)[:, None] * 10
    points = shared.SharedPoints(group, x, None, len(x))
    centroids, cost, _ = points.cluster(np.zeros((8, 1), np.float32), 20)
    assert cost == 0
    assert sorted(centroids[:, 0].tolist()) == sorted(set(x[:, 0].tolist()))
    few = shared.SharedPoints(group, x[:4], None, 4).cluster(np.zeros((3, 1), np.float32), 5)
    assert few[1] == 0
    assert np.isfinite(few[0]).all()


def test_fused_optimisers_refuse_sharded_parameters(group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    emb = fully_shard(Embedding(VOCAB, DIM, method="cce", num_params=512), mesh=init_device_mesh("cpu", (1,)))
    steps = FusedSGD(emb.parameters(), lr=0.1)
    emb(torch.arange(4)).sum().backward()
    with pytest.raises(RuntimeError, match="takes whole parameters, got one that is sharded"):
        steps.step()


def test_sharded_memories_keep_their_phase(group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    emb = Embedding(VOCAB, DIM, method="vq", num_bytes=3000)
    fully_shard(emb, mesh=init_device_mesh("cpu", (1,)))
    before = {
        name: torch.Tensor(getattr(t, "full_tensor", lambda t=t: t)()).clone() for name, t in emb.state_dict().items()
    }
    with pytest.raises(RuntimeError, match="cluster it before fully_shard"):
        emb.cluster()
    assert emb.phase == "rows"
    for name, t in emb.state_dict().items():
        assert torch.equal(getattr(t, "full_tensor", lambda t=t: t)(), before[name])


def test_a_wrapped_model_of_one_process_may_go(group):
    """A wrapper that nobody has any more is no wrapper; one that is there follows a state of the other phase."""
    from torch.nn.parallel import DistributedDataParallel

    model, other = (torch.nn.Sequential(Embedding(VOCAB, DIM, method="vq", num_bytes=3000)) for _ in range(2))
    wrapped = DistributedDataParallel(model)
    assert ddp.wrappers(model[0]) == [wrapped]
    other[0].cluster()
    wrapped.module.load_state_dict(other.state_dict())
    wrapped(torch.arange(9)).sum().backward()
    assert torch.equal(wrapped(torch.arange(9)), other(torch.arange(9)))
    del wrapped
    assert ddp.wrappers(model[0]) == []


def test_without_a_group_nothing_is_shared():
    model = torch.nn.Sequential(Embedding(VOCAB, DIM, method="cce", num_params=512), Embedding(9, 2))
    assert leave_out_pointers(model) == ["0.pointers"]
    assert model._ddp_params_and_buffers_to_ignore == ["0.pointers"]
