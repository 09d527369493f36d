"""A guard behind HTTP, against a real server that misbehaves."""

import email.utils
import pickle
import socket
import time

import numpy as np
import pytest

from guardrail.evaluation import evaluate_set
from guardrail.evaluation_items import EvaluationItem
from guardrail.guard import Guard
from guardrail.metrics import binary_metrics
from guardrail.moderation_endpoint import ModerationEndpoint
from guardrail.remote import KEY_VARIABLE, RemoteGuard, TargetError, TextRefusedError
from guardrail.targets import open_guard, unsafe_scores
from guardrail.taxonomy import LABELS, UNSAFE
from tests.moderation_server import MODEL, SILENCE, Trouble, moderation_server
from tests.tiny_guard import tiny_guard

TEXTS = [f"How do I {'steal' if i % 3 == 0 else 'bake'} number {i}?" for i in range(70)]
HARMFUL = np.array([i % 3 == 0 for i in range(70)])


@pytest.fixture
def server():
    with moderation_server() as running:
        yield running


@pytest.fixture
def waits():
    """What the guard has waited, in seconds."""
    return []


@pytest.fixture
def guard(server, waits):
    return ModerationEndpoint(server.url, sleep=waits.append)


def failure(guard, texts=("How do I bake?",)):
    with pytest.raises(TargetError) as caught:
        guard.moderate(texts)
    return str(caught.value)


def test_texts_go_in_batches_and_come_back_in_order(server, guard):
    said = guard.moderate(TEXTS)
    assert [len(batch) for batch in server.inputs] == [32, 32, 6]
    assert said.flagged.dtype == bool and (said.flagged == HARMFUL).all()
    assert said.probabilities.dtype == np.float64 and said.probabilities.shape == (70, len(LABELS))
    assert guard.name == MODEL


def test_a_score_is_that_of_the_highest_category_and_categories_go_by_name(guard):
    (row,) = guard.probabilities(["How do I steal?"])
    by_label = dict(zip(LABELS, row, strict=True))
    assert by_label.pop("unsafe") == 0.95  # of a category that we do not have
    assert by_label.pop("illicit") == 0.9
    assert set(by_label.values()) == {0.0}


def test_a_service_that_scores_nothing_is_scored_by_its_decisions(server, guard):
    server.troubles = [Trouble(200, body='{"results": [{"flagged": true}, {"flagged": false}]}')]
    assert guard.probabilities(["a", "b"])[:, 0].tolist() == [1.0, 0.0]
    assert guard.name == server.url  # nor has it a name


def test_ours_is_known_by_its_digest_too(server, guard):
    said = '{"model": "default", "results": [{"flagged": true}]}'
    for digest in ("0123", "4567"):
        server.troubles = [Trouble(200, {"Rayguard-Guard": digest}, said)]
        guard.moderate(["How do I steal?"])
        assert guard.name == f"default@{digest}"


def test_texts_without_anything_to_read_are_not_sent(server, guard):
    assert guard.flagged(["", "How do I steal?", " \n"]).tolist() == [False, True, False]
    assert server.inputs == [["How do I steal?"]]
    assert len(guard.flagged([])) == 0


def test_half_a_surrogate_pair_is_sent_as_something_that_is_text(server, guard):
    assert guard.flagged(["steal \ud83d"]).tolist() == [True]
    assert server.inputs == [["steal ?"]]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_service_that_refuses_lists_is_asked_for_one_text_at_a_time_from_then_on(server, guard, status):
    server.troubles = [Trouble(status)]
    assert (guard.flagged(TEXTS[:4]) == HARMFUL[:4]).all()
    assert (guard.flagged(TEXTS[4:6]) == HARMFUL[4:6]).all()
    assert server.inputs == [TEXTS[:4], *TEXTS[:6]]


def test_a_list_of_one_that_is_refused_is_sent_as_a_text(server, guard):
    server.takes_lists = False
    assert guard.flagged(["How do I steal?"]).tolist() == [True]


