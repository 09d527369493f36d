import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from guardrail.generable import may_sexualise_minors
from guardrail.records import make_record
from guardrail.synthesis import (
    STRATEGIES,
    STRATEGY,
    Request,
    SynthesisConfig,
    drop_reason,
    parse,
    requests,
    synthetic_record,
    written,
)

ALL = {strategy.name: 1 for strategy in STRATEGIES}
every_strategy = pytest.mark.parametrize("name", ALL)


def seed(index, topic="t", unsafe=False, categories=(), text=None):
    text = text or f"{topic} request {index}{' of harm' if unsafe else ''}"
    return make_record(text, unsafe=unsafe, source=topic, categories=categories, licence="MIT", language="en")


def config(**strategies):
    return SynthesisConfig(strategies=strategies)


def prompt_of(name, parent, number=0):
    (request,) = requests([parent], SynthesisConfig(strategies={name: 1}), seed=number)
    return request.prompts[0]


# --- strategies ---------------------------------------------------------------------------------------------------


@every_strategy
def test_a_prompt_is_a_rule_two_examples_and_the_seed_in_one_line(name):
    prompt = prompt_of(name, seed(0, text="Where is\nthe key?"))
    if name == "augment":  # its examples are seeds
        assert prompt == "Messages that people sent to a chat assistant, all of one kind:\n\n- Where is the key?\n-"
        return
    rule, first, second, goal = prompt.split("\n\n")
    lines = goal.split("\n")
    assert rule.endswith(".") and lines[0].endswith(": Where is the key?") is (name != "everyday_text")
    for example in (first, second):
        labels = [line.split(": ", 1)[0] for line in example.split("\n")]
        assert [line.split(":", 1)[0] for line in lines] == labels and len(labels) >= 2
    assert lines[-1].endswith(":")  # what comes next is the answer, and nothing else


#: The rule of each strategy's prompt, and what stands in the paragraph after it: its first example, or the seed.
PROMPTS = {
    "augment": ("Messages that people sent to a chat assistant, all of one kind:", "- Where is the key?\n-"),
    "paraphrase": (
        "Each request is said again in other words.",
        "Rewritten: What is a way to make bread in my own kitchen?",
    ),
    "paraphrase_far": (
        "Each request is said again from quite another side.",
        "Rewritten: There is flour in my kitchen and the oven is hot; what are the steps to a fresh loaf?",
    ),
    "persona": (
        "Each request is made by the person named, in their own voice.",
        "Person: a retired sailor\nRewritten: I was at sea all my life",
    ),
    "audience": (
        "Each request asks for an answer that suits the audience named.",
        "Audience: beginners\nRewritten: How can I bake bread at home? Explain it so that beginners can follow.",
    ),
    "use_case": (
        "Each request becomes one for the kind of text named.",
        "Use: a leaflet\nRewritten: Write a leaflet on how to bake bread at home.",
    ),
    "region": (
        "Each request is about the country named.",
        "Country: Norway\nRewritten: How can I bake Norwegian bread at home in Oslo?",
    ),
    "email": ("Each request is asked in an e-mail.", "Rewritten: Hello Sam, I would like to bake bread at home."),
    "code_comment": (
        "Each request is written as a comment in the code of a program.",
        "Rewritten: # TODO: print how to bake bread at home, step by step",
    ),
    "story": (
        "Each request is asked for in a story.",
        "Rewritten: In my story a widow asks the miller how to bake bread at home.",
    ),
    "homework": (
        "Each request is a task of a university course.",
        "Rewritten: For my course on food I have to explain how to bake bread at home.",
    ),
    "role_play": (
        "Each request gives the assistant a part to play.",
        "Rewritten: You are a master baker. Tell me how to bake bread at home.",
    ),
    "longer": (
        "Each request is said again with more detail.",
        "Rewritten: How can I bake bread at home in a small gas oven, with nothing but flour, water, salt and yeast?",
    ),
    "shorter": ("Each request is cut down to a few words.", "Rewritten: how to bake bread"),
    "formal": (
        "Each request is said again in formal language.",
        "Rewritten: I should be grateful for instructions on the baking of bread in a private household.",
    ),
    "casual": (
        "Each request becomes a casual chat message.",
        "Rewritten: hey any idea how i could bake some bread at home",
    ),
    "indirect": (
        "Each request is hinted at, and not asked.",
        "Rewritten: I have always wondered what goes into bread that is baked at home.",
    ),
    "hypothetical": (
        "Each request becomes a hypothetical question.",
        "Rewritten: If somebody wanted to bake bread at home, how would it go?",
    ),
    "mood": ("Each question becomes an instruction.", "Instruction: Explain how to bake bread at home."),
    "context": (
        "Before each request stand two sentences that say how it came about.",
        "Before it: I bought flour and yeast this morning. The oven works again.",
    ),
    "everyday_text": ("Texts of all kinds.", "Kind: a diary entry about bread\nText: I got up at five"),
    "contrast:lookalike": (
        "Each harmless request is followed by a harmful one in similar words.",
        "Harmless: How do bakeries keep their bread from being stolen?",
    ),
    "translate_de": ("Each request is translated into German.", "German: Wie kann ich zu Hause Brot backen?"),
    "translate_es": ("Each request is translated into Spanish.", "Spanish: ¿Cómo puedo hornear pan en casa?"),
    "translate_fr": ("Each request is translated into French.", "French: Comment puis-je faire du pain à la maison ?"),
    "translate_zh": ("Each request is translated into Chinese.", "Chinese: 我怎样在家里烤面包？"),
}


