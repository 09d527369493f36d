"""The export of a guard: what it writes, what it refuses, and what is left of a guard after a refusal."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import onnxruntime.quantization
import pytest
import torch
from onnx import helper, numpy_helper

from guardrail import export
from guardrail.backends import ONNX_FILES, file_digest
from guardrail.bases import load_base
from guardrail.evaluation_sets import load_evaluations
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard, content_digest, write_card
from tests.tiny_guard import tiny_guard
from tests.tiny_llama import tiny_llama


@pytest.fixture
def copy(exported, tmp_path):
    """An exported guard of one's own."""
    return shutil.copytree(exported, tmp_path / "guard")


@pytest.fixture
def saved(monkeypatch, exported):
    """Has the exporter, which takes ten seconds, write what it wrote for the exported guard; returns that file."""
    files = {"model": exported / ONNX_FILES["onnx"]}
    monkeypatch.setattr(export, "_write_onnx", lambda _model, file: shutil.copy(files["model"], file))
    monkeypatch.setattr(export, "_SEEDS", 32)
    return files


def altered(operation, inputs, initializers=()):
    """Return what writes a model whose logits are an operation on the "raw" ones of another."""

    def write(source, target, **_options):
        model = onnx.load(source)
        for node in model.graph.node:
            node.output[:] = ["raw" if name == "logits" else name for name in node.output]
        model.graph.initializer.extend(initializers)
        model.graph.node.append(helper.make_node(operation, inputs, ["logits"]))
        onnx.save(model, target)

    return write


#: Ranks everything the wrong way round.
opposite = altered("Neg", ["raw"])
#: Ranks everything as before, and takes nothing for unsafe.
lowered = altered("Sub", ["raw", "by"], [numpy_helper.from_array(np.float32(20.0), "by")])


def files(directory):
    return sorted(str(path.relative_to(directory)) for path in (directory / "onnx").rglob("*"))


def test_the_card_lists_files_and_how_they_compare_with_torch(exported):
    card = GuardCard.read(exported)
    assert files(exported) == ["onnx/model-int8.onnx", "onnx/model.onnx"]
    for name, file in ONNX_FILES.items():
        assert card.backends[name]["sha256"] == file_digest(exported / file)
    assert card.backends["onnx"]["max_probability_difference"] < 1e-4 and card.backends["onnx"]["texts"] > 32
    auprc = card.backends["onnx-int8"]["auprc"]["clear-cut"]
    assert auprc["torch"] == 1.0 and auprc["onnx-int8"] > 0.995
    assert card.backends["onnx-int8"]["f1"]["clear-cut"].keys() == {"torch", "onnx-int8"}


def test_the_digest_stays_and_so_does_all_else_of_the_card(exported, tmp_path):
    plain = tiny_guard(tmp_path / "plain")
    before, after = (json.loads((each / "guard.json").read_text()) for each in (plain, exported))
    assert content_digest(exported) == content_digest(plain) == after["digest"]
    assert {**after, "backends": {}} == before


def test_the_file_tells_nothing_of_the_machine(exported):
    content = (exported / ONNX_FILES["onnx"]).read_bytes()
    assert b"site-packages" not in content and b".py" not in content


