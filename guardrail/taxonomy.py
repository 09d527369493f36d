"""Harm categories, and how other taxonomies map onto them.

The canonical list is the 13 keys of the OpenAI moderation API plus six that prompts to language models need.
Everything that has labels (records, the guard's outputs, policies, metrics) uses these keys in this order.
"""

from collections.abc import Iterable, Mapping

OPENAI_CATEGORIES: tuple[str, ...] = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
CATEGORIES: tuple[str, ...] = (
    *OPENAI_CATEGORIES,
    "privacy",
    "misinformation",
    "fraud",
    "cybercrime",
    "regulated_advice",
    "jailbreak",
)
#: The label over all categories: what a guard decides by.
UNSAFE = "unsafe"
#: What a guard's outputs stand for, in their order.
LABELS: tuple[str, ...] = (UNSAFE, *CATEGORIES)
CATEGORY_INDEX: Mapping[str, int] = {key: index for index, key in enumerate(CATEGORIES)}

#: Classified, never generated: no synthesis prompt and no attack is ever built from a record that has one of these.
NEVER_GENERATED: frozenset[str] = frozenset({"sexual/minors"})

#: A sub-category implies its parent in the OpenAI taxonomy ("hate/threatening" is also "hate").
PARENT: Mapping[str, str] = {
    "harassment/threatening": "harassment",
    "hate/threatening": "hate",
    "illicit/violent": "illicit",
    "self-harm/intent": "self-harm",
    "self-harm/instructions": "self-harm",
    "sexual/minors": "sexual",
    "violence/graphic": "violence",
}

#: Where a category of ours answers under one of OpenAI's 13 keys; absent means OpenAI's taxonomy has no place for it.
TO_OPENAI: Mapping[str, str] = {
    **{key: key for key in OPENAI_CATEGORIES},
    "fraud": "illicit",
    "cybercrime": "illicit",
    "privacy": "illicit",
}

#: MLCommons AILuminate hazards S1 to S14 (S1 violent crimes .. S14 code-interpreter abuse).
FROM_MLCOMMONS: Mapping[str, tuple[str, ...]] = {
    "S1": ("violence", "illicit", "illicit/violent"),
    "S2": ("illicit",),
    "S3": ("sexual", "illicit"),
    "S4": ("sexual", "sexual/minors"),
    "S5": ("misinformation", "harassment"),
    "S6": ("regulated_advice",),
    "S7": ("privacy",),
    "S8": ("illicit",),
    "S9": ("illicit", "illicit/violent"),
    "S10": ("hate",),
    "S11": ("self-harm",),
    "S12": ("sexual",),
    "S13": ("misinformation",),
    "S14": ("cybercrime", "illicit"),
}


def with_parents(categories: Iterable[str]) -> list[str]:
    """Return the categories and their parents, in canonical order, each once.

    Raises:
        ValueError: a key is not a category; the message names the nearest one.
    """
    found = set(categories)
    for key in found:
        check_category(key)
    found |= {PARENT[key] for key in found if key in PARENT}
    return [key for key in CATEGORIES if key in found]


def check_category(key: str) -> None:
    """Raise ValueError, naming the nearest known key, unless `key` is a category."""
    if key not in CATEGORY_INDEX:
        import difflib

        near = difflib.get_close_matches(key, CATEGORIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown category {key!r}{hint} Known: {', '.join(CATEGORIES)}")


def may_generate(categories: Iterable[str] | None) -> bool:
    """Whether synthesis and attack may build on a record of these categories (None: unknown categories, allowed)."""
    return not NEVER_GENERATED.intersection(categories or ())
