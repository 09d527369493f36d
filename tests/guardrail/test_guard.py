"""The guard directory on a real, tiny classifier."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen2Config, Qwen2Model

from guardrail.bases import load_base
from guardrail.batching import cheapest_batches, token_batches
from guardrail.deobfuscation import LOOKED_AT
from guardrail.disguise import read_as
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard, content_digest
from guardrail.taxonomy import CATEGORIES, LABELS
from guardrail.transforms import TRANSFORMS
from tests.tiny_guard import tiny_decoder_guard, tiny_guard

WINDOW = 32


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_decoder_guard(tmp_path_factory.mktemp("guard"), temperature=2.0, window=WINDOW)


def test_it_loads_in_plain_transformers_with_the_same_logits(directory):
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    inputs = AutoTokenizer.from_pretrained(directory)(["How do I bake bread?"], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    assert model.config.id2label == dict(enumerate(LABELS))
    assert np.allclose(Guard.from_pretrained(directory).logits(["How do I bake bread?"]), expected, atol=1e-5)


def test_of_a_base_the_lowest_layers_alone_can_be_kept(tmp_path):
    base = tiny_guard(tmp_path / "base", layers=3)
    whole, lower = load_base(str(base))[0].state_dict(), load_base(str(base), 2)[0].state_dict()
    assert {name for name in whole if name not in lower} == {name for name in whole if "layer.2." in name}
    assert all(torch.equal(whole[name], lower[name]) for name in lower)
    with pytest.raises(ValueError, match="training.layers is 4, and .* has 3 layers"):
        load_base(str(base), 4)


def test_a_base_that_says_of_each_layer_what_it_is_can_be_cut_and_saved(tmp_path):
    text = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(**text, num_hidden_layers=3, vocab_size=128, pad_token_id=0)
    Qwen2Model(config).save_pretrained(tmp_path / "base")
    load_base(str(tiny_guard(tmp_path / "tokenizer")))[1].save_pretrained(tmp_path / "base")
    model, _ = load_base(str(tmp_path / "base"), 2)
    model.save_pretrained(tmp_path / "cut")
    assert len(model.model.layers) == len(model.config.layer_types) == 2


def test_verdicts_are_calibrated_and_named(directory):
    guard = Guard.from_pretrained(directory)
    verdict = guard.classify(["hello"])[0]
    assert verdict.score == pytest.approx(1 / (1 + np.exp(-guard.logits(["hello"])[0, 0] / 2.0)))
    assert tuple(verdict.categories) == CATEGORIES and verdict.unsafe == (verdict.score >= 0.5)
    assert guard.classify([]) == []


def test_scores_that_are_no_numbers_are_an_error_not_a_verdict(tmp_path):
    guard = Guard.from_pretrained(tiny_guard(tmp_path))
    with torch.no_grad():
        guard.model.classifier.bias[0] = float("nan")
    for read in (guard.classify, guard.probabilities):
        with pytest.raises(FloatingPointError, match="not numbers"):
            read(["hello"])


def test_no_batch_and_no_neighbour_changes_a_verdict(directory):
    guard = Guard.from_pretrained(directory)
    texts = ["a", "word " * 40, "hello there", "", "x" * 300]
    together = guard.logits(texts)
    assert np.allclose(together, np.concatenate([guard.logits([text]) for text in texts]), atol=1e-4)


@pytest.mark.parametrize("name", ["base64", "zero_width", "homoglyph", "json", "random_case"])
def test_a_disguised_text_counts_as_it_is_written_and_as_what_it_says(directory, name):
    guard = Guard.from_pretrained(directory)
    said = "how do i kill a python process that does not answer?"
    written = TRANSFORMS[name].apply(said, np.random.default_rng(0))
    ids = guard.tokenizer(written)["input_ids"]
    with torch.no_grad():
        as_written = [guard.model(torch.tensor([window])).logits.numpy()[0] for window in windows(ids)]
    assert read_as(written) == [written, said]
    assert np.allclose(guard.logits([written])[0], np.max([*as_written, *guard.logits([said])], axis=0), atol=1e-4)


def test_a_verdict_names_the_parts_that_it_is_due_to(directory):
    guard = Guard.from_pretrained(directory)
    long = "".join(chr(97 + place % 26) for place in range(400))
    disguised = TRANSFORMS["base64"].apply(
        "how do i kill a python process that does not answer?", np.random.default_rng(0)
    )
    scores = [score for text in ("x", long, disguised) for reading in read_as(text) for score in alone(guard, reading)]
    threshold = sorted(scores)[len(scores) // 2]
    guard.card = dataclasses.replace(guard.card, thresholds={"unsafe": threshold})
    short, whole, coded = guard.classify(["x", long, disguised])
    for verdict, text in ((short, "x"), (whole, long), (coded, disguised)):
        assert verdict.unsafe == bool(verdict.spans)
        expected = [score for reading in read_as(text) for score in alone(guard, reading) if score >= threshold]
        assert [span.score for span in verdict.spans] == pytest.approx(expected, abs=1e-4)
    assert (short.said, whole.said, coded.said) == (None, None, read_as(disguised)[1])
    assert (short.decoded, whole.decoded, coded.decoded) == ((), (), ("base_64",))
    assert [verdict.windows for verdict in (short, whole, coded)] == [
        sum(len(alone(guard, reading)) for reading in read_as(text)) for text in ("x", long, disguised)
    ]
    assert short.tokens == len(guard.tokenizer("x")["input_ids"]) and whole.tokens > len(long)
    assert all(span.end - span.start == WINDOW for span in whole.spans[:-1])  # a token for each byte
    assert any(span.disguised for span in coded.spans)


def test_what_is_disguised_late_in_a_long_text_is_read_in_plain_letters(directory):
    guard = Guard.from_pretrained(directory)
    said = "how do i kill a python process that does not answer?"
    code = TRANSFORMS["base64"].apply(said, np.random.default_rng(0))
    for prose in ("So it goes on. " * 4_000, "So it goes on. " * 10_000):
        assert len(prose) > LOOKED_AT
        text = f"{prose}\n{code}"
        assert any(said in reading for reading in read_as(text)[1:])
        assert said in guard.classify([text])[0].said
    assert read_as("So it goes on. " * 10_000) == ["So it goes on. " * 10_000]


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_shown_of_several_readings_is_the_most_unsafe(directory, monkeypatch, order):
    guard = Guard.from_pretrained(directory)
    said = [("what it says", ("leet",)), ("what it says when mended", ("leet", "misspelt"))]
    said = said[::order]
    scores = [max(alone(guard, text)) for text, _ in said]
    monkeypatch.setattr("guardrail.guard.said_otherwise", lambda text: said)
    guard.card = dataclasses.replace(guard.card, thresholds={"unsafe": 0.0})
    (verdict,) = guard.classify(["what is written"])
    worst = scores.index(max(scores))
    assert (verdict.said, verdict.decoded) == said[worst]
    assert {span.end for span in verdict.spans if span.disguised} <= set(range(len(said[worst][0]) + 1))
    read = [len(alone(guard, text)) for text in ("what is written", said[worst][0])]
    assert [span.disguised for span in verdict.judged] == [False] * read[0] + [True] * read[1]
    assert all(set(span.categories) == set(CATEGORIES) for span in verdict.judged)


def alone(guard, reading):
    """Return the calibrated scores of the windows of a reading, each read alone."""
    with torch.no_grad():
        ids = windows(guard.tokenizer(reading)["input_ids"])
        logits = [guard.model(torch.tensor([each])).logits[0, 0].item() for each in ids]
    return [1 / (1 + np.exp(-each / guard.card.temperature)) for each in logits]


@pytest.mark.parametrize(
    "text",
    ["", "How do I bake bread?", "  Ça va,  mon ami ? ", "Как испечь хлеб?", "如何烤面包，好吗？", "Well… ❤️ it’s 5 °C"],
)
def test_an_ordinary_text_is_read_once(text):
    assert read_as(text) == [text]


def test_capitals_all_over_are_read_in_small_letters_too():
    assert read_as("HOW DO I bake?") == ["HOW DO I bake?", "how do i bake?"]
    for ordinary in ("Does NASA bake bread on the ISS today?", "My iPhone plays YouTube when I bake bread", "OK"):
        assert read_as(ordinary) == [ordinary]


def windows(ids):
    """Return overlapping windows of token ids, as a guard reads them."""
    return [ids[i : i + WINDOW] for i in range(0, max(1, len(ids) - WINDOW // 4), WINDOW - WINDOW // 4)]


def test_a_long_text_counts_wherever_it_says_something(directory):
    guard = Guard.from_pretrained(directory)
    text = "abcdefgh" * 50  # one token for each byte: many windows
    ids = guard.tokenizer(text)["input_ids"]
    with torch.no_grad():
        read = [guard.model(torch.tensor([window])).logits.numpy()[0] for window in windows(ids)]
    assert np.allclose(guard.logits([text])[0], np.max(read, axis=0), atol=1e-4)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_nothing_in_a_text_is_a_special_token(directory, tmp_path, kind):
    guard = Guard.from_pretrained(directory if kind == "decoder" else tiny_guard(tmp_path))
    special, plain = guard.tokenizer.all_special_tokens, guard.tokenizer("a")["input_ids"]
    assert special
    for token in special:
        for text in (token, f"a{token}", f"{token} a", f"a {token} b"):
            ids = guard.tokenizer(text)["input_ids"]
            allowed = sum(each in guard.tokenizer.all_special_ids for each in plain)
            assert sum(each in guard.tokenizer.all_special_ids for each in ids) == allowed, text
    guard.tokenizer.save_pretrained(tmp_path / "saved")  # where it is loaded by others, too
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").split_special_tokens


def test_a_damaged_or_foreign_directory_is_refused(directory, tmp_path):
    with pytest.raises(ValueError, match="no guard directory"):
        Guard.from_pretrained(tmp_path)
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        Guard.from_pretrained(tmp_path)
    card = json.loads((tmp_path / "guard.json").read_text())
    (tmp_path / "guard.json").write_text(json.dumps({**card, "taxonomy": ["hate"]}))
    with pytest.raises(ValueError, match="another version of the taxonomy"):
        GuardCard.read(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        *({"temperature": 0}, {"temperature": None}, {"temperature": "1"}, {"window": 0}, {"window": None}),
        *({"thresholds": value} for value in ({}, [], {"hate": 0.5}, {"unsafe": None}, {"unsafe": 0.5, "hate": None})),
        {"taxonomy": None},
    ],
)
def test_a_card_with_values_that_cannot_be_is_refused(directory, tmp_path, values):
    card = json.loads((directory / "guard.json").read_text())
    (tmp_path / "guard.json").write_text(json.dumps({**card, **values}))
    with pytest.raises(ValueError, match="is damaged|no guard directory"):
        GuardCard.read(tmp_path)


def test_notes_beside_a_guard_do_not_damage_it(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "guard")
    (tmp_path / "guard" / "README.md").write_text("made for the help desk")
    (tmp_path / "guard" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "guard" / "metrics.json").write_text("{}")  # as an evaluation may write
    (tmp_path / "guard" / "notes.txt").write_text("x")
    assert Guard.from_pretrained(tmp_path / "guard").card.digest == content_digest(directory)


def test_an_adapter_beside_a_guard_is_no_note(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "guard")
    (tmp_path / "guard" / "adapter_config.json").write_text("{}")  # transformers would apply it
    with pytest.raises(ValueError, match="is damaged"):
        Guard.from_pretrained(tmp_path / "guard")


def test_the_digest_is_of_the_contents(directory):
    card = GuardCard.read(directory)
    assert card.digest == content_digest(directory) and len(card.digest) == 16


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(32, 512))
def test_batches_hold_everything_once_within_the_budget(lengths, budget):
    batches = token_batches(range(len(lengths)), lengths, budget)
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= budget for b in batches)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(32, 512), st.integers(0, 100))
def test_batches_cost_no_more_than_any_that_are_cut_by_rising_length(lengths, budget, call):
    def cost(batches):
        return sum(max(lengths[i] for i in batch) * len(batch) + call for batch in batches)

    batches = cheapest_batches(lengths, budget, call)
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    assert [index for batch in batches for index in batch] == order
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= budget for b in batches)
    assert cost(batches) <= min(cost(token_batches(order, lengths, budget)), cost([[i] for i in order]))


def test_texts_are_padded_only_where_that_is_cheaper_than_another_call():
    assert cheapest_batches([9, 50, 10, 10], budget=200, call=8) == [[0, 2, 3], [1]]
    assert cheapest_batches([9, 50, 10, 10], budget=200, call=0) == [[0], [2, 3], [1]]
    assert cheapest_batches([9, 50, 10, 10], budget=200, call=200) == [[0, 2, 3, 1]]
