"""Recognising what models say instead of what they were asked for: refusals, and talk about the task itself."""

import re

from guardrail.text import canonical

_REFUSAL = re.compile(
    r"^\W*(?:(?:i'?m|i am|we'?re|we are) (?:so |very |really |deeply )?(?:sorry|afraid)\b[, ]*(?:but\b|for\b|i\b|that\b)"
    r"|(?:i'?m|i am) (?:unable|not able|not allowed|not comfortable|not capable)\b"
    r"|(?:sorry|apologies|unfortunately)\b[, ]*(?:but )?(?:i|we)\b"
    r"|i (?:must|have to) decline\b|i (?:won'?t|will not|cannot|can not|can'?t) be able\b"
    r"|(?:i )?(?:do not|don'?t) (?:have|possess) the (?:ability|capability)\b"
    r"|as an? (?:\w+ )?(?:ai|artificial intelligence|language model)\b)"
)
_REFUSAL_ANYWHERE = re.compile(
    r"\b(?:as an ai\b|i (?:can'?t|cannot|can not) (?:help|assist|fulfil|fulfill|provide|comply|support|do that|answer|write)\b"
    r"|i'?m unable to (?:help|assist|provide|fulfil|fulfill)\b"
    r"|(?:goes|is) against my (?:guidelines|programming|policies|principles)\b)"
)
_META = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|okay|here(?:'?s| is| are)\b(?! (?:my|a bug))|below is|the following)\b[^?]*[:!]"
    r"|^\W*here(?:'?s| is| are) (?:the|a|an|one|your|another|some) (?:\w+ )?(?:re-?written|rewrite|revised|edited|updated|new|possible|paraphrased"
    r"|message|version|sentence|example|text|rewording)\b"
    r"|\b(?:re-?written|rewritten|revised|edited|paraphrased|original|reworded) (?:text|sentence|message|version|question|input|output|request)\b"
    r"|^\W*(?:input|output|rewrite|rewritten|paraphrase|message|sentence|question|in other words|answer)\s*:"
    r"|\bthe (?:given|original|provided|above) (?:text|sentence|message|question|prompt|input)\b"
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