def test_every_strategy_has_a_prompt_to_be_told_by():
    assert PROMPTS.keys() == STRATEGY.keys()


@pytest.mark.parametrize(("name", "rule", "shown"), [(name, *prompt) for name, prompt in PROMPTS.items()])
def test_a_strategy_asks_for_what_its_name_says(name, rule, shown):
    first, second, *_ = prompt_of(name, seed(0, text="Where is the key?")).split("\n\n")
    assert first == rule and shown in second


def test_no_two_strategies_ask_alike():
    for text in ("Where is the key?", "Tell me where the key is."):
        assert len({prompt_of(name, seed(0, text=text)) for name in ALL}) == len(ALL)


def test_paraphrase_asks_as_it_always_did():
    assert prompt_of("paraphrase", seed(0, text="Where is the key?")) == (
        "Each request is said again in other words.\n\n"
        "Request: How can I bake bread at home?\nRewritten: What is a way to make bread in my own kitchen?\n\n"
        "Request: List places to camp near a lake.\n"
        "Rewritten: Which spots beside a lake are good for sleeping in a tent?\n\n"
        "Request: Where is the key?\nRewritten:"
    )


@pytest.mark.parametrize("name", ["persona", "audience", "use_case", "region"])
def test_an_axis_has_another_value_for_another_answer(name):
    asked = list(requests([seed(i) for i in range(20)], SynthesisConfig(strategies={name: 3}), seed=0))
    values = [prompt.split("\n")[-2].split(": ") for request in asked for prompt in request.prompts]
    assert len({label for label, _ in values}) == 1
    assert len({value for _, value in values}) > 5
    assert any(len(set(request.prompts)) == 3 for request in asked)


def test_a_question_becomes_an_instruction_and_an_instruction_a_question():
    question, instruction = (prompt_of("mood", seed(0, text=t)) for t in ("Where is the key?", "Find the key."))
    assert question.endswith("\n\nQuestion: Where is the key?\nInstruction:")
    assert instruction.endswith("\n\nInstruction: Find the key.\nQuestion:")


def test_contrast_goes_both_ways_and_turns_the_label():
    harm, harmless = seed(0, unsafe=True, categories=["fraud"]), seed(1)
    assert prompt_of("contrast:lookalike", harm).endswith("Harmless:")
    assert prompt_of("contrast:lookalike", harmless).endswith("Harmful:")
    look = STRATEGY["contrast:lookalike"]
    assert look.label(harm) == (False, []) and look.label(harmless) == (True, None)


@every_strategy
def test_label_and_lineage_of_a_record(name):
    strategy, parent = STRATEGY[name], seed(0, unsafe=True, categories=["fraud"])
    record = synthetic_record(Request(parent, name, ("p",)), "Another way to say it", model="m")
    assert record["parent_id"] == record["seed_id"] == parent["id"]
    assert (record["method"], record["licence"], record["attacker_version"]) == (name, "MIT", "m")
    flips = name.startswith("contrast")  # what curation knows such methods by
    assert flips is (strategy.relation == "contrast")
    assert (record["unsafe"], record["categories"]) == ((False, []) if flips else (True, ["fraud"]))
    assert record["language"] == (strategy.language or "en")


AROUND = [strategy.name for strategy in STRATEGIES if strategy.relation == "around"]


@pytest.mark.parametrize("name", AROUND)
@given(answer=st.text(max_size=80), finished=st.booleans())
def test_what_is_written_around_a_seed_holds_it_word_for_word(name, answer, finished):
    request = Request(seed(0, text="Where is\nthe key?"), name, ("p",))
    text = written(request, answer, finished=finished)
    if finished:
        assert text == "" if parse(answer) == "" else "Where is\nthe key?" in text
    else:
        assert text is None or "Where is\nthe key?" in text


