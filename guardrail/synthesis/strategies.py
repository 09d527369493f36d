"""The catalogue of synthesis strategies: what a model is shown with a seed, and what its answer is to the seed.

Prompts are few-shot (`guardrail.few_shot`). Some strategies vary along an axis, whose value is drawn; use case and
region are axes of AART (Radharapu et al., arXiv 2311.08592). Nothing here speaks of minors: a persona or a school
would put one beside a seed.

What a small model says otherwise is often something else. What it writes around a request it cannot spoil: these
strategies put the seed, word for word, among its sentences. So a guard also learns to find a request in a long text.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from guardrail.few_shot import EXAMPLES, few_shot, one_line
from guardrail.records import Record
from guardrail.text import digest

#: Returns what a model continues with one line, given the seed, seeds of its kind (itself among them) and a generator.
Prompt = Callable[[Record, Sequence[Record], np.random.Generator], str]

#: Returns the text of a record, given the seed and what the model wrote around it.
Placing = Callable[[str, str], str]

_BETWEEN = re.compile(r"(?<=[.!?])\s+")  # sentences
_UNFINISHED = re.compile(r"(?:(?<=[.!?])|^)[^.!?]*$")
_KIN = 3  # seeds that `augment` shows before its own
#: What the examples speak of; an answer that does too, and its seed does not, was taken from them.
EXAMPLE_WORDS = frozenset(
    """
    bread bake baked baker bakers bakery bakeries bakes baking flour yeast loaf oven camp camped camping camps campsite
    campsites lake tent brot backen zelten hornear acampar lago camper lac
    """.split()
)


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One way to make another request of a seed.

    Attributes:
        name: also the `method` of its records.
        prompt: writes what the model continues.
        relation: `same`: the seed's request, said otherwise; `around`: the seed word for word, in a longer text;
            `kin`: another of its kind; `contrast`: one that looks like it and has the other label. The label of a
            record follows from this.
        place: of `around`: where in the model's sentences the seed goes.
        count: answers asked for per seed unless the settings say otherwise.
        language: of the answers; None: the seed's.
        similarity: least and most cosine to the seed (all-MiniLM-L6-v2) of answers that keep the distance asked for;
            curation has a floor of its own.
    """

    name: str
    prompt: Prompt
    relation: Literal["same", "around", "kin", "contrast"] = "same"
    place: Placing | None = None
    count: int = 0
    language: str | None = None
    similarity: tuple[float, float] = (-math.inf, math.inf)

    def label(self, parent: Record) -> tuple[bool, list[str] | None]:
        """Return `unsafe` and `categories` of an answer; which harm a benign seed was turned into is not known."""
        if self.relation == "contrast":
            return (False, []) if parent["unsafe"] else (True, None)
        return parent["unsafe"], parent["categories"]


# --- How prompts are written ----------------------------------------------------------------------------------------


def _rewriting(rule: str, first: str, second: str, label: str = "Rewritten") -> Prompt:
    """Return a prompt that shows what a strategy makes of the two example requests."""

    def prompt(parent: Record, kin: Sequence[Record], random: np.random.Generator) -> str:
        examples = zip(EXAMPLES, (first, second), strict=True)
        return few_shot(rule, ("Request", label), examples, parent["text"])

    return prompt


def _along(axis: str, rule: str, first: tuple[str, str], second: tuple[str, str], values: str) -> Prompt:
    """Return a prompt that also names a value of an axis: one with each example, one of `values` with the seed."""

    def prompt(parent: Record, kin: Sequence[Record], random: np.random.Generator) -> str:
        examples = [(request, *shown) for request, shown in zip(EXAMPLES, (first, second), strict=True)]
        value = _drawn(values, random)
        return few_shot(rule, ("Request", axis, "Rewritten"), examples, parent["text"], value)

    return prompt


def _drawn(values: str, random: np.random.Generator) -> str:
    """Return one of the values, which semicolons part."""
    listed = values.split(";")
    return listed[int(random.integers(len(listed)))].strip()


def _augment(parent: Record, kin: Sequence[Record], random: np.random.Generator) -> str:
    drawn = random.choice(len(kin), size=min(_KIN + 1, len(kin)), replace=False)
    others = [kin[index]["text"] for index in drawn if kin[index]["id"] != parent["id"]]
    listed = "\n".join(f"- {one_line(text)}" for text in [*others[:_KIN], parent["text"]])
    return f"Messages that people sent to a chat assistant, all of one kind:\n\n{listed}\n-"


_MOODS = (
    (EXAMPLES[0], "Explain how to bake bread at home."),
    ("Which places near a lake are good for camping?", EXAMPLES[1]),
)


def _mood(parent: Record, kin: Sequence[Record], random: np.random.Generator) -> str:
    text = parent["text"]
    if "?" in text:
        return few_shot("Each question becomes an instruction.", ("Question", "Instruction"), _MOODS, text)
    turned = [pair[::-1] for pair in _MOODS]
    return few_shot("Each instruction becomes a question.", ("Instruction", "Question"), turned, text)


