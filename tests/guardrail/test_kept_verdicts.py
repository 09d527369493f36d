"""Verdicts that are kept, and services that are asked only for the others."""

import subprocess
import sys

import numpy as np
import pytest

from guardrail.kept_verdicts import KeptVerdicts, Verdict
from guardrail.moderation_endpoint import ModerationEndpoint
from guardrail.reading import Exchange
from guardrail.remote import TargetError
from tests.moderation_server import moderation_server

TEXTS = [f"How do I {'steal' if i % 3 == 0 else 'bake'} number {i}?" for i in range(70)]
SAID = Verdict(True, {"unsafe": 0.1 + 0.2})


@pytest.fixture
def server():
    with moderation_server() as running:
        yield running


def endpoint(server, folder, **options):
    guard = ModerationEndpoint(server.url, sleep=lambda seconds: None, tries=2, **options)
    guard.remember(folder)
    return guard


def sent(server):
    """Return the texts that were sent since this was asked last."""
    texts = [text for given in server.inputs for text in ([given] if isinstance(given, str) else given)]
    server.inputs.clear()
    return texts


def test_a_service_that_failed_is_asked_only_for_what_it_has_not_said(server, tmp_path):
    expected = ModerationEndpoint(server.url).moderate(TEXTS)
    server.inputs.clear()
    server.answers = 64
    with pytest.raises(TargetError):
        endpoint(server, tmp_path / "kept").moderate(TEXTS)
    sent(server)
    server.answers = 7
    said = endpoint(server, tmp_path / "kept").moderate(TEXTS)
    assert sent(server) == [TEXTS[0], *TEXTS[64:]]  # from the first one it is learned that it is the same model
    assert (said.flagged == expected.flagged).all() and (said.probabilities == expected.probabilities).all()
    kept = "".join(file.read_text() for file in (tmp_path / "kept").iterdir())
    assert kept.count("\n") == 71 and "bake" not in kept and "steal" not in kept and server.url not in kept


def test_nothing_is_asked_twice_by_one_guard(server, tmp_path):
    guard = endpoint(server, tmp_path)
    guard.flagged(TEXTS[:40])
    assert [len(batch) for batch in server.inputs] == [32, 8]  # nothing was kept that is to be checked
    sent(server)
    assert guard.flagged([*TEXTS[:3], "", TEXTS[40]]).tolist() == [True, False, False, False, False]
    assert sent(server) == [TEXTS[40]]


def test_what_is_known_is_told_without_asking(server, tmp_path):
    server.answers = 64
    guard = endpoint(server, tmp_path)
    assert np.isnan(guard.known(TEXTS).probabilities).all()  # nothing is
    with pytest.raises(TargetError):
        guard.moderate(TEXTS)
    sent(server)
    known = guard.known([*TEXTS, " "])
    assert np.isfinite(known.probabilities).all(axis=1).tolist() == [True] * 64 + [False] * 7
    assert known.flagged.tolist() == [i % 3 == 0 for i in range(64)] + [False] * 7 and not sent(server)


def test_what_one_model_said_is_no_verdict_of_another(server, tmp_path):
    endpoint(server, tmp_path).flagged(TEXTS[:3])
    sent(server)
    server.model = "word-list-2"
    endpoint(server, tmp_path).flagged(TEXTS[:3])
    assert sent(server) == TEXTS[:3]
    server.model = None
    endpoint(server, tmp_path).flagged(TEXTS[:3])
    assert sent(server) == TEXTS[:3]
    endpoint(server, tmp_path).flagged(TEXTS[:3])  # nor has it one now, but the same URL
    assert sent(server) == TEXTS[:1]


def test_nor_is_it_one_of_another_url(server, tmp_path):
    endpoint(server, tmp_path).flagged(TEXTS[:2])
    with moderation_server() as other:
        endpoint(other, tmp_path).flagged(TEXTS[:2])
        assert sent(other) == TEXTS[:2]


def test_refused_texts_are_asked_again_for_the_service_may_have_been_mended(server, tmp_path):
    server.refused = "number"
    texts = ["How do I bake?", *TEXTS[:2]]
    said = endpoint(server, tmp_path).moderate(texts, skip_refused=True)
    assert np.isnan(said.probabilities[:, 0]).tolist() == [False, True, True]
    assert np.isnan(said.probabilities[1]).all()
    said = endpoint(server, tmp_path).moderate(texts[::-1], skip_refused=True)  # first comes what is refused
    assert np.isnan(said.probabilities[:, 0]).tolist() == [True, True, False]
    server.refused = "a text that nobody sends"
    sent(server)
    assert endpoint(server, tmp_path).flagged(texts).tolist() == [False, True, False]
    assert sent(server) == texts


def test_a_prompt_with_its_response_is_not_the_text_of_both(server, tmp_path):
    guard = endpoint(server, tmp_path)
    guard.flagged([Exchange("a", "b"), Exchange("a\n\nb", ""), "a\n\nb"])
    assert len(KeptVerdicts(tmp_path)) == 3


def test_a_line_that_was_cut_off_is_no_verdict_and_harms_no_other(tmp_path):
    kept = KeptVerdicts(tmp_path)
    for key in ("one", "two"):
        kept.add(key, SAID)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    again = KeptVerdicts(tmp_path)
    assert (again.get("one"), again.get("two")) == (SAID, None)
    kept.add("three", SAID)  # as after a disk that was full
    file.write_bytes(file.read_bytes() + b"\n\0\0\n[1]\n\xff")
    again = KeptVerdicts(tmp_path)
    assert (again.get("one"), again.get("two"), again.get("three")) == (SAID, None, SAID)


def test_what_cannot_be_written_is_told_once_and_ends_nothing(server, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    guard = endpoint(server, tmp_path / "file" / "kept")
    assert guard.flagged(TEXTS).sum() == 24
    told = [record.getMessage() for record in caplog.records if "cannot be kept" in record.getMessage()]
    assert told == [f"verdicts cannot be kept in {tmp_path / 'file' / 'kept'}: Not a directory"]


_ADDS = """
import sys
from pathlib import Path
from guardrail.kept_verdicts import KeptVerdicts, Verdict
kept = KeptVerdicts(Path(sys.argv[1]))
for i in range(200):
    kept.add(f"{sys.argv[2]}-{i}", Verdict(True, {"unsafe": 0.1 + 0.2}))
"""


def test_processes_share_a_folder(tmp_path):
    running = [subprocess.Popen([sys.executable, "-c", _ADDS, str(tmp_path), name]) for name in ("a", "b")]
    assert [process.wait() for process in running] == [0, 0]
    kept = KeptVerdicts(tmp_path)
    assert len(kept) == 400 and kept.get("a-199") == kept.get("b-0") == SAID
