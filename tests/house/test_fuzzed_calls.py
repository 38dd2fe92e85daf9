"""Every public function and method of the core, called with nonsense: what refuses it says which argument is wrong."""

from __future__ import annotations

import inspect
import os

import numpy as np
import pytest
from fuzzing import faults

import cce_core as cce
from cce_core import clustering, datasets, hashing, storage, theory, training
from cce_core.datasets import fetch


def table(method="cce", **more):
    budget = {} if method == "full" else {"num_params": 256}
    return cce.make_table(method, 40, 8, n_chunks=2, seed=0, **budget, **more)


X = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
LABELS = np.arange(30) % 3
IDS, GRADS = np.array([1, 2]), np.ones((2, 8), np.float32)


def fitted():
    return cce.KMeans(3, n_iter=2).fit(X)


def liked():
    return datasets.Pairs("mine", *[np.arange(20)] * 4)


def rows():
    return datasets.Interactions(np.arange(4), np.arange(4), np.ones(4, np.float32))


def ratings(folder):
    path = os.path.join(folder, "u.data")
    with open(path, "w") as file:
        file.write("1\t2\t5\t7\n1\t3\t1\t8\n2\t2\t4\t9\n")
    return path


def pairs(folder):
    path = os.path.join(folder, "pairs.csv")
    with open(path, "w") as file:
        file.writelines(f"{k % 4},{k % 3}\n" for k in range(12))
    return path


def named(folder):
    path = os.path.join(folder, "vectors.txt")
    with open(path, "w") as file:
        file.write("a 1 2\nb 3 4\n")
    return path


def latest(folder):
    """A folder with a small data set by the one name that stands for no fixed number of ratings."""
    os.makedirs(os.path.join(folder, "ml-latest"), exist_ok=True)
    with open(os.path.join(folder, "ml-latest", "ratings.csv"), "w") as file:
        file.write("userId,movieId,rating,timestamp\n")
        file.writelines(f"{user},{movie},4.0,{movie}\n" for user in (1, 2) for movie in (1, 2, 3, 4))
    return folder


def criteo(folder):
    path = os.path.join(folder, "train.txt")
    with open(path, "w") as file:
        file.write("\t".join(["1", *["3"] * 13, *["ab"] * 26]) + "\n")
    return path


def call(function, **arguments):
    """What `faults` takes."""
    return function, arguments


