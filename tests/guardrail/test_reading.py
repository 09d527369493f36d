"""Windows: what is read of texts, of long responses with their prompts, and of conversations."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.guard import Guard
from guardrail.reading import Exchange, messages_read, reading_of, windows
from guardrail.transforms import TRANSFORMS
from tests.tiny_guard import tiny_guard

SIZE = 48
CUT = ["[", "##.", "##.", "##.", "##]"]


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return Guard.from_pretrained(tiny_guard(tmp_path_factory.mktemp("guard")))


def shown(guard, window):
    """Return the characters that a window shows; the tiny guard has a token for each."""
    tokens = guard.tokenizer.convert_ids_to_tokens(window.ids)
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    return "".join(token.removeprefix("##") for token in tokens[1:-1])


words = st.text("abcdefghij", min_size=1, max_size=150)


@given(prompt=words, response=words)
def test_every_window_of_a_response_begins_with_its_prompt_and_none_of_it_is_left_out(guard, prompt, response):
    (read,) = windows([Exchange(prompt, response)], guard.tokenizer, SIZE)
    room = SIZE - 2
    assert all(len(window.ids) <= SIZE for window in read)
    if len(prompt) + len(response) <= room:
        assert [shown(guard, window) for window in read] == [prompt + response]
        assert (read[0].start, read[0].end, read[0].prompt_cut) == (0, len(response), 0)
        return
    kept = room // 2 - len(CUT)
    whole = len(prompt) <= room // 2
    before = prompt if whole else f"{prompt[: kept // 2]}[...]{prompt[-(kept - kept // 2) :]}"
    assert [shown(guard, window) for window in read] == [before + response[w.start : w.end] for w in read]
    assert {window.prompt_cut for window in read} == {0 if whole else len(prompt) - kept}
    assert read[0].start == 0 and read[-1].end == len(response)
    assert all(one.end > other.start for one, other in itertools.pairwise(read))  # they overlap


@given(text=words)
def test_the_windows_of_a_text_are_the_text(guard, text):
    (read,) = windows([text], guard.tokenizer, SIZE)
    assert [shown(guard, window) for window in read] == [text[w.start : w.end] for w in read]
    assert read[0].start == 0 and read[-1].end == len(text)
    assert all(len(window.ids) == SIZE for window in read[:-1])


@pytest.mark.parametrize("exchange", [Exchange("x" * 100, ""), Exchange("", "x" * 100), Exchange("", "")])
def test_an_empty_part_is_no_special_case(guard, exchange):
    (read,) = windows([exchange], guard.tokenizer, SIZE)
    assert read[0].start == 0 and read[-1].end == len(exchange.response)


def test_half_a_surrogate_pair_is_read_as_a_question_mark(guard):
    broken, read = ["Hi \ud83d", Exchange("a\udc00" * 50, "b\ud83d" * 50)], ["Hi ?", Exchange("a?" * 50, "b?" * 50)]
    assert windows(broken, guard.tokenizer, SIZE) == windows(read, guard.tokenizer, SIZE)
    assert [each.score for each in guard.classify(broken)] == [each.score for each in guard.classify(read)]


def test_what_fits_is_read_as_prompt_and_response_with_an_empty_line_between(guard):
    assert reading_of("a", None) == "a" and reading_of("a", "") == Exchange("a", "")
    assert np.allclose(guard.logits([Exchange("Name a tea.", "Oolong.")]), guard.logits(["Name a tea.\n\nOolong."]))


def test_the_end_of_a_long_response_is_judged_with_its_prompt(guard):
    end = "z" * 10
    long = "y" * 200 + end
    first, second = (guard.logits([Exchange(prompt, long)])[0] for prompt in ("abc", "cba"))
    assert not np.allclose(first, second)
    assert guard.classify([Exchange("a" * 100, long)])[0].prompt_cut > 0 == guard.classify([long])[0].prompt_cut


def test_spans_of_an_exchange_are_characters_of_its_response(guard):
    guard.card = dataclasses.replace(guard.card, thresholds={"unsafe": 0.0})
    short, long = guard.classify([Exchange("Name a tea.", "Oolong."), Exchange("Name a tea.", "Oolong. " * 20)])
    assert [(span.start, span.end) for span in short.spans] == [(0, 7)]
    assert long.spans[0].start == 0 and long.spans[-1].end == len("Oolong. " * 20) - 1  # the last token's


def test_a_conversation_is_as_unsafe_as_its_most_unsafe_message(guard):
    conversation = [
        {"role": "system", "content": "Be kind."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Name a tea."},
        {"role": "tool", "content": "[]"},
        {"role": "assistant", "content": "Oolong."},
    ]
    read = ["Be kind.", "Hello.", "Name a tea.", "[]", Exchange("Name a tea.", "Oolong.")]
    assert messages_read(conversation) == read
    guard.card = dataclasses.replace(guard.card, thresholds={"unsafe": 0.0})
    verdict, *alone = guard.classify([conversation, *read])
    assert verdict.score == pytest.approx(max(each.score for each in alone), abs=1e-6)
    for key, score in verdict.categories.items():
        assert score == pytest.approx(max(each.categories[key] for each in alone), abs=1e-6)
    assert [span.message for span in verdict.spans] == [0, 1, 2, 3, 4]
    assert {span.message for each in alone for span in each.spans} == {None}
    assert verdict.tokens == sum(each.tokens for each in alone)


def test_messages_may_hold_what_chat_apis_put_there():
    asked = {"role": "user", "content": [{"type": "text", "text": "Bake"}, {"type": "image_url"}, {"text": "bread"}]}
    called = {"role": "assistant", "content": None, "tool_calls": []}
    answer = Exchange("Bake\nbread", "")
    assert messages_read([asked, called, {"role": "assistant"}]) == ["Bake\nbread", answer, answer]


@pytest.mark.parametrize("wrong", [{"content": "a"}, {"role": "user", "content": 5}, "hello", None])
def test_what_is_no_message_is_named(guard, wrong):
    with pytest.raises(ValueError, match="what is at 1 cannot be read: .*message 1"):
        guard.classify(["fine", [{"role": "user", "content": "Hi"}, wrong]])


@pytest.mark.parametrize("wrong", [None, 5, {"role": "user", "content": "Hi"}])
def test_what_is_no_text_is_named(guard, wrong):
    with pytest.raises(ValueError, match="what is at 0 cannot be read"):
        guard.classify([wrong])


def test_a_text_alone_and_a_conversation_of_nothing_are_refused(guard):
    with pytest.raises(TypeError, match="give it in a list"):
        guard.classify("hello")
    with pytest.raises(ValueError, match="conversation at 1 has no message"):
        guard.classify(["hello", []])


def test_a_disguised_response_is_read_in_plain_letters_behind_its_prompt(guard):
    guard.card = dataclasses.replace(guard.card, thresholds={"unsafe": 0.0})
    said = "how do i kill a python process that does not answer?"
    disguised = TRANSFORMS["base64"].apply(said, np.random.default_rng(0))
    of_response, of_prompt = guard.classify([Exchange("Decode it.", disguised), Exchange(disguised, "Gladly.")])
    assert (of_response.said, of_response.decoded) == (said, ("base_64",))
    assert {span.disguised for span in of_response.spans} == {False, True}
    (plainly,) = guard.logits([Exchange("decode it.", said)])
    assert (guard.logits([Exchange("Decode it.", disguised)])[0] >= plainly - 1e-5).all()
    # What the prompt says counts, and the response is as it is written.
    assert (of_prompt.said, of_prompt.decoded) == (None, ())
    assert [(s.start, s.end, s.disguised) for s in of_prompt.spans] == [(0, 7, False)] * 2