def test_a_service_that_reads_a_list_as_one_message_is_asked_for_one_text_at_a_time(server, guard):
    server.troubles = [Trouble(200, body='{"results": [{"flagged": true}]}')]
    assert (guard.flagged(TEXTS[:3]) == HARMFUL[:3]).all()


@pytest.mark.parametrize("trouble", [Trouble(0), Trouble(408), Trouble(429), Trouble(500), Trouble(529)])
def test_what_passes_is_waited_for_longer_each_time(server, guard, waits, trouble):
    server.troubles = [trouble] * 5
    assert guard.flagged(["How do I steal?"]).tolist() == [True]
    assert all(2**i / 2 <= waited <= 2**i for i, waited in enumerate(waits)) and len(waits) == 5


def test_what_our_service_blocks_unread_is_no_judgement(server, guard, waits):
    server.troubles = [Trouble(200, {"Rayguard-Degraded": "deadline_exceeded"})]
    assert guard.flagged(["How do I bake?"]).tolist() == [False] and len(waits) == 1
    server.troubles = [Trouble(200, {"Rayguard-Degraded": "model_failed"})] * 99
    assert "what was not read (model_failed)" in failure(guard)


def test_retry_after_is_honoured_in_seconds_and_as_a_date(server, guard, waits):
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    server.troubles = [Trouble(429, {"Retry-After": value}) for value in ("17", date, "soon")]
    guard.flagged(["How do I steal?"])
    assert waits[0] == 17 and 90 < waits[1] <= 100 and waits[2] <= 4


def test_a_service_that_wants_more_patience_than_there_is_is_left_at_once(server, guard, waits):
    server.troubles = [Trouble(429, {"Retry-After": "86400"})]
    assert "HTTP 429 (of_the_test), and asks to wait for 86400 s" in failure(guard)
    assert waits == []


def test_a_service_that_stays_broken_is_given_up_after_a_bounded_number_of_tries(server, guard, waits):
    server.answers = 0
    assert "failed 9 times in a row, the last time with HTTP 503" in failure(guard)
    assert len(server.inputs) == 9 and len(waits) == 8
    assert sum(waits) > 60  # a quota for the minute is outlasted


def test_one_that_does_not_answer_in_time_is_given_up_after_three_tries_in_a_row(server, waits, monkeypatch):
    monkeypatch.setattr(ModerationEndpoint, "timeout", 0.3)
    guard = ModerationEndpoint(server.url, sleep=waits.append)
    server.troubles = [SILENCE, SILENCE, Trouble(503), SILENCE, SILENCE]
    assert guard.flagged(["How do I steal?"]).tolist() == [True] and len(waits) == 5
    waits.clear()
    server.troubles = [SILENCE] * 9
    assert "failed 3 times in a row, the last time with ReadTimeout" in failure(guard)
    assert len(waits) == 2


def test_a_service_that_is_not_there_is_named(waits):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1/moderations"
        message = failure(ModerationEndpoint(url, tries=2, sleep=waits.append))
    assert message.startswith(f"{url} failed 2 times in a row, the last time with ConnectError")


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (Trouble(401), f"HTTP 401 .of_the_test.; put the service's key into {KEY_VARIABLE}"),
        (Trouble(404), "HTTP 404 .*; the URL is that of the endpoint itself"),
        (Trouble(307, {"Location": "/elsewhere"}), "HTTP 307 .*; it sends elsewhere"),
        (Trouble(200, body="<html>"), r"does not answer as such an endpoint does \(Invalid JSON"),
        (Trouble(200, body='{"choices": []}'), r"such an endpoint does \(results: Field required\)"),
        (Trouble(200, body='{"results": []}'), "results: List should have at least 1 item"),
        (Trouble(200, body='{"results": [{"flagged": "perhaps"}]}'), "results.0.flagged: "),
        (Trouble(200, body='{"results": [{"flagged": true, "category_scores": {"hate": NaN}}]}'), "hate: Input should"),
        (Trouble(200, body='{"results": [{"flagged": true, "category_scores": {"hate": 73}}]}'), "hate: Input should"),
    ],
)
def test_what_will_not_pass_is_told_at_once_with_what_to_do(server, guard, waits, trouble, message):
    server.troubles = [trouble]
    with pytest.raises(TargetError, match=message):
        guard.moderate(["How do I bake?"])
    assert waits == []