def calls(folder):
    """A valid call of each, made anew every time."""

    def both():
        return cce.Collection([table(), table("hash")])

    words = np.array([[1, 2], [3, 4]])
    saved = os.path.join(folder, "table")
    table().save(saved)
    bags = {
        "ids": [[1, 2, 3], [1, 2]],
        "offsets": [[0, 1, 3], [0, 1, 2]],
        "weights": [[1.0, 1, 1], [1.0, 1]],
        "mode": "sum",
        "padding_id": 1,
    }

    def stream():
        return datasets.Synthetic(100, 20, 30)

    def clicks():
        return datasets.SyntheticCriteo(50)

    def arriving():
        return datasets.ClickStream(50)

    def packing():
        return storage.Packing(4, (3, 5))

    packed = packing().empty()
    spec = table().spec
    out = {
        "make_table": lambda: call(
            cce.make_table,
            method="cce",
            vocab=40,
            dim=8,
            num_params=256,
            n_chunks=2,
            rank=2,
            codec="int8",
            rounding="stochastic",
            seed=1,
        ),
        "make_collection": lambda: call(cce.make_collection, method="tiered", tables=2, dim=8, num_bytes=9999, seed=1),
        "plan": lambda: call(cce.plan, sample=np.arange(99), dim=8, num_bytes=[9999]),
        "compress": lambda: call(cce.compress, vectors=X, num_bytes=200, method="pq", seed=1, n_chunks=2),
        "most_similar": lambda: call(cce.most_similar, table=table("hash"), queries=IDS, k=2, metric="dot"),
        "make_table bytes": lambda: call(cce.make_table, method="hash", vocab=None, dim=8, num_bytes=999, signed=True),
        "make_table bloom": lambda: call(cce.make_table, method="bloom", vocab=40, dim=8, num_params=99, n_hashes=2),
        "make_table hemb": lambda: call(
            cce.make_table, method="hemb", vocab=40, dim=8, num_params=99, weights="flat", n_hashes=2
        ),
        "make_table ce": lambda: call(cce.make_table, method="ce", vocab=40, dim=8, num_params=99, combine="add"),
        "make_table qr": lambda: call(cce.make_table, method="qr", vocab=40, dim=8, num_params=999, combine="add"),
        "make_table robe": lambda: call(cce.make_table, method="robe", vocab=40, dim=8, num_params=99, chunk_size=2),
        "make_table sparse": lambda: call(
            cce.make_table, method="sparse", vocab=40, dim=8, num_params=99, n_atoms=2, weight_bits=2
        ),
        "make_table tt": lambda: call(cce.make_table, method="tt", vocab=40, dim=8, num_params=199, cores=2),
        "make_table dhe": lambda: call(
            cce.make_table, method="dhe", vocab=None, dim=8, num_params=999, transform="uniform", depth=2, n_hashes=4
        ),
        "load": lambda: call(cce.load, path=saved, mmap=False),
        "set_num_threads": lambda: call(cce.set_num_threads, n=2),
        "hash_strings": lambda: call(cce.hash_strings, values=["a"], seed=1),
        "mix_hash": lambda: call(cce.mix_hash, ids=IDS, n_buckets=9, seed=1, stream=2),
        "Table": lambda: call(cce.Table, spec=spec, arrays=table().arrays()),
        "Table.lookup": lambda: call(table().lookup, ids=IDS),
        "Table.forward": lambda: call(table().forward, ids=IDS),
        "Table.backward": lambda: call(table().backward, ids=IDS, grads=GRADS, dense=True),
        "Table.cluster": lambda: call(
            table().cluster,
            vectors=np.ones((40, 8)),
            weights=np.ones(40),
            n_iter=2,
            points_per_centroid=9,
            residual=True,
            warm_start=True,
            batch_size=99,
            max_bytes=1 << 20,
            show_progress=False,
        ),
        "Table.save": lambda: call(table().save, path=saved),
        "TableSpec.from_json": lambda: call(cce.TableSpec.from_json, values=spec.as_json()),
        "Collection": lambda: call(cce.Collection, tables=[table()]),
        "Collection.lookup": lambda: call(both().lookup, **bags),
        "Collection.lookup lengths": lambda: call(
            both().lookup, ids=[[1, 2, 3], [1, 2]], lengths=[[1, 2], [1, 1]], mode="mean"
        ),
        "Collection.forward": lambda: call(both().forward, ids=words),
        "Collection.backward": lambda: call(
            both().backward, seen=words, grads=np.ones((2, 16), np.float32), dense=False
        ),
        "Collection.split": lambda: call(both().split, vectors=np.ones((2, 16), np.float32)),
        "KMeans": lambda: call(
            lambda **a: cce.KMeans(**a).fit(X),
            n_clusters=3,
            init="random",
            n_init=1,
            n_iter=2,
            tol=0.1,
            seed=1,
            n_threads=1,
        ),
        "KMeans.fit": lambda: call(cce.KMeans(3).fit, X=X, sample_weight=np.ones(30), on_iteration=None),
        "KMeans.predict": lambda: call(fitted().predict, X=X),
        "KMeans.transform": lambda: call(fitted().transform, X=X),
        "KMeans.set_params": lambda: call(lambda **a: fitted().set_params(**a).fit(X), n_clusters=3),
        "MiniBatchKMeans": lambda: call(
            lambda **a: clustering.MiniBatchKMeans(**a).fit(X),
            n_clusters=3,
            init="random",
            batch_size=9,
            n_iter=1,
            seed=1,
            n_threads=1,
        ),
        "MiniBatchKMeans.partial_fit": lambda: call(
            clustering.MiniBatchKMeans(3).partial_fit, X=X, sample_weight=np.ones(30)
        ),
        "assign": lambda: call(
            clustering.assign, X=X, centroids=X[:3], out=(np.empty(30, np.int32), np.empty(30, np.float32))
        ),
        "update": lambda: call(clustering.update, X=X, labels=LABELS, k=3, sample_weight=np.ones(30)),
        "random_points": lambda: call(clustering.random_points, X=X, k=3, sample_weight=np.ones(30), seed=1),
        "k_means_plus_plus": lambda: call(
            clustering.k_means_plus_plus, X=X, k=3, sample_weight=np.ones(30), seed=1, trials=2
        ),
        "circular_assign": lambda: call(clustering.circular_assign, X=X, memory=np.arange(9.0), stride=1),
        "circular_update": lambda: call(
            clustering.circular_update, X=X, labels=LABELS, memory=np.arange(9.0), sample_weight=np.ones(30)
        ),
        "circular_k_means": lambda: call(
            clustering.circular_k_means,
            X=X,
            memory=np.arange(9.0),
            n_iter=2,
            sample_weight=np.ones(30),
            stride=1,
            tol=0.1,
            on_iteration=None,
        ),
        "column_entropy": lambda: call(clustering.column_entropy, labels=LABELS, k=3),
        "pair_entropy": lambda: call(clustering.pair_entropy, a=LABELS, b=LABELS, k=3),
        "least_entropies": lambda: call(clustering.least_entropies, columns=[LABELS, LABELS], k=3),
        "k_svd": lambda: call(clustering.k_svd, X=X, n_atoms=4, n_nonzero=2, n_iter=1, seed=1, on_iteration=None),
        "omp": lambda: call(clustering.omp, X=X, D=np.eye(4), n_nonzero=2),
        "PolynomialHash": lambda: call(hashing.PolynomialHash, k=2, seed=1),
        "PolynomialHash()": lambda: call(hashing.PolynomialHash(2, 1), ids=IDS, n_buckets=5),
        "balanced_bases": lambda: call(hashing.balanced_bases, vocab=40, n=2),
        "derive_key": lambda: call(lambda seed, stream: hashing.derive_key(seed, stream), seed=1, stream=2),
        "digits": lambda: call(hashing.digits, ids=IDS, bases=(3, 4)),
        "undigits": lambda: call(hashing.undigits, digits=np.array([[1, 2]]), bases=(3, 4)),
        "Packing": lambda: call(storage.Packing, n=4, bits=(3, 5)),
        "Packing.read": lambda: call(packing().read, words=packed.copy(), field=0, start=0, stop=4),
        "Packing.write": lambda: call(packing().write, words=packed.copy(), field=0, start=0, values=np.arange(4)),
        "bits_for": lambda: call(storage.bits_for, rows=9),
        "load_arrays": lambda: call(storage.load_arrays, path=saved, mmap=False),
        "save_arrays": lambda: call(storage.save_arrays, path=saved, arrays=table().arrays(), spec=spec.as_json()),
        "logistic_dot": lambda: call(
            training.logistic_dot, u=np.ones((2, 3), np.float32), v=np.ones((2, 3), np.float32), labels=np.ones(2)
        ),
        "dense_cce": lambda: call(theory.dense_cce, X=X, Y=X[:, :2], k=6, steps=2, noise="plain", seed=1),
        "sparse_cce": lambda: call(theory.sparse_cce, X=X, Y=X[:, :2], k=6, steps=1, sketch="count", n_iter=2, seed=1),
        "loss_bound": lambda: call(theory.loss_bound, X=X, Y=X[:, :2], k=6, steps=2, noise="plain", counting="all"),
        "rho": lambda: call(theory.rho, X=X, noise="plain"),
        "Clicks": lambda: call(datasets.Clicks, labels=np.ones(2), dense=np.ones((2, 13)), categories=np.ones((2, 26))),
        "CriteoFile": lambda: call(datasets.CriteoFile, path=criteo(folder), vocab=9, seed=1),
        "CriteoFile.batches": lambda: call(datasets.CriteoFile(criteo(folder)).batches, size=2, start=0, stop=1),
        "Interactions": lambda: call(datasets.Interactions, users=np.arange(2), items=np.arange(2), labels=np.ones(2)),
        "Interactions.take": lambda: call(rows().take, rows=[0, 1]),
        "Interactions.batches": lambda: call(rows().batches, size=2, seed=1),
        "Synthetic": lambda: call(
            datasets.Synthetic,
            n_interactions=9,
            n_users=3,
            n_items=9,
            dim=2,
            zipf=1.0,
            user_zipf=0.5,
            scale=1.0,
            center=1.0,
            bias=1.0,
            seed=1,
        ),
        "Synthetic.batches": lambda: call(stream().batches, size=9, start=0, stop=20),
        "Synthetic.best": lambda: call(stream().best, rows=rows()),
        "Synthetic.block": lambda: call(stream().block, start=0, stop=5),
        "Synthetic.histories": lambda: call(stream().histories, n_last=2, name="x"),
        "Synthetic.probabilities": lambda: call(stream().probabilities, users=[1], items=[1]),
        "Synthetic.split": lambda: call(stream().split, n_valid=5),
        "ClickStream": lambda: call(
            datasets.ClickStream,
            n_rows=9,
            n_users=9,
            n_items=9,
            minute=5,
            lifetime=2.0,
            zipf=1.1,
            user_zipf=0.9,
            returning=0.1,
            dim=2,
            scale=1.0,
            center=1.0,
            rate=0.25,
            strings=False,
            seed=1,
        ),
        "ClickStream.batches": lambda: call(arriving().batches, size=9, start=0, stop=20),
        "ClickStream.best": lambda: call(arriving().best, start=0, stop=9),
        "ClickStream.block": lambda: call(arriving().block, start=0, stop=9),
        "ClickStream.drawn": lambda: call(arriving().drawn, start=0, stop=9),
        "ClickStream.probabilities": lambda: call(arriving().probabilities, start=0, stop=9),
        "SyntheticCriteo": lambda: call(
            datasets.SyntheticCriteo,
            n_rows=9,
            vocab=9,
            seed=1,
            dim=2,
            scale=1.0,
            zipf=1.1,
            center=0.5,
            slope=0.1,
            carriers=(1, 2),
        ),
        "SyntheticCriteo.batches": lambda: call(clicks().batches, size=9, start=0, stop=20),
        "SyntheticCriteo.best": lambda: call(clicks().best, start=0, stop=9),
        "SyntheticCriteo.block": lambda: call(clicks().block, start=0, stop=9),
        "SyntheticCriteo.lines": lambda: call(clicks().lines, start=0, stop=9),
        "SyntheticCriteo.probabilities": lambda: call(clicks().probabilities, start=0, stop=9),
        "SyntheticCriteo.write": lambda: call(clicks().write, path=os.path.join(folder, "written")),
        "criteo_sizes": lambda: call(datasets.criteo_sizes, most=99),
        "download": lambda: call(
            datasets.download, name="ml-1m", data_dir=folder, url="http://127.0.0.1:9/x", timeout=0.1, show=False
        ),
        "find": lambda: call(datasets.find, name="ml-1m", data_dir=folder),
        "datasets.load": lambda: call(datasets.load, name="ml-latest", data_dir=latest(folder), download=False, seed=1),
        "read_ratings": lambda: call(datasets.read_ratings, path=ratings(folder), separator="\t", name="x", n_lines=3),
        "split_last": lambda: call(datasets.split_last, ratings=datasets.read_ratings(ratings(folder)), n_last=1),
        "read_interactions": lambda: call(datasets.read_interactions, path=pairs(folder), name="x"),
        "read_vectors": lambda: call(datasets.read_vectors, path=named(folder), kind="text", encoding="ascii"),
        "split_with_negatives": lambda: call(
            datasets.split_with_negatives, pairs=datasets.read_interactions(pairs(folder)), seed=1
        ),
        "split_pairs": lambda: call(datasets.split_pairs, pairs=liked(), seed=1),
        "synthetic_like": lambda: call(datasets.synthetic_like, name="ml-latest-small", seed=1),
    }
    options = {"SGD": {"momentum": 0.5, "weight_decay": 0.1}, "Adagrad": {"eps": 1e-08, "rowwise": True}}
    adam = {"betas": (0.5, 0.9), "eps": 1e-08, "lazy": True}
    for kind, own in {**options, "Adam": adam, "AdamW": {**adam, "weight_decay": 0.1}}.items():
        make = getattr(cce, kind)
        out[kind] = lambda make=make, own=own: call(make, lr=0.1, max_norm=1.0, **own)
    for make in (cce.SGD, cce.Adam):
        out[f"{make.__name__}.step"] = lambda make=make: call(
            make(0.1).step, table=(t := table()), grads=t.backward(IDS, GRADS)
        )
        out[f"{make.__name__}.update"] = lambda make=make: call(make(0.1).update, table=table(), ids=IDS, grads=GRADS)
        out[f"{make.__name__}.update collection"] = lambda make=make: call(
            make(0.1).update, table=cce.Collection([table()]), ids=IDS[:, None], grads=GRADS
        )
        out[f"{make.__name__}.state_bytes"] = lambda make=make: call(make(0.1).state_bytes, table=table())
    return out