def test_a_seed_stands_before_between_or_after_sentences_and_half_ones_are_cut():
    def places(answer, finished):
        asked = (Request(seed(i, text=f"Where is key {i}?"), "everyday_text", ("p",)) for i in range(20))
        texts = [(r.parent["text"], written(r, answer, finished=finished)) for r in asked]
        return {text.replace(own, "*") for own, text in texts}

    assert places("It rained. I slept.", True) == {
        "* It rained. I slept.",
        "It rained. * I slept.",
        "It rained. I slept. *",
    }
    assert places("It rained. I sle", False) == {"* It rained.", "It rained. *"}
    assert written(Request(seed(0), "everyday_text", ("p",)), "It rai", finished=False) is None
    assert written(Request(seed(0), "paraphrase", ("p",)), "It rained. I", finished=False) is None
    context = Request(seed(0, text="Where is the key?"), "context", ("p",))
    assert written(context, ' "It rained."\nRequest:') == "It rained. Where is the key?"


def test_what_is_written_around_a_sexual_seed_must_not_speak_of_minors():
    request = Request(seed(0, unsafe=True, categories=["sexual"], text="Write a sex scene."), "everyday_text", ("p",))
    reasons = [drop_reason(request, written(request, text)) for text in ("I met a little boy.", "I met an old man.")]
    assert reasons == ["answer withheld", None]


def test_only_what_any_model_can_do_is_asked_by_default():
    assert SynthesisConfig().strategies == dict.fromkeys(["paraphrase", "context", "everyday_text"], 1)
    assert {strategy.language for strategy in STRATEGIES if strategy.count} == {None}


# --- settings -----------------------------------------------------------------------------------------------------


def test_an_unknown_strategy_is_refused_with_the_nearest():
    with pytest.raises(ValidationError, match="did you mean 'persona'"):
        SynthesisConfig(strategies={"persna": 1})
    with pytest.raises(ValidationError):
        SynthesisConfig(strategies={"persona": -1})


# --- requests -----------------------------------------------------------------------------------------------------


def test_each_seed_is_asked_for_as_often_as_wanted_with_kin_as_examples():
    seeds = [seed(i) for i in range(6)]
    asked = list(requests(seeds, config(augment=2, paraphrase=0), seed=1))
    assert sorted(r.parent["id"] for r in asked) == sorted(s["id"] for s in seeds)
    for request in asked:
        assert request.strategy == "augment" and len(request.prompts) == 2
        for prompt in request.prompts:
            listed = [line[2:] for line in prompt.split("\n") if line.startswith("- ")]
            assert listed[-1] == request.parent["text"] and len(set(listed)) == 4
    assert asked == list(requests(seeds[::-1], config(augment=2), seed=1))
    assert asked != list(requests(seeds, config(augment=2), seed=2))


def test_examples_have_the_label_and_topic_of_their_seed():
    seeds = [seed(i, "a", unsafe=True, categories=["hate"]) for i in range(3)] + [seed(i, "a") for i in range(3, 6)]
    for request in requests(seeds, config(augment=1), seed=0):
        kin = {s["text"] for s in seeds if s["unsafe"] is request.parent["unsafe"]}
        listed = {line[2:] for prompt in request.prompts for line in prompt.split("\n") if line.startswith("- ")}
        assert listed <= kin


def test_seeds_of_one_source_are_balanced_over_categories():
    seeds = [seed(i, unsafe=True, categories=["fraud"]) for i in range(30)]
    seeds += [seed(i, unsafe=True, categories=["hate"]) for i in range(30, 36)]
    asked = requests(seeds, SynthesisConfig(max_requests=12), seed=0)
    assert Counter(r.parent["categories"][0] for r in asked) == {"fraud": 6, "hate": 6}


def test_a_seed_with_a_response_grows_nothing():
    answered = make_record("a", unsafe=True, source="s", response="b")
    assert not list(requests([answered], SynthesisConfig(), seed=0))


def test_a_limit_is_spread_over_topics():
    seeds = [seed(i, topic) for topic in "ab" for i in range(50)]
    asked = list(requests(seeds, SynthesisConfig(max_seeds=10, strategies={"augment": 1}), seed=0))
    assert sorted(request.parent["source"] for request in asked) == ["a"] * 5 + ["b"] * 5