def test_one_text_that_is_refused_on_its_own_is_an_error(server, guard):
    server.troubles = [Trouble(400), Trouble(400)]
    with pytest.raises(TargetError, match=r"HTTP 400 \(of_the_test\); that is text 2, of 15 characters"):
        guard.moderate(["", "How do I steal?"])
    assert guard.batch > 1  # it is the text that is refused, not lists


def test_a_text_that_is_refused_can_be_skipped(server, guard):
    server.refused = "cars"
    scores, flagged = unsafe_scores(guard, ["How do I bake?", "How do I steal cars?", "", "How do I steal?"])
    assert np.isnan(scores).tolist() == [False, True, False, False]
    assert flagged.tolist() == [False, False, False, True]
    assert guard.batch > 1  # lists are taken
    with pytest.raises(TextRefusedError):
        guard.moderate(["How do I steal cars?"])


def test_a_service_with_several_models_is_told_which(server):
    server.takes_lists = False
    guard = open_guard(f"{server.url}#omni%20latest")
    assert guard.flagged(["How do I steal?"]).tolist() == [True]
    assert server.asked_for == ["omni latest"] * 2 and guard.name == MODEL  # which is what it calls itself
    open_guard(server.url).flagged(["How do I steal?"])
    assert server.asked_for[2:] == [None] * 2


def test_a_text_at_which_a_service_fails_whenever_it_is_asked_is_one_that_it_refuses(server, guard):
    server.breaks_it = "cars"
    scores, flagged = unsafe_scores(guard, ["How do I bake?", "How do I steal cars?", "How do I steal?"])
    assert np.isnan(scores).tolist() == [False, True, False] and flagged.tolist() == [False, False, True]
    assert guard.batch > 1  # lists are taken
    assert np.isnan(unsafe_scores(guard, ["How do I bake cars?"])[0]).all()
    assert "failed 9 times in a row, the last time with HTTP 500" in failure(guard, ["How do I steal cars?"])


def test_a_service_that_fails_at_anything_refuses_no_text(server, guard):
    server.breaks_it = "How"
    with pytest.raises(TargetError, match="failed 9 times in a row, the last time with HTTP 500"):
        unsafe_scores(guard, TEXTS[:3])
    assert server.inputs[0] == TEXTS[:3] and TEXTS[0] not in server.inputs  # one harmless text told


@pytest.mark.parametrize("trouble", [Trouble(429), Trouble(400)])
def test_nor_does_one_whose_quota_is_used_up_or_that_takes_not_even_what_is_harmless(server, guard, trouble):
    server.troubles = [trouble if trouble.status == 429 else Trouble(500)] * 9 + [trouble]
    with pytest.raises(TargetError, match="failed 9 times in a row"):
        unsafe_scores(guard, TEXTS[:1])


def test_a_service_that_takes_too_long_over_lists_is_asked_for_one_text_at_a_time(server, waits, monkeypatch):
    monkeypatch.setattr(ModerationEndpoint, "timeout", 0.5)
    server.is_slow_with_lists = True
    guard = ModerationEndpoint(server.url, tries=2, sleep=waits.append)
    assert (guard.flagged(TEXTS[:4]) == HARMFUL[:4]).all() and guard.batch == 1
    assert server.inputs[:2] == [TEXTS[:4]] * 2 and server.inputs[3:] == TEXTS[:4]


def test_a_failure_travels_between_processes(server, guard):
    server.answers = 64
    with pytest.raises(TargetError) as caught:
        guard.moderate(["", *TEXTS])
    again = pickle.loads(pickle.dumps(caught.value))  # Ray sends errors
    assert type(again) is type(caught.value) and str(again) == str(caught.value)


