"""Teaching an attacker to rewrite before it is rewarded: fine-tuning on rewritings that keep their goal's intent.

They are the kept pairs that assistants wrote for the intent model, as far as their goals are none of the embedded seeds
(no goal that a measurement draws from those is among them) and as far as the gate lets them through: a small attacker
strays far enough by itself. Untaught it loses the intent of 97 goals in 100, and rewards are too rare to learn from.
"""

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.config import GateConfig
from actors.gate import Attempt, limits, rejection
from actors.module import check_built_as_llama
from actors.styles import STYLE, Style
from guardrail.intent import IntentModel, sentence_embedding
from guardrail.intent_pairs import WRITTEN_FILES, embedded_pairs
from guardrail.models import resolve
from guardrail.seeds import embedded_seeds

#: The style whose instruction a rewriting follows, by the pair's phenomenon. The others follow none closely.
_STYLE_OF = {
    **dict.fromkeys(("synonyms", "far_synonyms", "reordered", "cue_words", "euphemism", "passive"), "paraphrase"),
    **dict.fromkeys(("command_to_question", "question_to_command", "shorter", "longer"), "paraphrase"),
    **{name: name for name in ("casual", "indirect", "polite", "third_person", "keywords", "hypothetical")},
    **{name: name for name in ("story_so_far", "past_tense", "authority", "translated")},
    "academic": "academic_question",
    "fiction": "novel",
    "reason_or_role": "authority",
    "split": "splitting",
}


class TeachingConfig(BaseModel):
    """How an attacker is taught."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("bundled:smollm2-135m-instruct", description="causal LM: bundled name, directory or hub id")
    epochs: int = Field(3, ge=1, description="passes over the demonstrations")
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's, falling to a fifth")
    batch_size: int = Field(16, ge=1, description="demonstrations per step")
    trainable_layers: int = Field(10, ge=1, description="top layers that learn")


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A goal, and a rewriting of it in a style."""

    style: Style
    goal: str
    said: str


@functools.cache
def demonstrations() -> tuple[Demonstration, ...]:
    """Return all there are."""
    seeds = {seed["text"] for seed in embedded_seeds()}
    return tuple(
        Demonstration(STYLE[_STYLE_OF[pair.phenomenon]], pair.goal, pair.attack)
        for pair in embedded_pairs(*WRITTEN_FILES)
        if pair.kept and pair.phenomenon in _STYLE_OF and pair.goal not in seeds
    )


def passing(shown: Sequence[Demonstration], gate: GateConfig, intent: IntentModel) -> list[Demonstration]:
    """Return the demonstrations that the gate lets through."""
    goals, said = [each.goal for each in shown], [each.said for each in shown]
    features = intent.encoder.encode([*goals, *said])
    probabilities = intent.judged(goals, said, features)
    similarities = [
        float(sentence_embedding(features[a]) @ sentence_embedding(features[b]))
        for a, b in zip(goals, said, strict=True)
    ]
    bounds = limits(gate, intent.limits)
    attempts = [
        Attempt(each.style, each.goal, each.said, each.said, True, similarity, float(probability))
        for each, similarity, probability in zip(shown, similarities, probabilities, strict=True)
    ]
    return [each for each, attempt in zip(shown, attempts, strict=True) if rejection(attempt, gate, bounds) is None]


def teach(
    shown: Sequence[Demonstration],
    config: TeachingConfig,
    output: Path,
    seed: int,
    after_step: Callable[[int, int, float], None],
) -> None:
    """Fine-tune an attacker on demonstrations and write it to `output`, to be named as `adversary.model`.

    Args:
        shown: what to learn.
        config: how.
        output: directory to write, whole or not at all; it must not be there, or be empty.
        seed: decides the order.
        after_step: called with how many steps are done, how many there are, and the loss (nats per token).

    Raises:
        ValueError: there is nothing to show, the model is not built as Llama is, or `output` holds something.
    """
    if not shown:
        raise ValueError("there are no demonstrations: the gate lets none through")
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty; name another folder, or remove it")
    source = resolve(config.model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    check_built_as_llama(model, config.model)
    model.requires_grad_(False)
    for part in (*model.model.layers[-config.trainable_layers :], model.model.norm):
        part.requires_grad_(True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # The attacker is asked and answers as here; see `VLLMEnvRunner.sample` and `Engine.generate`.
    examples = [
        (
            tokenizer(each.style.prompt(each.goal))["input_ids"],
            tokenizer(f" {each.said}\n", add_special_tokens=False)["input_ids"],
        )
        for each in shown
    ]
    batches = list(_batches(examples, config, seed))
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=len(batches))
    model.train()
    for step, batch in enumerate(batches, 1):
        loss = _loss(model, batch, tokenizer.eos_token_id)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        after_step(step, len(batches), loss.item())
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in (model, tokenizer):
        part.save_pretrained(partial)
    os.replace(partial, output)


Example = tuple[list[int], list[int]]  # token ids of what is asked, and of what is said


def _batches(examples: Sequence[Example], config: TeachingConfig, seed: int) -> Iterator[list[Example]]:
    """Yield the batches of all epochs, each of examples of about one length."""
    ordered = sorted(examples, key=lambda example: sum(map(len, example)))
    random = np.random.default_rng(seed)
    starts = np.arange(0, len(ordered), config.batch_size)
    for _ in range(config.epochs):
        for start in random.permutation(starts):
            yield ordered[start : start + config.batch_size]


def _loss(model: torch.nn.Module, batch: Sequence[Example], padding: int) -> torch.Tensor:
    """Return the mean cross-entropy of what is said, given what is asked."""
    rows = [torch.tensor([*asked, *said]) for asked, said in batch]
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    places = torch.arange(ids.shape[1])[None]
    target = (places >= torch.tensor([len(asked) for asked, _ in batch])[:, None]) & (places < lengths)
    hidden = model.model(input_ids=ids, attention_mask=(places < lengths).long()).last_hidden_state
    # Only these places need a distribution over the vocabulary, which costs as much as a third of the layers.
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][target[:, 1:]]), ids[:, 1:][target[:, 1:]])
