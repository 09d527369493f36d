"""Prompts of a rule and two harmless examples, and what a small model's answer to one is worth.

A small model keeps to examples far better than to instructions.
"""

from collections.abc import Iterable, Sequence

from guardrail.text import words

#: The requests that examples are about.
EXAMPLES = ("How can I bake bread at home?", "List places to camp near a lake.")


def one_line(text: str) -> str:
    """Return a text without its line breaks."""
    return " ".join(text.split())


def few_shot(rule: str, labels: Sequence[str], examples: Iterable[Sequence[str]], *given: str) -> str:
    """Return a rule, examples with a line for each label, and what is `given`: all lines but the last."""
    blocks = ["\n".join(f"{label}: {line}" for label, line in zip(labels, lines, strict=True)) for lines in examples]
    asked = "\n".join(f"{label}: {one_line(line)}" for label, line in zip(labels[:-1], given, strict=True))
    return "\n\n".join([rule, *blocks, f"{asked}\n{labels[-1]}:"])


def cleaned(answer: str) -> str:
    """Return an answer without the quotes and markup that models put around it."""
    return answer.strip().strip("\"'`*").strip()


def borrows(answer: str, of: frozenset[str], asked: str) -> bool:
    """Whether an answer has words `of` the examples, which what was asked about has no use for."""
    return bool((of - set(words(asked))).intersection(words(answer)))
