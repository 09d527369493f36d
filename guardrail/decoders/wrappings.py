"""Decoders of what a whole text stands in: messages in JSON or XML, code blocks, variables to be joined."""

import html
import json
import re
from collections.abc import Iterator, Sequence

from guardrail.decoders.view import View

#: Keys and elements in which what is said stands.
_SAID = frozenset({"content", "text", "message", "prompt", "query", "question", "input", "instruction", "request"})
_JSON = json.JSONDecoder(strict=False)
_FENCED = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)
_ELEMENT = re.compile(r"<([A-Za-z][\w.-]*)>([^<>]*)</\1>")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_CONTROL_TOKEN = re.compile(
    r"<\|[a-z][a-z0-9_]{0,30}\|>|</?s>|\[/?(?:INST|SYS)\]|<</?SYS>>|<(?:start|end)_of_turn>|<eos>|<pad>|\[(?:CLS|SEP|PAD|MASK|EOS)\]",
    re.IGNORECASE,
)
_PART = re.compile(r"(?<!\S)\w+[ \t]*[:=]+[ \t]*(\"(?:[^\"\\]|\\.)*+\")[ \t;,]*$", re.MULTILINE)
_SHORTEST = 16  # characters; less is rather two variables of a program


def json_message(view: View) -> Iterator[str]:
    """What is said in the first JSON value."""
    start = min((at for at in map(view.surface.find, "{[") if at >= 0), default=-1)
    if start < 0 or '"' not in view.surface:
        return
    try:
        value, _ = _JSON.raw_decode(view.surface, start)
        strings = list(_strings(value))
    except (ValueError, RecursionError):
        return
    yield from _said(strings)


def _strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield key and text of each string in a JSON value."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _strings(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, key)


def xml_message(view: View) -> Iterator[str]:
    """What is said in XML elements."""
    if "</" in view.surface:
        yield from _said([(tag, html.unescape(text)) for tag, text in _ELEMENT.findall(view.surface)])


def _said(pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    said = [text for key, text in pairs if key.lower() in _SAID]
    if said:
        yield "\n".join(said)


def without_tags(view: View) -> Iterator[str]:
    """A text without the tags of XML and HTML."""
    if "</" in view.surface:
        yield html.unescape(_TAG.sub(" ", view.surface))


def without_control_tokens(view: View) -> Iterator[str]:
    """A text without what tokenizers and chat templates mark turns and ends with."""
    if _CONTROL_TOKEN.search(view.surface):
        yield _CONTROL_TOKEN.sub(" ", view.surface)


def code_block(view: View) -> Iterator[str]:
    """What stands in the code blocks of Markdown."""
    if "```" in view.surface and (blocks := _FENCED.findall(view.surface)):
        yield "\n".join(blocks)


def split_payload(view: View) -> Iterator[str]:
    """The strings of several variables, joined."""
    if view.surface.count('"') < 4 or len(parts := _PART.findall(view.surface)) < 2:
        return
    try:
        whole = "".join(json.loads(part, strict=False) for part in parts)
    except ValueError:
        return
    if len(whole) >= _SHORTEST:
        yield whole


#: Names of the decoders that leave out what stands around what they find.
EXTRACTING = frozenset(decoder.__name__ for decoder in (json_message, xml_message, code_block, split_payload))
