"""The stage that keeps out what must not be trained on, however good it is as data."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from guardrail.curation.config import CurationConfig
from guardrail.curation.stage import Drop, Judge, Survey, are_contrasts
from guardrail.generable import may_sexualise_minors
from guardrail.taxonomy import CATEGORIES, may_generate
from guardrail.text import joined

# What is reserved for examples, RFC 2606 and RFC 6761, is nobody's address.
_EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64}@(?!(?:[\w-]+\.)*(?:example\.(?:com|net|org)|(?:[\w-]+\.)?(?:example|test|invalid|localhost))\b)"
    r"(?:[\w-]+\.)+[a-z]{2,}\b",
    re.IGNORECASE,
)
_CARD = re.compile(r"(?<![\d.-])[3-6](?:[ -]?\d){12,18}(?![\d-])")
# Prefixes as issuers document them; compare the rules of gitleaks.
_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|\bAKIA[0-9A-Z]{16}\b"  # Amazon
    r"|\bAIza[\w-]{35}\b"  # Google
    r"|\bgh[opsur]_\w{36,}\b|\bgithub_pat_\w{22,}"
    r"|\bglpat-[\w-]{20,}"  # GitLab
    r"|\bhf_[A-Za-z0-9]{30,}\b"  # Hugging Face
    r"|\bxox[abeoprs]-[\w-]{10,}"  # Slack
    r"|\bsk-[\w-]{20,}|\b[rs]k_live_\w{16,}"  # OpenAI, Anthropic; Stripe
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"  # JSON web token
)


class SafetyPolicy:
    """Records of categories that are excluded, and generated ones that may sexualise minors or hold a secret.

    What people wrote may speak of minors and sex: it is classified, never generated, and so nothing made from it, nor
    anything else a model or a transform wrote that may do so, is kept. Secrets are e-mail addresses, card numbers and
    keys: a model may have them from its training data. The evidence does not repeat them.
    """

    name = "policy"

    def __init__(self, config: CurationConfig) -> None:
        self.excluded = frozenset(config.excluded_categories)
        self.settings: Mapping[str, Any] = {"excluded_categories": sorted(self.excluded)}

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge, which knows what no record may have grown from: its own categories may be unknown."""
        inputs = survey.inputs(["id", "categories"]).combine_chunks()
        banned = [key for key in CATEGORIES if key in self.excluded or not may_generate([key])]
        categories = inputs["categories"].combine_chunks()
        owners = pc.list_parent_indices(categories).filter(
            pc.is_in(pc.list_flatten(categories), value_set=pa.array(banned, pa.string()))
        )
        return functools.partial(_judge_policy, self.excluded, frozenset(inputs["id"].take(owners).to_pylist()))


def _judge_policy(excluded: frozenset[str], banned: frozenset[str], batch: pa.Table) -> list[Drop | None]:
    columns: list[Sequence[Any]] = [batch[name].to_pylist() for name in ("text", "response", "categories", "method")]
    parents = zip(batch["parent_id"].to_pylist(), batch["seed_id"].to_pylist(), strict=True)
    drops = [policy_drop(excluded, *row) for row in zip(*columns, strict=True)]
    if excluded:  # what harm a model makes of a harmless seed, nobody has said
        unknown = are_contrasts(batch) & batch["unsafe"].to_numpy() & batch["categories"].is_null().to_numpy()
        for row in np.flatnonzero(unknown):
            drops[row] = drops[row] or Drop("excluded category", "perhaps: of a kind that nobody has named")
    for row, (method, of) in enumerate(zip(columns[-1], parents, strict=True)):
        if method != "seed" and banned.intersection(of):
            drops[row] = drops[row] or Drop("excluded category", "of what it grew from")
    return drops


def policy_drop(
    excluded: frozenset[str], text: str, response: str | None, categories: Sequence[str] | None, method: str
) -> Drop | None:
    """Return why a record must not be trained on, or None.

    Args:
        excluded: categories of which nothing is kept.
        text, response, categories, method: of the record.
    """
    whole = joined(text, response)
    if method != "seed" and (not may_generate(categories) or may_sexualise_minors(whole)):
        return Drop("may sexualise minors", "")
    if found := excluded.intersection(categories or ()):
        return Drop("excluded category", ", ".join(sorted(found)))
    # What a transform made of a record has the secrets of that at most, and a code may look like a key. (What it made
    # of an attacker's words, rl:STYLE, has theirs.)
    if method != "seed" and not method.startswith("transform:"):
        for kind, place in secrets(whole):
            return Drop("secret", f"{kind} at character {place}")
    return None


def secrets(text: str) -> Iterator[tuple[str, int]]:
    """Yield kind and place (characters, from 0) of what looks like an e-mail address, a card number or a key."""
    for kind, pattern in (("e-mail address", _EMAIL), ("card number", _CARD), ("key", _KEY)):
        for found in pattern.finditer(text):
            if pattern is not _CARD or passes_luhn(found.group()):
                yield kind, found.start()


def passes_luhn(number: str) -> bool:
    """Whether the digits of a number pass the check of ISO/IEC 7812-1, annex B, as those of payment cards do."""
    digits = [int(char) for char in reversed(number) if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
