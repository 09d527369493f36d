"""Judges: language models that vote on whether an attack still has its label.

The trained guard has no part in the vote. What a judge says is a vote only where it is a verdict in its format
(`guardrail.judge_formats`): a refusal read as "unsafe" would pay the attacker for frightening a judge.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import ray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from actors.engine import Completion, Engine
from guardrail.judge_formats import Vote, judge_format
from guardrail.models import BUNDLED_PREFIX, resolve
from guardrail.reading import Readable

logger = logging.getLogger(__name__)


class JudgeConfig(BaseModel):
    """One judge of the vote."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="causal LM: bundled name, directory or hub id")
    format: str = Field(description="how it is asked: llama-guard, qwen3guard, ..., or rubric for any instruct model")
    max_tokens: int = Field(2048, ge=64, description="longest prompt plus answer; a text that needs more gets no vote")

    @field_validator("format")
    @classmethod
    def _known(cls, name: str) -> str:
        return judge_format(name).name

    @property
    def name(self) -> str:
        """The last part of the model's path: it tells judges of one family apart, and is the same in every run."""
        return Path(self.model).name.removeprefix(BUNDLED_PREFIX)


class Judge:
    """An actor: one judge model in one vLLM engine.

    Args:
        model: bundled name, directory or hub id.
        format: a key of JUDGE_FORMATS.
        kv_cache_gib: the engine's key-value cache on a CPU.
        gpu_memory: share of an accelerator's memory the engine takes.
        max_tokens: longest prompt plus answer, in tokens.

    Raises:
        ValueError: an unknown format, a format that the model's chat template does not fit, or a window too short for
            any text.
    """

    def __init__(self, model: str, format: str, *, kv_cache_gib: int, gpu_memory: float, max_tokens: int) -> None:
        if ray.is_initialized() and ray.get_runtime_context().was_current_actor_reconstructed:
            logger.warning("a judge died and was restarted; it is asked again")
        self.format = judge_format(format)
        self.engine = Engine(resolve(model), max_tokens=max_tokens, gpu_memory=gpu_memory, kv_cache_gib=kv_cache_gib)
        self.longest_prompt = max_tokens - self.format.max_new_tokens
        added = self.engine.tokenizer.added_tokens_decoder.values()
        self.control_tokens = [token.content for token in added if token.special]
        question = max(len(ids) for ids in self.format.prompts(self.engine.tokenizer, ""))
        if question >= self.longest_prompt:
            raise ValueError(
                f"judge {model}: its question alone takes {question} tokens, the answer up to "
                f"{self.format.max_new_tokens}; max_tokens={max_tokens} leaves no room for a text, raise it"
            )

    def __repr__(self) -> str:
        return f"judge-{self.format.name}"

    def votes(self, texts: Sequence[Readable]) -> list[Vote]:
        """Return the vote on each text, or answer to one, at temperature 0.

        None for a text that does not fit the window, for it is never cut, for one that holds a control token of the
        model's, with which it could end the question and write the answer, and for an answer where the format has no
        question about such.
        """
        asked = [self._prompts(text) for text in texts]
        prompts = [ids for each in asked for ids in each]
        if not prompts:
            return [None] * len(texts)
        answers = iter(
            self.engine.generate(prompts, n=1, max_new_tokens=self.format.max_new_tokens, temperature=0.0, stop=())
        )
        return [
            _unsafe_under_any([self._vote(text, next(answers)[0]) for _ in each])
            for text, each in zip(texts, asked, strict=True)
        ]

    def _prompts(self, text: Readable) -> list[list[int]]:
        format = self.format.about(text)
        if format is None or any(token in str(text) for token in self.control_tokens):
            return []
        prompts = format.prompts(self.engine.tokenizer, text)
        return prompts if all(len(ids) <= self.longest_prompt for ids in prompts) else []

    def _vote(self, text: Readable, answer: Completion) -> Vote:
        format = self.format.about(text)
        return format.parse(answer.text, finished=answer.finished) if format else None


def label_kept(votes: Sequence[Vote], unsafe: bool) -> bool | None:
    """Return whether a strict majority of those who voted says `unsafe`; None for a tie or no votes at all."""
    cast = [vote for vote in votes if vote is not None]
    agreeing = sum(vote == unsafe for vote in cast)
    return None if 2 * agreeing == len(cast) else 2 * agreeing > len(cast)


def _unsafe_under_any(votes: Sequence[Vote]) -> Vote:
    if True in votes:
        return True
    return False if votes and None not in votes else None
