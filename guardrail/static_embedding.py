"""Static sentence embeddings: sums of token vectors that a sentence encoder was asked for once.

Some hundred times faster than the encoder, and blind to the order of words. Sources: Model2Vec, by MinishLab, has the
encoder embed each token by itself and keeps the principal components; Arora et al., "A Simple but Tough-to-Beat
Baseline for Sentence Embeddings" (ICLR 2017), weights a token of frequency p by a / (a + p). Four things are done
otherwise, each of which brought cosines closer to the encoder's on public requests and tweets: the encoder's output at
the token itself is taken, not its mean over the special tokens too; a token counts once in a text; tokens of a single
character do not count; frequencies are those of the data.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from guardrail.models import cache_dir, model_state, resolve

_DIMENSIONS = 256  # at most
_WINDOW = 512  # tokens; what lies past them does not count
_TEXTS_AT_ONCE = 1000  # whose tokens are in memory together
_TOKENS_AT_ONCE = 1024  # in a batch of the encoder
_RARE = 1e-3  # the `a` of the weights
_PRIOR_TOKENS = 10_000  # that Zipf's law is worth beside the data: a few texts say little of frequencies
_AFFIXES = re.compile("^(##|[▁Ġ])|</w>$")  # of tokens inside a word, or at its start or end
_NO_TEXT = re.compile(r"\[unused\d+\]")


@dataclass(frozen=True, eq=False)
class StaticEncoder:
    """Token vectors and what it takes to make sentence embeddings of them; picklable, 8 MB for a BERT vocabulary.

    Args:
        tokenizer: without padding; truncates to the window.
        vectors: of the tokens by descending principal component, int8 [tokens, dimensions]; to be multiplied by
        scales: float32 [tokens]; 0 for a token that does not count.
        lengths: characters of each token that counts, else 0 [tokens].
        frequencies: of the tokens in texts [tokens].
    """

    tokenizer: Tokenizer
    vectors: NDArray[np.int8]
    scales: NDArray[np.float32]
    lengths: NDArray[np.int64]
    frequencies: NDArray[np.float64]

    @classmethod
    def distilled(cls, name: str) -> Self:
        """Return what an encoder makes of its vocabulary, computed once into the user's cache: a minute on two cores.

        Args:
            name: of an encoder, as `guardrail.models.resolve` takes it.

        Raises:
            ValueError: no such model.
        """
        model = resolve(name)
        tokenizer = AutoTokenizer.from_pretrained(model)
        lengths = _lengths(tokenizer)
        path = cache_dir() / "static" / f"{model_state(model)}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                partial = path.with_suffix(".partial")
                save_file(_token_vectors(model, tokenizer, lengths), partial)
                os.replace(partial, path)
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        backend.enable_truncation(_WINDOW)
        return cls(backend, **load_file(path), lengths=lengths, frequencies=_zipf(lengths))

    def token_counts(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return how often each token is in the texts [tokens]."""
        counts = np.zeros(len(self.lengths), dtype=np.int64)
        for tokens, _, _ in self._tokens(texts):
            counts += np.bincount(tokens, minlength=len(counts))
        return counts

    def fitted(self, counts: NDArray[np.int64]) -> Self:
        """Return the encoder with the frequencies of texts whose tokens these are, as `token_counts` returns them."""
        seen = counts + _PRIOR_TOKENS * _zipf(self.lengths)
        return dataclasses.replace(self, frequencies=seen / seen.sum())

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return L2-normalised embeddings, float32 [len(texts), dimensions].

        A text of which hardly anything is known, as one that the tokenizer takes apart letter by letter, is all zeros.
        """
        weighted = self.vectors * (self.scales * _RARE / (_RARE + self.frequencies))[:, None]
        # Whole numbers whose sums float32 holds exactly, so that a text's embedding hangs neither on the order of its
        # tokens nor on the texts beside it.
        limit = 2**24 / _WINDOW
        table = torch.from_numpy(np.rint(weighted * (limit / max(np.abs(weighted).max(), 1e-9))).astype(np.float32))
        found = [np.zeros((0, self.vectors.shape[1]), dtype=np.float32)]
        for tokens, text_of, count in self._tokens(texts):
            once = np.unique(text_of * len(self.lengths) + tokens)
            offsets = np.searchsorted(once, np.arange(count) * len(self.lengths))
            bags = torch.from_numpy(once % len(self.lengths)), table, torch.from_numpy(offsets)
            sums = torch.nn.functional.embedding_bag(*bags, mode="sum").numpy()
            lengths = self.lengths[tokens]
            known, unknown = (np.bincount(text_of, share, count) for share in (lengths, lengths == 0))
            sums[known <= unknown] = 0
            found.append(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1))
        return np.concatenate(found)

    def _tokens(self, texts: Sequence[str]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
        """Yield the tokens of some texts, the number of each one's text among them, and how many texts they are."""
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = [text[: 8 * _WINDOW] for text in texts[start : start + _TEXTS_AT_ONCE]]  # longer than the window
            ids = [encoded.ids for encoded in self.tokenizer.encode_batch_fast(part, add_special_tokens=False)]
            text_of = np.repeat(np.arange(len(ids)), [len(each) for each in ids])
            yield np.fromiter(itertools.chain.from_iterable(ids), np.int64, len(text_of)), text_of, len(ids)


def _lengths(tokenizer: Any) -> NDArray[np.int64]:
    """Return the characters of each token; 0 for special ones and those of one character, which say nothing alone."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = {*tokenizer.all_special_tokens, *filter(_NO_TEXT.fullmatch, tokens)}
    lengths = np.array([0 if token in special else len(_AFFIXES.sub("", token)) for token in tokens], dtype=np.int64)
    return np.where(lengths > 1, lengths, 0)


def _zipf(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return frequencies by Zipf's law of the tokens that count: vocabularies begin with the frequent ones."""
    weights = np.where(lengths > 0, 1 / (1 + np.cumsum(lengths > 0)), 0)
    return weights / weights.sum()


@torch.inference_mode()
def _token_vectors(model: str, tokenizer: Any, lengths: NDArray[np.int64]) -> dict[str, np.ndarray]:
    """Return `vectors` and `scales`: the encoder's output at each token that counts, given that token alone."""
    encoder = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    special = torch.tensor(tokenizer("")["input_ids"])
    before = len(special) // 2
    outputs = []
    for ids in torch.from_numpy(np.flatnonzero(lengths)).split(_TOKENS_AT_ONCE):
        around = special.expand(len(ids), -1)
        rows = torch.cat([around[:, :before], ids[:, None], around[:, before:]], dim=1)
        hidden = encoder(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state
        outputs.append(hidden[:, before].numpy())
    centred = np.concatenate(outputs)
    centred -= centred.mean(axis=0)
    _, components = np.linalg.eigh(centred.T @ centred)  # by ascending variance
    projected = centred @ components[:, ::-1][:, :_DIMENSIONS]
    vectors = np.zeros((len(lengths), projected.shape[1]), dtype=np.int8)
    scales = np.zeros(len(lengths), dtype=np.float32)
    largest = np.abs(projected).max(axis=1)
    vectors[lengths > 0] = np.rint(projected / largest[:, None] * 127)
    scales[lengths > 0] = largest / 127
    return {"vectors": vectors, "scales": scales}
