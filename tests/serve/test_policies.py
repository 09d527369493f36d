"""The folder of policies, and the commands that check and propose them."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from guardrail.policy import read_policy
from serve.policies import Policies, main, propose, read_policies, read_texts
from tests.tiny_guard import tiny_guard

STRICT = "thresholds: {unsafe: {block: 0.2}}"


def test_policies_are_read_again_when_they_change_and_a_broken_change_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "strict.yaml"
    file.write_text(STRICT)
    policies = Policies(tmp_path)
    assert policies.get("strict").thresholds["unsafe"].block == 0.2
    file.write_text("thresholds: {unsafe: {block: 0.25}}")
    assert policies.get("strict").thresholds["unsafe"].block == 0.25
    file.write_text("thresholds: {unsafe: {block: 2}}")
    os.utime(file, ns=(1, 1))
    assert policies.get("strict").thresholds["unsafe"].block == 0.25
    file.unlink()
    assert policies.get("strict") is None and policies.names() == []
    file.write_text("thresholds: {unsafe: {block: 2}}")  # a new one that never held a policy
    (tmp_path / "a b.yaml").write_text(STRICT)
    assert policies.get("strict") is None and policies.get("a b") is None and policies.names() == ["strict"]


@pytest.mark.parametrize("name", ["../strict", "strict.yaml", "", "a/b", ".", "x" * 300, "\0"])
def test_no_other_file_can_be_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "strict.yaml").write_text(STRICT)
    assert Policies(tmp_path / "policies").get(name) is None


def test_a_default_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "strict.yaml").write_text(STRICT)
    assert read_policies(tmp_path, "strict") and read_policies(None, None) is None
    for folder, name in ((tmp_path, "mild"), (None, "strict")):
        with pytest.raises(ValueError, match="no policy"):
            read_policies(folder, name)
    with pytest.raises(ValueError, match="no folder of policies"):
        read_policies(tmp_path / "absent", None)


def test_a_draft_keeps_no_replica_down(tmp_path: Path) -> None:
    (tmp_path / "strict.yaml").write_text(STRICT)
    (tmp_path / "draft.yaml").write_text("thresholds: {")
    policies = read_policies(tmp_path, "strict")
    assert policies and policies.get("strict") and policies.get("draft") is None
    with pytest.raises(ValueError, match="no policy 'draft'"):
        read_policies(tmp_path, "draft")


def test_lint_names_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.yaml").write_text(STRICT)
    assert main(["lint", str(tmp_path)]) == 0
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("thresholds: {hate: {}}")
    assert main(["lint", str(tmp_path), str(tmp_path / "absent.yaml")]) == 1
    told = capsys.readouterr().err
    assert all(f"{name}.yaml" in told for name in ("a", "b", "absent")) and "good.yaml" not in told


@given(
    st.lists(st.floats(0, 0.99), min_size=100, max_size=300),
    st.lists(st.floats(0, 1), min_size=1, max_size=50),
    st.sampled_from([0.01, 0.03, 0.1]),
)
def test_a_proposed_policy_keeps_to_its_rates(benign: list[float], unsafe: list[float], block: float) -> None:
    policy = propose(np.array(benign), np.array(unsafe), 0.2, block, "")
    thresholds = policy.thresholds["unsafe"]
    assert np.mean(np.array(benign) >= thresholds.block) <= block
    assert thresholds.flag is None or np.mean(np.array(benign) >= thresholds.flag) <= 0.2


@pytest.mark.parametrize(("flag", "block", "message"), [(0.05, 0.001, "at least 1000"), (0.01, 0.05, "rates must be")])
def test_rates_that_cannot_be_are_refused(flag: float, block: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        propose(np.linspace(0, 1, 100), np.ones(3), flag, block, "")


def test_benign_texts_that_all_look_unsafe_are_questioned() -> None:
    with pytest.raises(ValueError, match="are they benign"):
        propose(np.ones(100), np.ones(3), 0.05, 0.01, "")


def test_propose_writes_a_policy_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guard = tiny_guard(tmp_path / "guard")
    (tmp_path / "benign.txt").write_text("\n".join(f"How do I bake bread number {index}?" for index in range(40)))
    (tmp_path / "unsafe.csv").write_text("text\nI will find you.\nYou will pay for this.\n")
    command = ["propose", "--guard", str(guard), "--benign", str(tmp_path / "benign.txt")]
    command += ["--unsafe", str(tmp_path / "unsafe.csv"), "--output", str(tmp_path / "mine.yaml")]
    assert main([*command, "--block-fpr", "0.05", "--flag-fpr", "0.1", "--picture", str(tmp_path / "mine.png")]) == 0
    assert read_policy(tmp_path / "mine.yaml").thresholds["unsafe"].block
    fitted = read_policy(tmp_path / "mine.yaml").fitted_on
    assert fitted and (fitted.name, fitted.n, fitted.sources) == ("benign.txt", 40, ())
    assert "40 benign texts" in yaml.safe_load((tmp_path / "mine.yaml").read_text())["description"]
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG") and "false positives" in capsys.readouterr().out
    assert main([*command, "--block-fpr", "0.001"]) == 2
    assert "give at least 1000" in capsys.readouterr().err


def test_thresholds_are_not_proposed_on_an_evaluation_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"How do I bake bread number {index}?" for index in range(40)]
    (tmp_path / "xstest.txt").write_text("\n".join(texts))
    (tmp_path / "mine.csv").write_text("text,source\n" + "".join(f"{text},xstest\n" for text in texts))
    (tmp_path / "renamed.txt").write_text("\n".join(texts))
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "xstest.csv").write_text(f"prompt,label,type,focus,note\n{texts[7].upper()},safe,a,b,c\n")

    def proposed(name: str, *more: str) -> int:
        command = ["propose", "--guard", str(tmp_path / "guard"), "--benign", str(tmp_path / name)]
        return main([*command, "--output", str(tmp_path / "mine.yaml"), "--block-fpr", "0.05", *more])

    for name in ("xstest.txt", "mine.csv"):  # before the guard, which is not there, is read
        assert proposed(name) == 2
        assert "xstest is an evaluation set" in capsys.readouterr().err
    assert proposed("renamed.txt", "--data-dir", str(tmp_path / "sets")) == 2
    assert "of the evaluation set xstest" in capsys.readouterr().err
    assert proposed("renamed.txt") == 2
    assert "no guard directory" in capsys.readouterr().err
    fitted = "{name: mine, n: 40, digest: d, sources: [strongreject]}"
    (tmp_path / "mine.yaml").write_text(f"{STRICT}\nfitted_on: {fitted}")
    assert main(["lint", str(tmp_path / "mine.yaml")]) == 1
    assert "strongreject is an evaluation set" in capsys.readouterr().err


def test_rows_without_a_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,b\nhello,1\n,2\n")
    with pytest.raises(ValueError, match="row 2"):
        read_texts(tmp_path / "rows.csv")