def test_a_decoder_finds_the_last_token_of_each_text(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_SEEDS", 32)
    torch.manual_seed(0)
    model, tokenizer = load_base(str(tiny_llama(tmp_path / "llama")))
    directory = tmp_path / "guard"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_card(directory, version="v1", temperature=1.0, thresholds={"unsafe": 0.5}, window=32)
    export.export_float(directory)
    texts = ["a", "word " * 40, "hello there", "", "x" * 31]
    expected, found = (Guard.from_pretrained(directory, backend=name).logits(texts) for name in ("torch", "onnx"))
    assert np.allclose(expected, found, atol=1e-3)


@pytest.mark.usefixtures("saved")
def test_int8_that_ranks_worse_is_refused_and_float32_stays(copy, clear_cut_set, monkeypatch, capsys):
    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", opposite)
    assert export.main([str(copy), "--int8", "--data", str(clear_cut_set)]) == 2
    assert "loses more: auprc on clear-cut from 1.0000 to 0." in capsys.readouterr().err
    assert list(GuardCard.read(copy).backends) == ["onnx"] and files(copy) == ["onnx/model.onnx"]
    assert Guard.from_pretrained(copy, backend="onnx").classify(["hello"])


@pytest.mark.usefixtures("saved")
def test_int8_that_ranks_alike_and_decides_worse_is_refused(copy, clear_cut_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", lowered)
    dataclasses.replace(GuardCard.read(copy), thresholds={"unsafe": 1e-4}).write(copy)  # by torch, all are
    unsafe = tmp_path / "unsafe.jsonl"  # the half of the other set
    unsafe.write_text("".join(line for line in clear_cut_set.open() if '"unsafe": true' in line))
    assert export.main([str(copy), "--int8", "--data", str(clear_cut_set), str(unsafe)]) == 2
    told = capsys.readouterr().err
    assert "f1 on clear-cut from" in told and "recall on unsafe from" in told and "auprc on" not in told
    assert list(GuardCard.read(copy).backends) == ["onnx"] and files(copy) == ["onnx/model.onnx"]


@pytest.mark.parametrize(
    ("metric", "before", "after", "lost"),
    [
        ("auprc", 0.9, 0.8951, False),
        ("auprc", 0.9, 0.895, True),
        ("f1", 0.75, 0.74, False),
        ("f1", 0.75, 0.7399, True),
        ("recall", 0.6, 0.8, False),
        ("recall", 0.6, 0.58, True),
        ("fpr", 0.05, 0.06, False),  # more than 0.01 as it is computed
        ("fpr", 0.05, 0.07, True),
        ("fpr", 0.05, 0.01, False),
    ],
)
def test_what_int8_may_lose(metric, before, after, lost):
    found = export.losses({metric: {"mine": {"torch": before, "onnx-int8": after}}})
    assert found == ([f"{metric} on mine from {before:.4f} to {after:.4f}"] if lost else [])


def test_float32_that_differs_from_torch_is_refused(copy, saved, tmp_path, capsys):
    opposite(saved["model"], tmp_path / "opposite.onnx")
    saved["model"] = tmp_path / "opposite.onnx"
    assert export.main([str(copy)]) == 2
    assert "differ from torch's by up to" in capsys.readouterr().err
    assert "onnx" not in GuardCard.read(copy).backends and "onnx/model.onnx" not in files(copy)
    assert Guard.from_pretrained(copy).classify(["hello"])


def test_an_interrupted_export_leaves_the_guard_as_it_was(copy, clear_cut_set, monkeypatch):
    def interrupt(_model, file):
        file.write_bytes(b"half a mod")
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_write_onnx", interrupt)
    before = (copy / "guard.json").read_bytes(), files(copy)
    with pytest.raises(KeyboardInterrupt):
        export.main([str(copy), "--int8", "--data", str(clear_cut_set)])
    assert ((copy / "guard.json").read_bytes(), files(copy)) == before
    assert Guard.from_pretrained(copy, backend="onnx-int8").classify(["hello"])


@pytest.mark.usefixtures("saved")
def test_what_a_killed_export_left_is_cleared_away(copy):
    (copy / "onnx" / ".partial").mkdir()
    (copy / "onnx" / ".partial" / "float.onnx").write_bytes(b"half a mod")
    export.export_float(copy)
    assert files(copy) == ["onnx/model-int8.onnx", "onnx/model.onnx"]
    assert list(GuardCard.read(copy).backends) == ["onnx", "onnx-int8"]


def test_a_guard_that_is_replaced_meanwhile_gets_no_file_of_the_other(copy, saved, monkeypatch):
    def replace_guard(_model, file):
        shutil.copy(saved["model"], file)
        tiny_guard(copy, seed=1)

    monkeypatch.setattr(export, "_write_onnx", replace_guard)
    with pytest.raises(ValueError, match="became another guard"):
        export.export_float(copy)
    assert GuardCard.read(copy).backends == {}


def test_a_model_that_cannot_be_exported_is_refused_with_its_name(tmp_path, monkeypatch, capsys):
    def fail(*_args, **_options):
        raise torch.onnx.OnnxExporterError("no such operator\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    directory = tiny_guard(tmp_path / "guard")
    assert export.main([str(directory)]) == 2
    assert "a bert model cannot be exported with this torch (no such operator)" in capsys.readouterr().err
    assert GuardCard.read(directory).backends == {} and files(directory) == []


def test_int8_wants_sets_that_define_auprc(copy, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        export.main([str(copy), "--int8"])
    assert "--int8 and --data go together" in capsys.readouterr().err
    file = tmp_path / "benign.jsonl"
    file.write_text(json.dumps({"id": "1", "text": "hello", "response": None, "unsafe": False}) + "\n")
    assert export.main([str(copy), "--int8", "--data", str(file)]) == 2
    assert "unsafe and benign items" in capsys.readouterr().err
    assert export.main([str(copy), "--int8", "--data", "no-such-set"]) == 2


def test_int8_wants_float32(copy, clear_cut_set):
    (copy / ONNX_FILES["onnx"]).unlink()
    with pytest.raises(ValueError, match=rf"has no onnx/model.onnx; run python -m guardrail.export {copy}$"):
        export.export_int8(copy, load_evaluations([clear_cut_set]))


def test_what_is_no_guard_is_refused(tmp_path, capsys):
    assert export.main([str(tmp_path)]) == 2
    assert "is no guard directory" in capsys.readouterr().err
