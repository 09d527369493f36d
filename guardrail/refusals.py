"""Recognising what models say instead of what they were asked for: refusals, and talk about the task itself."""

import re

from guardrail.text import canonical

# The texts are canonical (case-folded) with straight apostrophes; spaces in the patterns stand for single spaces.
_REFUSAL = re.compile(
    r"^\W*(?:"
    r"(?:i'?m|i am|we'?re|we are) (?:so |very |really |deeply )?(?:sorry|afraid)\b[, ]*(?:but|for|i|that)\b"
    r"|(?:i'?m|i am) (?:unable|not able|not allowed|not comfortable|not capable)\b"
    r"|(?:sorry|apologies|unfortunately)\b[, ]*(?:but )?(?:i|we)\b"
    r"|i (?:must|have to) decline\b"
    r"|i (?:won'?t|will not|cannot|can not|can'?t) be able\b"
    r"|(?:i )?(?:do not|don'?t) (?:have|possess) the (?:ability|capability)\b"
    r"|as an? (?:\w+ )?(?:ai|artificial intelligence|language model)\b"
    r")"
)
_REFUSAL_ANYWHERE = re.compile(
    r"\bas an ai\b"
    r"|\bi (?:can'?t|cannot|can not) (?:help|assist|fulfill?|provide|comply|support|do that|answer|write)\b"
    r"|\bi'?m unable to (?:help|assist|provide|fulfill?)\b"
    r"|\b(?:goes|is) against my (?:guidelines|programming|policies|principles)\b"
)
_KIND = r"(?:text|sentence|message|version|question|input|output|request|prompt)"
_META = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|okay|below is|the following|here(?:'?s| is| are)\b(?! my))\b[^?]*[:!]"
    r"|^\W*here(?:'?s| is| are) (?:the|a|an|one|your|another|some) (?:\w+ )?"
    r"(?:re-?written|rewrite|revised|edited|updated|new|possible|paraphrased|example|rewording|" + _KIND + r")\b"
    r"|\b(?:re-?written|revised|edited|paraphrased|original|reworded|given|provided|above) " + _KIND + r"\b"
    r"|^\W*(?:input|output|rewrite|rewritten|paraphrase|message|sentence|question|in other words|answer)\s*:"
    r"|<\|[a-z_]+\|>|\[(?:your|insert|name)\b"
)


def is_refusal(text: str) -> bool:
    """Whether a text declines to do what was asked."""
    plain = _plain(text)
    return bool(_REFUSAL.search(plain) or _REFUSAL_ANYWHERE.search(plain))


def has_meta_text(text: str) -> bool:
    """Whether a text talks about the task ("Here is the rewritten message:") or holds parts of a prompt or template."""
    return bool(_META.search(_plain(text)))


def _plain(text: str) -> str:
    return canonical(text).replace("\u2019", "'")
