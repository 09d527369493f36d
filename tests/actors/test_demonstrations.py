"""What a warm start shows: of which styles, about which goals, behind which prompt."""

import pytest
from transformers import AutoTokenizer

from actors.demonstrations import demonstration_rows, demonstrations
from actors.styles import STYLES, chosen
from guardrail.models import resolve
from guardrail.seeds import embedded_seeds


@pytest.fixture(scope="module")
def encode():
    tokenizer = AutoTokenizer.from_pretrained(resolve("bundled:smollm2-135m-instruct"))
    return lambda text: tokenizer(text)["input_ids"]


def test_there_are_many_of_every_rewording_style_and_none_of_others():
    shown = demonstrations(STYLES)
    wording = {style.name for style in STYLES if style.action != "frame" and not style.transforms}
    assert {each.style.name for each in shown} == wording and len(shown) > 700
    assert demonstrations(chosen(["fiction"])) == ()
    assert {each.style.name for each in demonstrations(chosen(["polite", "casual", "fiction"]))} == {"polite", "casual"}


def test_no_seed_is_the_goal_of_one():
    assert not {each.goal for each in demonstrations(STYLES)} & {seed["text"] for seed in embedded_seeds()}


def test_the_learner_reads_them_as_the_engine_would_be_asked(encode):
    shown = demonstrations(chosen(["polite", "casual"]))[:7]
    rows = demonstration_rows(shown, encode, per_row=2)
    assert sum(int(row.segments.max()) for row in rows) == 7 and all(row.segments.max() <= 2 for row in rows)
    read = [
        [*row.input_ids[row.segments == 0].tolist(), *row.input_ids[row.segments == k].tolist()]
        for row in rows
        for k in range(1, int(row.segments.max()) + 1)
    ]
    asked = [encode(each.style.prompt(each.goal)) + encode(f" {each.said}\n") for each in shown]
    assert sorted(read) == sorted(asked)
