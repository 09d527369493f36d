"""What a guard reads at once: windows of tokens of a text, or of a response behind its prompt.

Training and inference read the same. What fits into one window is the text itself, or prompt and response with an empty
line between them, as anyone can spell it for the plain model. What does not is cut into windows that overlap; those of
a response all begin with its prompt, of which at most half a window is shown: its head and tail, with "[...]" between.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from transformers import PreTrainedTokenizerBase

from guardrail.text import encodable, joined

_OVERLAP = 32  # tokens two neighbouring windows share, so that a short attack is whole in one of them
_CUT = " [...] "


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A response in the context of its prompt; the response is what is judged."""

    prompt: str
    response: str

    def __str__(self) -> str:
        return joined(self.prompt, self.response)


class Message(TypedDict):
    """A message of a conversation, as chat APIs have it; role "user" asks, "assistant" answers.

    Content may be absent or None (of a call of a tool), or a list of parts, of which those with a `text` are read.
    """

    role: str
    content: NotRequired[str | Sequence[Mapping[str, Any]] | None]


Readable = str | Exchange
Conversation = Sequence[Message]


def reading_of(text: str, response: str | None) -> Readable:
    """Return what a guard reads for a record's text and response."""
    return text if response is None else Exchange(text, response)


def messages_read(conversation: Conversation) -> list[Readable]:
    """Return what a guard reads of each message: an answer behind what was asked last, the others alone.

    Raises:
        ValueError: something is no message.
    """
    asked: str | None = None
    read: list[Readable] = []
    for place, message in enumerate(conversation):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(f"message {place} is no mapping with a role")
        content = _text_of(message.get("content"), place)
        answers = message["role"] == "assistant" and asked is not None
        read.append(Exchange(asked or "", content) if answers else content)
        if message["role"] == "user":
            asked = content
    return read


def _text_of(content: object, place: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) for part in content):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    raise ValueError(f"the content of message {place} is {type(content).__name__}, not text, None or a list of parts")


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens that are read at once.

    Attributes:
        ids: token ids, special ones included; at least one.
        start, end: characters of the text, or of the response, that they are.
        prompt_cut: tokens of the prompt that are not shown.
    """

    ids: list[int]
    start: int
    end: int
    prompt_cut: int = 0


def windows(readings: Sequence[Readable], tokenizer: PreTrainedTokenizerBase, size: int) -> list[list[Window]]:
    """Return the windows of each reading, at least one, in the order of the text.

    Args:
        readings: what is read.
        tokenizer: a fast one: it must tell which characters a token is of.
        size: tokens of a window, special ones included.
    """
    if not readings:
        return []
    encoded = tokenizer([encodable(str(reading)) for reading in readings], verbose=False)
    example = tokenizer("a", return_special_tokens_mask=True)
    inner = [place for place, special in enumerate(example["special_tokens_mask"]) if not special]
    around = example["input_ids"][: inner[0]], example["input_ids"][inner[-1] + 1 :]
    cut = tokenizer(_CUT, add_special_tokens=False)["input_ids"]
    found = []
    for row, (reading, ids) in enumerate(zip(readings, encoded["input_ids"], strict=True)):
        judged = reading if isinstance(reading, str) else reading.response
        if len(ids) <= size:
            # Without special tokens an empty text has no token at all, and a model cannot read nothing.
            found.append([Window(ids or [tokenizer.pad_token_id], 0, len(judged))])
        else:
            offsets = encoded.encodings[row].offsets
            found.append(_cut(ids, offsets, len(str(reading)) - len(judged), around, cut, size))
    return found


def _cut(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    begin: int,
    around: tuple[list[int], list[int]],
    cut: list[int],
    size: int,
) -> list[Window]:
    """Return the windows of what does not fit into one; what is judged begins at the character `begin`."""
    before, after = around
    tokens = list(zip(ids, offsets, strict=True))[len(before) : len(ids) - len(after)]
    first = next((place for place, (_, (_, end)) in enumerate(tokens) if end > begin), len(tokens)) if begin else 0
    prompt, judged = [token for token, _ in tokens[:first]], tokens[first:]
    room = size - len(before) - len(after)
    shown = _shortened(prompt, cut, room // 2)
    hidden = 0 if shown == prompt else len(prompt) - max(0, len(shown) - len(cut))
    room -= len(shown)
    overlap = min(_OVERLAP, room // 4)
    found = []
    for start in range(0, max(1, len(judged) - overlap), room - overlap):
        part = judged[start : start + room]
        extent = (max(0, part[0][1][0] - begin), part[-1][1][1] - begin) if part else (0, 0)
        window = [*before, *shown, *(token for token, _ in part), *after]
        found.append(Window(window, *extent, prompt_cut=hidden))
    return found


def _shortened(tokens: list[int], cut: list[int], room: int) -> list[int]:
    """Return tokens, or their head and tail with `cut` between them, so that they are at most `room`."""
    if len(tokens) <= room:
        return tokens
    kept = max(0, room - len(cut))
    tail = kept - kept // 2
    return [*tokens[: kept // 2], *cut, *tokens[len(tokens) - tail :]][:room]