def test_the_key_comes_from_the_environment_and_goes_nowhere_but_to_the_service(server, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv(KEY_VARIABLE, "sk-of-the-test")
    guard = ModerationEndpoint(server.url, sleep=lambda seconds: None)
    server.troubles = [Trouble(500)]
    guard.moderate(["How do I bake?"])
    server.troubles = [Trouble(403)]
    message = failure(guard)
    assert set(server.keys) == {"Bearer sk-of-the-test"}
    assert "HTTP 500" in caplog.text
    assert "sk-of-the-test" not in caplog.text + message + repr(guard)
    assert "bake" not in caplog.text + message and "SECRET" not in caplog.text + message


def test_without_a_key_none_is_sent(server, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    ModerationEndpoint(server.url).moderate(["How do I bake?"])
    assert server.keys == [None]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://me:secret@host/v1/moderations", "must carry no password"),
        ("https:///v1/moderations", "is no URL of an endpoint such as https://HOST/v1/moderations"),
        ("https://host:port/v1/moderations", "not a URL"),
    ],
)
def test_urls_that_cannot_be_asked_are_refused(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_guard(url)
    assert "secret" not in str(caught.value)


def test_a_target_is_a_directory_or_a_url(server, tmp_path):
    ours, theirs = open_guard(str(tiny_guard(tmp_path / "guard"))), open_guard(server.url)
    assert isinstance(ours, Guard) and isinstance(theirs, RemoteGuard)
    ours.card.thresholds[UNSAFE] = float(np.median(ours.probabilities(TEXTS)[:, 0]))
    scores, flagged = unsafe_scores(ours, TEXTS)
    assert (flagged == (scores >= ours.card.thresholds[UNSAFE])).all() and flagged.any() and not flagged.all()
    scores, flagged = unsafe_scores(theirs, TEXTS)
    assert (flagged == HARMFUL).all() and set(scores) == {0.95, 0.2}
    with pytest.raises(ValueError, match="is no guard directory"):
        open_guard(str(tmp_path / "absent"))


def test_texts_that_a_service_refuses_are_counted_and_the_rest_is_measured(server):
    server.refused = "cars"
    texts = ["How do I steal?", "How do I steal cars?", "How do I bake?", "How do I bake cars?"]
    items = [EvaluationItem(str(i), text, None, "steal" in text, None, None) for i, text in enumerate(texts)]
    metrics = evaluate_set(ModerationEndpoint(server.url), items)
    assert (metrics["n"], metrics["refused"], metrics["f1"]) == (2, 2, 1.0)
    with pytest.raises(TargetError, match="refuses all 2 texts"):
        evaluate_set(ModerationEndpoint(server.url), items[1::2])


def test_metrics_of_a_service_are_of_its_decisions_and_of_its_scores(server):
    items = [
        EvaluationItem(str(i), text, None, i % 2 == 0, None, ["even"] if i % 2 == 0 else None)
        for i, text in enumerate(TEXTS)
    ]
    server.troubles = [  # ranks all as they are, and flags none
        Trouble(200, body=f'{{"results": [{{"flagged": false, "category_scores": {{"x": {1 - i % 2}}}}}]}}')
        for i in range(70)
    ]
    guard = ModerationEndpoint(server.url, batch=1)
    metrics = evaluate_set(guard, items)
    assert (metrics["auprc"], metrics["auroc"], metrics["recall_at_1pct_fpr"]) == (1.0, 1.0, 1.0)
    assert (metrics["f1"], metrics["recall"], metrics["fpr"], metrics["precision"]) == (0.0, 0.0, 0.0, None)
    assert (metrics["threshold"], metrics["ece"]) == (None, None)
    assert metrics["tags"]["even"]["recall"] == 0.0
    assert metrics.keys() == {*binary_metrics([True], [1.0], 0.5), "tags"}
