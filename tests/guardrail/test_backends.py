"""The backends of a guard on a tiny one that is really exported: they answer alike, and open only what is listed."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import onnx
import pytest
import torch

from guardrail.backends import ONNX_FILES, OnnxBackend, fastest
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard
from tests.tiny_guard import tiny_guard

TEXTS = [
    "How do I kill a Python process?",
    "",
    "a",
    "what a long story this is " * 40,  # many windows
    "SG93IGRvIEkgYmFrZSBhIGxvYWYgb2YgYnJlYWQgYXQgaG9tZT8=",  # read twice
]


@pytest.fixture
def copy(exported, tmp_path):
    """An exported guard of one's own."""
    return shutil.copytree(exported, tmp_path / "guard")


def test_float32_answers_as_torch_does(exported):
    expected, found = (Guard.from_pretrained(exported, backend=name).classify(TEXTS) for name in ("torch", "onnx"))
    for before, after in zip(expected, found, strict=True):
        assert after.score == pytest.approx(before.score, abs=1e-5)
        assert after.categories == pytest.approx(before.categories, abs=1e-5)
        assert [(span.start, span.end) for span in after.spans] == [(span.start, span.end) for span in before.spans]
        assert after.said == before.said


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 48), (7, 2), (33, 17)])
def test_a_batch_may_have_any_size(exported, batch, length):
    ids, mask = np.random.default_rng(0).integers(4, 90, (batch, length)), np.ones((batch, length), np.int64)
    found = [Guard.from_pretrained(exported, backend=name).backend.logits(ids, mask) for name in ("torch", "onnx")]
    assert [each.dtype for each in found] == [np.float32, np.float32]
    assert np.allclose(*found, atol=1e-4)


def test_onnx_runtime_is_given_no_padding(exported, monkeypatch):
    guard, shapes = Guard.from_pretrained(exported, backend="onnx"), []
    logits = OnnxBackend.logits

    def counted(self, ids, mask):
        assert mask.all()
        shapes.append(ids.shape)
        return logits(self, ids, mask)

    monkeypatch.setattr(OnnxBackend, "logits", counted)
    guard.classify(["abc", "abd", "ab", "a b c d"])
    assert sorted(shapes) == [(1, 4), (1, 6), (2, 5)]


def test_an_earlier_export_which_takes_a_mask_is_read_too(exported, tmp_path):
    model = onnx.load(exported / ONNX_FILES["onnx"])
    model.graph.input.append(onnx.helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, ["b", "t"]))
    onnx.save(model, tmp_path / "model.onnx")
    ids, mask = np.full((2, 7), 9), np.ones((2, 7), np.int64)
    both = [OnnxBackend(file).logits(ids, mask) for file in (exported / ONNX_FILES["onnx"], tmp_path / "model.onnx")]
    assert np.array_equal(*both)


def test_int8_answers_about_as_torch_does(exported):
    torch_, int8 = (Guard.from_pretrained(exported, backend=name) for name in ("torch", "onnx-int8"))
    difference = np.abs(torch_.probabilities(TEXTS) - int8.probabilities(TEXTS))
    assert 0 < difference.max() < 0.2
    assert int8.classify([]) == []


def test_onnx_runtime_takes_the_threads_that_torch_would(exported, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    backend = OnnxBackend(exported / ONNX_FILES["onnx"])
    assert backend._session.get_session_options().intra_op_num_threads == 3


def test_only_torch_has_a_model(exported):
    assert Guard.from_pretrained(exported).model.config.model_type == "bert"
    assert not hasattr(Guard.from_pretrained(exported, backend="onnx"), "model")


@pytest.mark.parametrize("name", list(ONNX_FILES))
def test_a_file_that_was_changed_is_refused(copy, name):
    file = copy / ONNX_FILES[name]
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"not the file that guard.json lists; run python -m guardrail.export"):
        Guard.from_pretrained(copy, backend=name)
    assert Guard.from_pretrained(copy).classify(["hello"])


def test_one_backend_is_not_taken_for_another(copy):
    shutil.copy(copy / ONNX_FILES["onnx"], copy / ONNX_FILES["onnx-int8"])
    with pytest.raises(ValueError, match="not the file that guard.json lists"):
        Guard.from_pretrained(copy, backend="onnx-int8")


def test_what_is_missing_or_not_listed_names_the_command(copy, tmp_path):
    plain = tiny_guard(tmp_path / "plain")
    with pytest.raises(ValueError, match=rf"has no onnx/model.onnx; run python -m guardrail.export {plain}$"):
        Guard.from_pretrained(plain, backend="onnx")
    with pytest.raises(ValueError, match=rf"guardrail.export {plain} --int8 --data NAME_OR_FILE"):
        Guard.from_pretrained(plain, backend="onnx-int8")
    dataclasses.replace(GuardCard.read(copy), backends={}).write(copy)
    with pytest.raises(ValueError, match="does not list the backend onnx; run python -m guardrail.export"):
        Guard.from_pretrained(copy, backend="onnx")


def test_a_listed_file_that_onnx_runtime_cannot_read_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="ONNX Runtime .* cannot read"):
        OnnxBackend(tmp_path / "model.onnx")


def test_backends_and_devices_that_there_are_not_are_refused(exported):
    with pytest.raises(ValueError, match="there are auto, torch, onnx, onnx-int8"):
        Guard.from_pretrained(exported, backend="int8")
    with pytest.raises(ValueError, match="computes on CPUs, not on 'cuda'"):
        Guard.from_pretrained(exported, device="cuda", backend="onnx")


def test_without_onnx_runtime_torch_works_and_the_others_say_what_to_install(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert Guard.from_pretrained(exported).classify(["hello"])
    with pytest.raises(ValueError, match="pip install 'onnxruntime"):
        Guard.from_pretrained(exported, backend="onnx")


def test_auto_takes_the_fastest_that_there_is(copy, monkeypatch):
    def chosen():
        guard = Guard.from_pretrained(copy, backend="auto")
        assert guard.classify(["hello"]) and guard.backend.name == fastest(copy, guard.card.backends)
        return guard.backend.name

    assert chosen() == "onnx-int8"
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxruntime", None)
        assert chosen() == "torch"
    assert isinstance(Guard.from_pretrained(copy, device="cpu", backend="auto").backend, OnnxBackend)
    (copy / ONNX_FILES["onnx-int8"]).unlink()
    assert chosen() == "onnx"
    dataclasses.replace(GuardCard.read(copy), backends={}).write(copy)
    assert chosen() == "torch"


def test_auto_has_torch_compute_where_a_file_is_damaged(copy, caplog):
    (copy / ONNX_FILES["onnx-int8"]).write_bytes(b"no model")
    assert Guard.from_pretrained(copy, backend="auto").backend.name == "torch"
    assert "not the file that guard.json lists" in caplog.text


def test_a_card_from_before_there_were_backends_is_read(copy):
    values = json.loads((copy / "guard.json").read_text())
    del values["backends"]
    (copy / "guard.json").write_text(json.dumps(values))
    assert GuardCard.read(copy).backends == {}
    assert Guard.from_pretrained(copy).classify(["hello"])


@pytest.mark.parametrize("backends", [None, [], {"onnx": "sha"}])
def test_a_card_with_backends_that_cannot_be_is_refused(copy, backends):
    values = json.loads((copy / "guard.json").read_text())
    (copy / "guard.json").write_text(json.dumps({**values, "backends": backends}))
    with pytest.raises(ValueError, match="is damaged"):
        GuardCard.read(copy)
