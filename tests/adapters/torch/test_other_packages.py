"""compress_ on models of packages that people use, and ClusterSchedule in real trainers: `tox -e models`."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from cce_core.adapters.torch import ClusterSchedule, Embedding, cluster_, compress_  # noqa: E402
from cce_core.adapters.torch.modules.module import Compressed  # noqa: E402

pytestmark = pytest.mark.models

ROWS, DIM, N = 2000, 8, 64
METHODS = [("cce", {"ratio": 4}), ("pq", {"ratio": 4}), ("hash", {"ratio": 10}), ("int8", {})]


@pytest.fixture(autouse=True)
def _their_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def package(name):
    """The package, or a skip; in tox the environment says which must be there."""
    with contextlib.redirect_stdout(io.StringIO()):
        return pytest.importorskip(name, exc_type=ImportError)


# Each gives a model, a function that calls it, and the number of embeddings that can be swapped.


def rechub():
    """torch-rechub's DeepFM: sparse features, one of them shared with a sequence."""
    package("torch_rechub")
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DeepFM

    features = [SparseFeature(name, ROWS, DIM) for name in ("user", "item")]
    features.append(SequenceFeature("history", ROWS, DIM, pooling="mean", shared_with="item"))
    model = DeepFM([*features, DenseFeature("age")], features, {"dims": [16], "activation": "relu", "dropout": 0.0})
    model.deep_dims = None
    model.mlp = type(model.mlp)(3 * DIM + 1, dims=[16], activation="relu", dropout=0.0)
    ids = torch.randint(0, ROWS, (N, 7))
    batch = {"user": ids[:, 0], "item": ids[:, 1], "history": ids[:, 2:], "age": torch.rand(N)}
    return model, lambda m: m(batch), 2


def rechub_two_towers():
    """torch-rechub's DSSM for matching: a user's and an item's tower."""
    package("torch_rechub")
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.matching import DSSM

    user = [SparseFeature("user", ROWS, DIM), SequenceFeature("history", ROWS, DIM, pooling="mean", shared_with="item")]
    item = [SparseFeature("item", ROWS, DIM)]
    model = DSSM(user, item, {"dims": [16, 4]}, {"dims": [16, 4]})
    ids = torch.randint(0, ROWS, (N, 7))
    batch = {"user": ids[:, 0], "item": ids[:, 1], "history": ids[:, 2:]}
    return model, lambda m: m(batch), 2


def deepctr():
    """deepctr-torch's DeepFM; its linear part has tables of one float an id, which are skipped."""
    package("deepctr_torch")
    with contextlib.redirect_stdout(io.StringIO()):
        from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
        from deepctr_torch.models import DeepFM
    columns = [
        SparseFeat("user", ROWS, embedding_dim=DIM),
        SparseFeat("item", ROWS, embedding_dim=DIM),
        DenseFeat("age", 1),
    ]
    columns.append(
        VarLenSparseFeat(
            SparseFeat("history", ROWS, embedding_dim=DIM, embedding_name="item"), maxlen=5, combiner="mean"
        )
    )
    model = DeepFM(columns, columns, dnn_hidden_units=(16,))
    ids = torch.randint(1, ROWS, (N, 7)).float()
    batch = torch.cat([ids[:, :2], torch.rand(N, 1), ids[:, 2:]], 1)
    return model, lambda m: m(batch), 2


def fuxictr():
    """A DeepFM of FuxiCTR's own layers, on its BaseModel."""
    package("fuxictr")
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    features = FeatureMap("tiny", ".")
    features.features = OrderedDict(
        user={"type": "categorical", "source": "", "vocab_size": ROWS, "padding_idx": 0},
        item={"type": "categorical", "source": "", "vocab_size": ROWS, "padding_idx": 0},
        age={"type": "numeric", "source": ""},
        other={"type": "categorical", "source": "", "vocab_size": ROWS, "padding_idx": 0, "share_embedding": "item"},
    )
    features.labels, features.num_fields = ["label"], 4

    class DeepFM(BaseModel):
        def __init__(self):
            super().__init__(features, model_root="/nowhere", metrics=["AUC"], verbose=0)
            self.embedding_layer = FeatureEmbedding(features, DIM)
            self.fm = FactorizationMachine(features)
            self.mlp = MLP_Block(4 * DIM, [16], output_dim=1)

        def forward(self, batch):
            vectors = self.embedding_layer(batch)
            return torch.sigmoid(self.fm(batch, vectors) + self.mlp(vectors.flatten(1)))

    from unittest import mock

    with mock.patch("os.makedirs"):  # it would make a folder for checkpoints
        model = DeepFM()
    ids = torch.randint(0, ROWS, (N, 3))
    batch = {"user": ids[:, 0], "item": ids[:, 1], "age": torch.rand(N), "other": ids[:, 2]}
    return model, lambda m: m(batch), 2


