"""A link names the guard in use, and is pointed elsewhere in one step, by a command that can be undone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from guardrail.guard_card import GuardCard, write_card
from guardrail.promotion import main, promote
from tests.tiny_guard import tiny_guard


def test_a_guard_is_promoted_and_the_one_before_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (tiny_guard(tmp_path / "rounds" / name, seed=seed) for seed, name in enumerate(("00", "01")))
    link = tmp_path / "guard"
    promote(link, first)
    assert link.is_symlink() and not link.readlink().is_absolute()  # a run can be moved
    assert main([str(link), str(second)]) == 0
    assert GuardCard.read(link).version == "tiny-1"
    assert f"Go back with: python -m guardrail.promotion {link} {first}" in capsys.readouterr().out


def test_what_is_no_guard_is_not_promoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "guard"
    promote(link, tiny_guard(tmp_path / "first"))
    (tmp_path / "empty").mkdir()
    assert main([str(link), str(tmp_path / "empty")]) == 2
    assert "is no guard directory" in capsys.readouterr().err and link.resolve() == tmp_path / "first"


def test_a_guard_whose_scores_are_no_numbers_is_not_promoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tiny_guard(tmp_path / "broken")
    model = AutoModelForSequenceClassification.from_pretrained(broken)
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    model.save_pretrained(broken)
    card = GuardCard.read(broken)
    write_card(broken, version=card.version, temperature=1.0, thresholds=card.thresholds, window=card.window)
    assert main([str(tmp_path / "guard"), str(broken)]) == 2
    assert "not numbers" in capsys.readouterr().err and not (tmp_path / "guard").exists()


def test_a_directory_is_not_replaced_by_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guard = tiny_guard(tmp_path / "guard")
    assert main([str(guard), str(tiny_guard(tmp_path / "other", seed=1))]) == 2
    assert GuardCard.read(guard).version == "tiny-0" and capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))
