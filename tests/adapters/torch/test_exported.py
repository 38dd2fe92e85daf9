"""Modules in models that are exported: to ONNX, to torch's own operations, and by AOTInductor."""

from __future__ import annotations

import io
import shutil

import pytest

torch = pytest.importorskip("torch")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

from cce_core.adapters.torch import Embedding, EmbeddingBag, decompositions  # noqa: E402

pytestmark = pytest.mark.torch

VOCAB, DIM = 97, 8
SHAPES = {0: torch.export.Dim("rows", min=2, max=1000), 1: torch.export.Dim("columns", min=2, max=1000)}


class Model(nn.Module):
    """Tables whose addresses are found in every way, beside each other: hashes, pointers, digits, blocks that wrap round."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(
            [
                Embedding(VOCAB, DIM, method="cce_robe", num_params=200, seed=1),
                Embedding(VOCAB, DIM, method="qr", num_params=200, seed=3),
                Embedding(VOCAB, DIM, method="hash", num_params=200, signed=True, seed=4),
                Embedding(VOCAB, DIM, method="vq", num_bytes=600, phase="codes", seed=6),
            ]
        )
        self.head = nn.Linear(DIM, 3)

    def forward(self, ids):
        return self.head(torch.stack([table(ids) for table in self.tables]).sum(0))


class Bags(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.table = EmbeddingBag(VOCAB, DIM, method="hash", num_params=200, seed=1, mode=mode)

    def forward(self, ids, offsets):
        return self.table(ids, offsets)


def ids_of(*shape):
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(0))


def session(model, arguments, shapes):
    """What onnxruntime makes of a model, as a function of tensors."""
    program, file = (
        torch.onnx.export(model.eval(), arguments, dynamo=True, dynamic_shapes=shapes, verbose=False),
        io.BytesIO(),
    )
    program.save(file)
    found = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [given.name for given in found.get_inputs()]
    return lambda *tensors: torch.from_numpy(found.run(None, {n: t.numpy() for n, t in zip(names, tensors)})[0])


def test_onnx():
    model = Model()
    run, ids = session(model, (ids_of(4, 5),), (SHAPES,)), ids_of(7, 3)
    torch.testing.assert_close(run(ids), model(ids))


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_onnx_of_bags(mode):
    """With empty bags at the begin, between others and at the end."""
    model, offsets = Bags(mode), torch.tensor([0, 0, 5, 5, 9, 13])
    shapes = ({0: torch.export.Dim("ids", min=2)}, {0: torch.export.Dim("bags", min=2)})
    run = session(model, (ids_of(20), torch.tensor([0, 4, 4, 9])), shapes)
    torch.testing.assert_close(run(ids_of(13), offsets), model(ids_of(13), offsets))


def test_a_program_of_torchs_operations_alone():
    model, ids = Model(), ids_of(7, 3)
    program = torch.export.export(model, (ids_of(4, 5),), dynamic_shapes=(SHAPES,)).run_decompositions(decompositions())
    assert not [node for node in program.graph.nodes if "cce" in str(node.target) and node.op == "call_function"]
    torch.testing.assert_close(program.module()(ids), model(ids))


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a compiler of C++")
def test_aot_inductor(tmp_path):
    """The package calls the adapter's operators: the library's loops, and its IndexError."""
    emb = Embedding(VOCAB, DIM, method="cce", num_params=300, seed=1)
    program = torch.export.export(emb, (ids_of(4, 5),), dynamic_shapes=(SHAPES,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "emb.pt2"))
    run, ids = torch._inductor.aoti_load_package(path), ids_of(7, 3)
    with torch.no_grad():
        torch.testing.assert_close(run(ids), emb(ids), rtol=0, atol=0)
        with pytest.raises(Exception, match=r"outside this table's vocabulary|aoti"):
            run(torch.full((7, 3), VOCAB))