def torchrec():
    """TorchRec's DLRM over an EmbeddingBagCollection, two features of which share a table."""
    package("fbgemm_gpu")
    package("torchrec")
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
    from torchrec.models.dlrm import DLRM

    tables = EmbeddingBagCollection(
        device=torch.device("cpu"),
        tables=[
            EmbeddingBagConfig(name="users", embedding_dim=DIM, num_embeddings=ROWS, feature_names=["user"]),
            EmbeddingBagConfig(name="things", embedding_dim=DIM, num_embeddings=ROWS, feature_names=["item", "other"]),
        ],
    )
    model = DLRM(tables, dense_in_features=3, dense_arch_layer_sizes=[16, DIM], over_arch_layer_sizes=[16, 1])
    lengths = torch.randint(0, 4, (3 * N,))  # empty bags among them
    values = torch.randint(0, ROWS, (int(lengths.sum()),))
    bags, dense = KeyedJaggedTensor(["user", "item", "other"], values, lengths=lengths), torch.rand(N, 3)
    return model, lambda m: torch.sigmoid(m(dense, bags)), 2


MODELS = [rechub, rechub_two_towers, deepctr, fuxictr, torchrec]


def wide(name, module):
    """What is too narrow to be compressed: one float an id."""
    return module.embedding_dim == 1


@pytest.mark.parametrize(("method", "options"), METHODS, ids=[m for m, _ in METHODS])
@pytest.mark.parametrize("make", MODELS)
def test_forward_backward_a_step_save_load(make, method, options, tmp_path):
    torch.manual_seed(0)
    model, call, count = make()
    labels = torch.randint(0, 2, (N,)).float()
    report = compress_(model, method=method, min_rows=100, skip=wide, seed=1, **options)
    assert sum(bool(swap.method) for swap in report.tables) == count, str(report)
    swapped = {name: m for name, m in model.named_modules() if isinstance(m, Compressed)}
    assert len(swapped) == count
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses, model = [], model.train()
    for step in range(12):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy(call(model).reshape(-1), labels)
        loss.backward()
        if not step:
            assert all(p.grad is not None and p.grad.isfinite().all() for m in swapped.values() for p in m.parameters())
            before = {name: m.weight.detach().clone() for name, m in swapped.items()}
        optimizer.step()
        losses.append(loss.item())
        if step == 5:
            assert set(cluster_(model, optimizer)) == (set(swapped) if method == "cce" else set())
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert all(not torch.equal(m.weight, before[name]) for name, m in swapped.items())
    model.eval()
    with torch.no_grad():
        wanted = call(model)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(0)
    other, call_other, _ = make()
    compress_(other, method=method, min_rows=100, skip=wide, seed=2, fresh=True, **options)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(call_other(other.eval()), wanted)


# Trainers


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = Embedding(50, 4, method="cce", num_params=64, n_chunks=2, seed=0)
        self.out = nn.Linear(8, 1)

    def forward(self, ids=None, labels=None):
        score = self.out(self.emb(ids).flatten(1))[:, 0]
        return {"loss": nn.functional.binary_cross_entropy_with_logits(score, labels), "logits": score}


ITEMS = [{"ids": torch.tensor([k % 50, (7 * k) % 50]), "labels": torch.tensor(float(k % 2))} for k in range(64)]


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize(("epochs", "gather", "expected"), [(3, 1, [8, 16]), (1, 1, [2, 4]), (1, 2, [1, 2])])
def test_a_callback_of_lightning(name, epochs, gather, expected, tmp_path):
    package(name)
    import importlib

    lightning, steps, model = importlib.import_module(name), [], Net()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def training_step(self, batch, batch_idx):
            return self.net(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    class Watched(ClusterSchedule):
        def _now(self, *arguments):
            reports = super()._now(*arguments)
            if reports:
                steps.append(trainer.global_step)
            return reports

    module, schedule = Module(), Watched()
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[schedule], logger=False, enable_progress_bar=False, accumulate_grad_batches=gather,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(ITEMS, batch_size=8))
    assert steps == expected
    assert int(model.emb.generation) == len(expected)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]
    assert kept[schedule.state_key]["count"] == schedule.count


@pytest.mark.parametrize(("epochs", "expected"), [(3, [8, 16]), (1, [2, 4])])
def test_a_callback_of_hugging_face(epochs, expected, tmp_path):
    transformers = package("transformers")
    package("accelerate")
    steps, model = [], Net()

    class Watched(ClusterSchedule):
        def on_step_end(self, args, state, control, **more):
            self.step = state.global_step
            super().on_step_end(args, state, control, **more)

        def _now(self, *arguments):
            reports = super()._now(*arguments)
            if reports:
                steps.append(self.step)
            return reports

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=epochs, per_device_train_batch_size=8, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=ITEMS, callbacks=[Watched()])
    trainer.train()
    assert steps == expected
    assert int(model.emb.generation) == len(expected)


def test_a_language_model_keeps_its_tied_table(tmp_path):
    transformers = package("transformers")
    sizes = {"vocab_size": ROWS, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    for tie in (True, False):
        config = transformers.GPT2Config(**sizes, tie_word_embeddings=tie)
        model = transformers.GPT2LMHeadModel(config)
        report = compress_(model, method="cce", ratio=4, min_rows=100, seed=0)
        (swap,) = [s for s in report.tables if s.name == "transformer.wte"]
        assert (swap.why, swap.tied) == ("", ("lm_head",) if tie else ())
        ids = torch.randint(0, ROWS, (2, 9))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        assert loss.isfinite()
