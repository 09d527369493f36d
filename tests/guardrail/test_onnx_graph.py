"""What is done to exported graphs: they compute the same afterwards, and int8 is nearer to it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.quantization import QuantType, quantize_dynamic

from guardrail import export, onnx_graph
from guardrail.backends import ONNX_FILES
from guardrail.bases import load_base
from guardrail.guard import Guard
from guardrail.onnx_graph import fuse_attention, smooth
from tests.tiny_guard import tiny_guard
from tests.tiny_llama import tiny_llama

IDS = np.random.default_rng(0).integers(4, 90, (3, 40))


def logits(graph, ids=IDS):
    return InferenceSession(graph.SerializeToString()).run(["logits"], {"input_ids": ids})[0]


def operators(graph):
    return [node.op_type for node in graph.graph.node]


@pytest.fixture
def plain(tmp_path):
    """The graph of a tiny guard of two layers, as it is exported."""
    directory = tiny_guard(tmp_path / "guard", layers=2)
    export._write_onnx(Guard.from_pretrained(directory).model, tmp_path / "model.onnx")
    return onnx.load(tmp_path / "model.onnx")


def test_attention_becomes_one_node_that_computes_the_same(plain):
    fused = onnx.ModelProto()
    fused.CopyFrom(plain)
    assert fuse_attention(fused, heads=2) == 2
    assert operators(fused).count("MultiHeadAttention") == 2
    assert not {"Softmax", "Where"}.intersection(operators(fused))  # nor is the mask computed any more
    assert np.allclose(logits(fused), logits(plain), atol=1e-5)


def test_an_exported_guard_has_it(exported):
    assert "MultiHeadAttention" in operators(onnx.load(exported / ONNX_FILES["onnx"]))


def test_attention_of_another_form_stays(tmp_path):
    model, _ = load_base(str(tiny_llama(tmp_path / "llama")))
    export._write_onnx(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    before = graph.SerializeToString()
    assert fuse_attention(graph, heads=model.config.num_attention_heads) == 0
    assert graph.SerializeToString() == before


def test_where_a_mask_hides_tokens_the_graph_is_exported_as_it_is(tmp_path, monkeypatch):
    directory = tiny_guard(tmp_path / "guard")
    monkeypatch.setattr(export, "_SEEDS", 32)
    guard = Guard.from_pretrained(directory)
    guard.model.config.is_decoder = True  # BERT with a causal mask: of the same form, and not the same
    monkeypatch.setattr(Guard, "from_pretrained", lambda *_args, **_options: guard)
    card = export.export_float(directory)
    assert card.backends["onnx"]["max_probability_difference"] < 1e-4
    assert "MultiHeadAttention" not in operators(onnx.load(directory / ONNX_FILES["onnx"]))


def product(peak):
    """A graph that embeds tokens, the first channel `peak` times as high as the others, and multiplies with weights."""
    random = np.random.default_rng(0)
    table = random.standard_normal((100, 32)).astype(np.float32)
    table[:, 0] *= peak
    weights = {"table": table, "weights": random.standard_normal((32, 8)).astype(np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "weights"], ["logits"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", 8])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def int8_error(graph, folder):
    onnx.save(graph, folder / "float.onnx")
    options = {"op_types_to_quantize": ["MatMul"], "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", **options)
    return np.abs(logits(onnx.load(folder / "int8.onnx")) - logits(graph)).mean()


def test_a_peak_is_smoothed_away_and_int8_is_nearer(tmp_path):
    graph = product(peak=50)
    expected, before = logits(graph), int8_error(graph, tmp_path)
    assert smooth(graph, [IDS]) == 1
    assert np.allclose(logits(graph), expected, rtol=1e-4, atol=1e-3)
    assert int8_error(graph, tmp_path) < before / 3


def test_what_has_no_peak_stays():
    graph = product(peak=1)
    before = graph.SerializeToString()
    assert smooth(graph, [IDS]) == 0
    assert graph.SerializeToString() == before


def test_what_is_multiplied_with_several_weights_is_divided_once(plain, monkeypatch):
    monkeypatch.setattr(onnx_graph, "_PEAK", 0.0)
    expected = logits(plain)
    divided = smooth(plain, [IDS])
    assert divided == sum(node.name.endswith("_smooth") for node in plain.graph.node) == 2 * 4  # q, k, v share theirs
    assert np.allclose(logits(plain), expected, atol=1e-4)


def test_a_channel_that_is_always_zero_divides_by_nothing():
    graph = product(peak=50)
    table = numpy_helper.to_array(graph.graph.initializer[0]).copy()
    table[:, 5] = 0
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "table"))
    expected = logits(graph)
    smooth(graph, [IDS])
    assert np.isfinite(logits(graph)).all() and np.allclose(logits(graph), expected, rtol=1e-4, atol=1e-3)