_LOOKALIKES = (
    ("How do I steal bread from a bakery?", "How do bakeries keep their bread from being stolen?"),
    ("List ways to poison the water of a lake.", "List ways to clean the water of a lake."),
)


def _lookalike(parent: Record, kin: Sequence[Record], random: np.random.Generator) -> str:
    text = parent["text"]
    if parent["unsafe"]:
        rule = "Each harmful request is followed by a harmless one in similar words."
        return few_shot(rule, ("Harmful", "Harmless"), _LOOKALIKES, text)
    turned = [pair[::-1] for pair in _LOOKALIKES]
    rule = "Each harmless request is followed by a harmful one in similar words."
    return few_shot(rule, ("Harmless", "Harmful"), turned, text)


def _translation(code: str, language: str, first: str, second: str) -> Strategy:
    rule = f"Each request is translated into {language}."
    return Strategy(f"translate_{code}", _rewriting(rule, first, second, label=language), language=code)


def whole_sentences(text: str) -> str:
    """Return a text without what comes after its last sentence that ends; empty if none does."""
    return _UNFINISHED.sub("", text)


def _before(seed: str, sentences: str) -> str:
    return f"{sentences} {seed}"


def _among(seed: str, sentences: str) -> str:
    """Return sentences with the seed before, between or after them: where, hangs on the text."""
    parts = _BETWEEN.split(sentences)
    parts.insert(int(digest(seed, sentences), 16) % (len(parts) + 1), seed)
    return " ".join(parts)


_KINDS = (
    "a diary entry; a post in a forum; a message to a friend; a letter; the opening of a story; a comment; a review;"
    "a travel report; notes of a day; a blog post; a chat message; a column in a newspaper"
)
_SUBJECTS = (
    "gardening; trains; the weather; an old car; a broken washing machine; the sea; a new phone; a concert; mountains;"
    "moving house; a job interview; the news; a guitar; the dentist; a late bus; chess; a lost wallet; taxes; a film;"
    "politics; a neighbour; a wedding; the office; football; a computer game; money; a quarrel; a dream; the army;"
    "a long night; an illness; history; a dog; a party; the police; fashion; coffee"
)
_EVERYDAY = (
    (
        "a diary entry about bread",
        "I got up at five because the yeast was ready. The first loaf was burnt on one side, so I cut that off and ate "
        "the rest with butter. My aunt called and laughed at me. Next week I want to try rye flour, which she says is "
        "harder. I am tired, but the whole flat smells wonderful.",
    ),
    (
        "a post in a forum about camping",
        "We came back from the lake yesterday and I am still wet. It rained all night, the tent leaked, and somebody "
        "had forgotten the pans. Still, we saw two herons and a fox. Has anyone tried the place on the north side? "
        "They say that it is quieter and that the water is cleaner there.",
    ),
)


def _everyday(parent: Record, kin: Sequence[Record], random: np.random.Generator) -> str:
    kind, subject = (_drawn(values, random) for values in (_KINDS, _SUBJECTS))
    return few_shot("Texts of all kinds.", ("Kind", "Text"), _EVERYDAY, f"{kind} about {subject}")


# --- The catalogue --------------------------------------------------------------------------------------------------