# Records that the library makes and hands out, errors, and what takes nothing.
NOT_CALLED = {
    "BudgetError",
    "FileFormatError",
    "NotFittedError",
    "ClusterReport",
    "SettlingReport",
    "Ledger",
    "SparseGradient",
    "TableSpec",
    "KSVD",
    "Fit",
    "Ratings",
    "Pairs",
    "Split",
    "Vectors",
    "get_num_threads",
    "methods",
    "names",
    "Optimizer",
    "datasets",
}
WORDS = {
    "queries": ("id ",),
    "num_bytes": ("bytes are too few",),
    "grads": ("gradient", "the table has no parameter"),
    "values": ("string", "spec", "pointers"),
    "name": ("data set",),
    "n": ("number of threads",),
    "tables": ("a Collection takes",),
    "seen": ("ids", "gradients"),
    "ids": ("id", "gradients"),
    "table": ("gradient", "another table"),
    "a": ("labels",),
    "b": ("labels",),
    "columns": ("labels",),
    "centroids": ("centroid",),
    "n_lines": ("holds",),
    "lengths": ("offsets",),
    "X": ("labels", "centroids"),
    "memory": ("labels",),
    "bases": ("digit", "id", "base"),
    "users": ("user ids",),
    "items": ("item ids",),
    "start": ("stop",),
    "n_last": ("interactions",),
    "rows": ("index",),
    "stop": ("start",),
    "path": ("nonsense", "directory", "a file"),
    "data_dir": ("not on this machine", "can't write"),
    "url": ("could not be downloaded",),
    "timeout": ("could not be downloaded",),
    "show": ("could not be downloaded",),
}
BEYOND = {
    ("ids", "ragged"),
    ("ids", "endless"),
    ("users", "ragged"),
    ("users", "endless"),
    ("items", "ragged"),
    ("items", "endless"),
    ("digits", "ragged"),
    ("digits", "endless"),
    ("labels", "ragged"),
    ("labels", "endless"),
    ("download.data_dir", "None"),
    ("download.data_dir", "a str"),
    ("download.data_dir", "bytes"),
    ("path", "a str"),
    ("path", "bytes"),  # these are paths
    ("KMeans.n_init", "huge"),
    ("KMeans.n_init", "2^63"),
    ("MiniBatchKMeans.n_iter", "huge"),
    ("MiniBatchKMeans.n_iter", "2^63"),  # it takes that long
    ("on_iteration", "a function"),
    ("on_iteration", "a type"),  # the error is the function's own
}


def test_every_public_name_is_called(tmp_path):
    called = {name for title in calls(tmp_path) for name in title.split("(")[0].split(" ")[0].split(".")}
    for room in (cce, hashing, storage, clustering, training, theory, datasets):
        for name in getattr(room, "__all__", None) or dir(room):
            thing = getattr(room, name)
            if not name.startswith("_") and not inspect.ismodule(thing) and name not in NOT_CALLED:
                assert name in called or not callable(thing) or not thing.__module__.startswith("cce_core"), name


@pytest.mark.parametrize("part", range(4))
def test_nonsense_is_refused_by_name(tmp_path, part, monkeypatch):
    def closed(url, *more):
        raise ConnectionError(f"{url} could not be downloaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetch, "_transfer", closed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CCE_DATA", raising=False)
    every = calls(str(tmp_path))
    mine = dict(list(every.items())[part::4])
    also = {"a table": table("hash"), "a collection": cce.Collection([table("hash")]), "a KMeans": fitted()}
    found = faults(mine, also, WORDS, BEYOND)
    assert not found, f"{len(found)} faults:\n" + "\n".join(found)