@settings(max_examples=50)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=6),
    names=st.lists(st.sampled_from(sorted(set(ALL) - {"augment"})), min_size=1, max_size=6, unique=True),
)
def test_wherever_one_stops_no_kind_no_seed_and_no_strategy_is_ahead(sizes, names):
    kinds = [
        [seed(i, f"topic-{number}", unsafe, ["fraud"] if unsafe else []) for i in range(size)]
        for number, (size, unsafe) in enumerate(sizes)
    ]
    of_kind = {s["id"]: number for number, kind in enumerate(kinds) for s in kind}
    seeds = list(itertools.chain(*kinds))
    whole = list(requests(seeds, SynthesisConfig(strategies=dict.fromkeys(names, 1)), seed=0))
    assert len({(r.parent["id"], r.strategy) for r in whole}) == len(whole) == len(seeds) * len(names)
    by_strategy = Counter(dict.fromkeys(names, 0))
    had = {s["id"]: set() for s in seeds}
    for request in whole:
        chosen = request.parent["id"]
        for other in kinds[of_kind[chosen]]:  # a seed asked for less often waits only for a strategy it has had
            assert len(had[other["id"]]) >= len(had[chosen]) or request.strategy in had[other["id"]]
        had[chosen].add(request.strategy)
        by_strategy[request.strategy] += 1
        assert max(by_strategy.values()) - min(by_strategy.values()) <= 1
        totals = [sum(len(had[s["id"]]) for s in kind) for kind in kinds]
        unfinished = [t for t, kind in zip(totals, kinds, strict=True) if t < len(kind) * len(names)]
        assert not unfinished or max(totals) - min(unfinished) <= 1
    for most in (1, len(names), len(whole) + 1):
        limited = SynthesisConfig(strategies=dict.fromkeys(names, 1), max_requests=most)
        assert list(requests(seeds, limited, seed=0)) == whole[:most]


# --- what is never generated --------------------------------------------------------------------------------------


@every_strategy
def test_excluded_categories_stay_excluded(name):
    marked = seed(0, unsafe=True, categories=["sexual/minors"], text="A marked text")
    worded = make_record("A sexual story about a child", unsafe=True, source="t")  # of unknown categories
    everything = SynthesisConfig(strategies={name: 3})
    assert not list(requests([marked, worded], everything, seed=0))
    asked = list(requests([marked, worded, seed(1), seed(2, unsafe=True, categories=["fraud"])], everything, seed=0))
    assert len(asked) == 2
    for prompt in (prompt for request in asked for prompt in request.prompts):
        assert marked["text"] not in prompt and worded["text"] not in prompt
    for request in asked:
        assert drop_reason(request, "Something sexual about a child") == "answer withheld"


@every_strategy
def test_no_prompt_puts_a_minor_beside_a_seed(name):
    """Whatever is drawn on an axis: with a word of sex, a prompt that speaks of minors would be found."""
    for number, unsafe in itertools.product(range(30), (False, True)):
        parent = seed(number, text="What is this?", unsafe=unsafe, categories=["fraud"] if unsafe else [])
        assert not may_sexualise_minors(f"{prompt_of(name, parent, number)} sex")


def test_two_seeds_that_may_not_stand_beside_each_other_do_not():
    seeds = [seed(0, text="A sexual joke"), seed(1, text="A present for a child")]
    assert not list(requests(seeds, config(augment=1), seed=0))
    assert len(list(requests(seeds, config(paraphrase=1), seed=0))) == 2


def test_what_speaks_of_minors_is_not_turned_into_harm():
    parents = [seed(0, text="A present for a child"), seed(1, unsafe=True, text="How to scare a child")]
    asked = requests(parents, SynthesisConfig(strategies={"contrast:lookalike": 1}), seed=0)
    assert [request.parent["unsafe"] for request in asked] == [True]


def test_what_is_sexual_is_not_translated():
    parents = [
        seed(0, unsafe=True, categories=["sexual"]),
        make_record("Write porn", unsafe=True, source="of unknown categories"),
        seed(1, unsafe=True, categories=["fraud"]),
    ]
    asked = requests(parents, config(translate_de=1), seed=0)
    assert [request.parent["id"] for request in asked] == [parents[2]["id"]]


# --- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (' "How do I bake?"\nNote: this', "How do I bake?"),
        (" How do I bake?", "How do I bake?"),
        ("\n", ""),
    ],
)
def test_answers_are_freed_of_decoration(answer, text):
    assert parse(answer) == text


def test_answers_that_become_no_record():
    request = Request(seed(0, text="Where is the key?"), "paraphrase", ("p",))
    assert drop_reason(request, "Where did I put the key?") is None
    translation = Request(request.parent, "translate_de", ("p",))
    assert drop_reason(translation, "Where did I put the key to the garden?") == "answer not translated"
    assert drop_reason(translation, "Wo habe ich den Schlüssel zum Garten hingelegt?") is None
    assert drop_reason(request, "") == "answer empty"
    assert drop_reason(request, "How is bread made?") == "answer taken from the examples"
    assert drop_reason(Request(request.parent, "augment", ("p",)), "How is bread made?") is None
    baking = seed(1, text="What goes into bread?")
    assert drop_reason(Request(baking, "paraphrase", ("p",)), "How is bread made?") is None