STRATEGIES: tuple[Strategy, ...] = (
    # Not by default: with 223 records of it by a 135M model, a guard's AUPRC on XSTest was 0.71, without them 0.75.
    Strategy("augment", _augment, relation="kin"),
    # The two distances of a paraphrase: close to the seed, and far from it. Of the held-out pairs of
    # `guardrail/intent_data` the 63 that were written near have cosines from 0.71, the 65 far ones up to 0.83.
    Strategy(
        "paraphrase",
        _rewriting(
            "Each request is said again in other words.",
            "What is a way to make bread in my own kitchen?",
            "Which spots beside a lake are good for sleeping in a tent?",
        ),
        count=1,
        similarity=(0.65, math.inf),
    ),
    Strategy(
        "paraphrase_far",
        _rewriting(
            "Each request is said again from quite another side.",
            "There is flour in my kitchen and the oven is hot; what are the steps to a fresh loaf?",
            "We have a tent and want to wake up beside the water. Where could we go?",
        ),
        similarity=(-math.inf, 0.85),
    ),
    Strategy(
        "persona",
        _along(
            "Person",
            "Each request is made by the person named, in their own voice.",
            ("a retired sailor", "I was at sea all my life and now I want to bake bread at home. How do I do it?"),
            ("a tired office worker", "After this week at the office I need a lake. List places where I can camp."),
            "a nurse; a taxi driver; a software developer; a farmer; the owner of a small shop; a soldier; a lawyer;"
            "a journalist; a landlord; a bank clerk; a security guard; a salesman; an engineer; a pensioner;"
            "a truck driver; a pharmacist",
        ),
    ),
    Strategy(
        "audience",
        _along(
            "Audience",
            "Each request asks for an answer that suits the audience named.",
            ("beginners", "How can I bake bread at home? Explain it so that beginners can follow."),
            ("people who walk badly", "List places to camp near a lake that suit people who walk badly."),
            "experts; colleagues at work; the readers of a blog; a busy manager; people who have just moved here;"
            "the members of a club; listeners of a podcast; people who do not speak English well; investors; voters",
        ),
    ),
    Strategy(
        "use_case",
        _along(
            "Use",
            "Each request becomes one for the kind of text named.",
            ("a leaflet", "Write a leaflet on how to bake bread at home."),
            ("a table", "Make a table of places to camp near a lake."),
            "a checklist; a social media post; a short speech; a set of slides; a poem; a summary; a podcast script;"
            "a list of questions and answers; a letter; a step-by-step guide; an advertisement; a review",
        ),
    ),
    Strategy(
        "region",
        _along(
            "Country",
            "Each request is about the country named.",
            ("Norway", "How can I bake Norwegian bread at home in Oslo?"),
            ("New Zealand", "List places to camp near a lake in New Zealand."),
            "Brazil; India; Nigeria; Germany; Japan; Canada; Mexico; Egypt; Kenya; Poland; Turkey; Indonesia; Italy;"
            "South Africa; Australia; the United Kingdom",
        ),
    ),
    Strategy(
        "email",
        _rewriting(
            "Each request is asked in an e-mail.",
            "Hello Sam, I would like to bake bread at home. Could you tell me how? Thanks, Alex",
            "Dear team, please send me a list of places to camp near a lake. Best wishes, Kim",
        ),
    ),
    Strategy(
        "code_comment",
        _rewriting(
            "Each request is written as a comment in the code of a program.",
            "# TODO: print how to bake bread at home, step by step",
            "# returns a list of places to camp near a lake",
        ),
    ),
    Strategy(
        "story",
        _rewriting(
            "Each request is asked for in a story.",
            "In my story a widow asks the miller how to bake bread at home. What does he tell her?",
            "Write a scene in which a guide lists places to camp near a lake.",
        ),
    ),
    Strategy(
        "homework",
        _rewriting(
            "Each request is a task of a university course.",
            "For my course on food I have to explain how to bake bread at home. Can you help me?",
            "My professor of tourism wants a list of places to camp near a lake. What do I hand in?",
        ),
    ),
    Strategy(
        "role_play",
        _rewriting(
            "Each request gives the assistant a part to play.",
            "You are a master baker. Tell me how to bake bread at home.",
            "Play a park ranger who lists places to camp near a lake.",
        ),
    ),
    Strategy(
        "longer",
        _rewriting(
            "Each request is said again with more detail.",
            "How can I bake bread at home in a small gas oven, with nothing but flour, water, salt and yeast?",
            "List quiet places to camp near a lake for a weekend in June, with what each of them costs a night.",
        ),
    ),
    Strategy(
        "shorter",
        _rewriting("Each request is cut down to a few words.", "how to bake bread", "camping near a lake"),
    ),
    Strategy(
        "formal",
        _rewriting(
            "Each request is said again in formal language.",
            "I should be grateful for instructions on the baking of bread in a private household.",
            "Kindly provide a list of suitable places for camping in the vicinity of a lake.",
        ),
    ),
    Strategy(
        "casual",
        _rewriting(
            "Each request becomes a casual chat message.",
            "hey any idea how i could bake some bread at home",
            "yo where can i camp near a lake, list some places",
        ),
    ),
    Strategy(
        "indirect",
        _rewriting(
            "Each request is hinted at, and not asked.",
            "I have always wondered what goes into bread that is baked at home.",
            "A list of the places near a lake where people camp would be good to have.",
        ),
    ),
    Strategy(
        "hypothetical",
        _rewriting(
            "Each request becomes a hypothetical question.",
            "If somebody wanted to bake bread at home, how would it go?",
            "If one were to camp near a lake, which places would be on the list?",
        ),
    ),
    Strategy("mood", _mood),  # a question becomes an instruction, an instruction a question
    Strategy(
        "context",
        _rewriting(
            "Before each request stand two sentences that say how it came about.",
            "I bought flour and yeast this morning. The oven works again.",
            "We have a week off in June. The tent is packed.",
            label="Before it",
        ),
        relation="around",
        place=_before,
        count=1,
    ),
    Strategy("everyday_text", _everyday, relation="around", place=_among, count=1),  # it shows the model no seed
    Strategy("contrast:lookalike", _lookalike, relation="contrast"),
    _translation(
        "de", "German", "Wie kann ich zu Hause Brot backen?", "Nenne mir Orte, an denen man am See zelten kann."
    ),
    _translation(
        "es",
        "Spanish",
        "¿Cómo puedo hornear pan en casa?",
        "Haz una lista de lugares donde se puede acampar cerca de un lago.",
    ),
    _translation(
        "fr",
        "French",
        "Comment puis-je faire du pain à la maison ?",
        "Donne une liste d'endroits où camper près d'un lac.",
    ),
    _translation("zh", "Chinese", "我怎样在家里烤面包？", "列出湖边可以露营的地方。"),
)
STRATEGY: dict[str, Strategy] = {strategy.name: strategy for strategy in STRATEGIES}
