"""What an iteration of the adversary costs beside TRL's `GRPOTrainer`, and its generation beside bare vLLM.

python -m tests.benchmarks.adversary_speed [--iterations 3] [--groups 12] [--group-size 4] [--max-new-tokens 36]

Ours: one `Adversary` with one engine and the learner in this process: generate, score, update, sync. TRL: one
optimiser step of `GRPOTrainer` on the very prompts of our iteration, which alternates with ours in this process. Both
have the same model in float32, number of samples, longest completion, end of a completion (a line), temperature,
clipping, KL to the untrained model and trained layers. Where the two cannot be alike, TRL has the lighter load:

- its reward is the length of a text, while ours runs guard, encoder and reference model;
- all its samples make one optimiser step (in micro-batches of our minibatch), so that it need not compute the old
  log-probabilities a second time;
- by default it trains every weight and recomputes activations; here its lower layers are frozen as ours are, and it
  recomputes nothing.

TRL generates with transformers' `generate`. Its vLLM mode starts on a CPU but fails at the first weight sync (in vLLM's
CPU build `load_weights` finds no `weight_loader`), and its continuous batching spends seconds a step on a CPU before
it generates. Bare vLLM is `LLM.generate` on our runner's engine: the prompts and sampling parameters of our iteration,
and an empty prefix cache as after a weight sync.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from actors.adversary import Adversary
from actors.config import AdversaryConfig
from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.bases import load_base
from guardrail.guard_card import write_card
from guardrail.models import resolve
from guardrail.seeds import embedded_seeds
from guardrail.taxonomy import UNSAFE

TRL_VERSION = "1.16.0"


@dataclasses.dataclass(frozen=True)
class Generation:
    """Tokens that were sampled and the seconds it took."""

    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Return tokens per second."""
        return self.tokens / self.seconds


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One of our iterations: wall time, that of each phase, what was sampled, and the prompts."""

    seconds: float
    phases: dict[str, float]
    generation: Generation
    prompts: list[str]


class Ours:
    """The adversary, one iteration at a time. What is known of its inside is known here."""

    def __init__(self, config: AdversaryConfig, guard: Path, directory: Path) -> None:
        plan = plan_for_cluster(num_env_runners=1, num_learners=0, num_guard_workers=1)
        self.adversary = Adversary(config, plan, seed=0)
        self.algorithm = self.adversary.algorithm
        self.algorithm.start_round(1, embedded_seeds(), str(guard), str(directory), iterations=1000)
        self._on_runner(remember_requests)

    def _on_runner(self, function: Any) -> Any:
        (result,) = self.algorithm.env_runner_group.foreach_env_runner(function, local_env_runner=False)
        return result

    def iteration(self) -> Iteration:
        """Run one."""
        begun = time.monotonic()
        self.algorithm.train()
        seconds = time.monotonic() - begun
        phases, summary = self.algorithm.phase_seconds, self.algorithm.summary
        assert summary is not None
        generation = Generation(summary.tokens, phases["generate"])
        return Iteration(seconds, phases, generation, self._on_runner(requested_prompts))

    def bare_generation(self) -> Generation:
        """Ask the engine alone for what the last iteration asked it for."""
        return Generation(*self._on_runner(replay))

    def stop(self) -> None:
        """Stop all actors."""
        self.adversary.stop()


def remember_requests(runner: Any) -> None:
    """Let a runner's engine keep what it was last asked to generate."""
    generate = runner.engine.generate

    def generate_and_remember(prompts: Sequence[Sequence[int]], **settings: Any) -> Any:
        runner.request = ([list(ids) for ids in prompts], settings)
        return generate(prompts, **settings)

    runner.engine.generate = generate_and_remember


def requested_prompts(runner: Any) -> list[str]:
    """Return the prompts of the last request."""
    return [runner.engine.tokenizer.decode(ids) for ids in runner.request[0]]


def replay(runner: Any) -> tuple[int, float]:
    """Return tokens and seconds of the last request when vLLM is asked without anything of ours around it."""
    from vllm import SamplingParams

    prompts, settings = runner.request
    parameters = SamplingParams(
        n=settings["n"],
        max_tokens=settings["max_new_tokens"],
        temperature=settings["temperature"],
        logprobs=0,
        stop=["\n"],
    )
    runner.engine.llm.reset_prefix_cache()
    begun = time.monotonic()
    outputs = runner.engine.llm.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
    seconds = time.monotonic() - begun
    return sum(len(sample.token_ids) for output in outputs for sample in output.outputs), seconds


class Trl:
    """TRL's trainer, one optimiser step at a time."""

    def __init__(self, config: AdversaryConfig, directory: Path) -> None:
        from trl import GRPOConfig, GRPOTrainer

        tokenizer = AutoTokenizer.from_pretrained(resolve(config.model))
        model = AutoModelForCausalLM.from_pretrained(resolve(config.model), dtype=torch.float32)
        model.requires_grad_(False)
        for part in (*model.model.layers[-config.trainable_layers :], model.model.norm):
            part.requires_grad_(True)
        # A completion is one line, as ours is.
        line_ends = [index for token, index in tokenizer.get_vocab().items() if "Ċ" in token]
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *line_ends]
        self._prompts: list[str] = []
        self._clock = _StepClock()
        self._tokens = 0
        self.trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=self._reward,
            train_dataset=Dataset.from_dict({"prompt": [""] * config.groups}),
            callbacks=[self._clock],
            args=GRPOConfig(
                output_dir=str(directory),
                max_steps=1,
                per_device_train_batch_size=config.minibatch * config.group_size,
                gradient_accumulation_steps=config.groups // config.minibatch,
                num_generations=config.group_size,
                max_completion_length=config.max_new_tokens,
                temperature=config.temperature,
                epsilon=config.objective.clip,
                epsilon_high=config.objective.clip_high,
                beta=config.objective.kl_coefficient,
                loss_type="dr_grpo",
                learning_rate=config.learning_rate,
                lr_scheduler_type="constant",
                max_grad_norm=config.grad_clip,
                optim="adamw_torch_fused",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                use_vllm=False,
                shuffle_dataset=False,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
        )

    def _reward(self, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        self._tokens += sum(map(len, completion_ids))
        return [float(len(ids)) for ids in completion_ids]

    def iteration(self, prompts: Sequence[str]) -> Generation:
        """Return the seconds of a step on `prompts`, without what `train` sets up before it, and the tokens sampled."""
        self.trainer.train_dataset = Dataset.from_dict({"prompt": list(prompts)})
        self._tokens = 0
        with contextlib.redirect_stdout(sys.stderr):  # it prints its metrics
            self.trainer.train()
        return Generation(self._tokens, self._clock.seconds)


class _StepClock(TrainerCallback):
    """Times an optimiser step: generation, reward, all micro-batches, the optimiser."""

    seconds = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.monotonic() - self._begun


def untrained_guard(directory: Path) -> Path:
    """Write a guard that has learned nothing: it costs what a trained one of its size costs."""
    model, tokenizer = load_base(resolve("bundled:all-minilm-l6-v2"))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_card(directory, version="untrained", temperature=1.0, thresholds={UNSAFE: 0.5}, window=256)
    return directory


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(np.median(list(values)))


def main() -> None:
    """Alternate the peers, print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=3, help="after one that does not count")
    parser.add_argument("--groups", type=int, default=12, help="a multiple of --minibatch")
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--minibatch", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=36)
    arguments = parser.parse_args()
    if arguments.groups % arguments.minibatch:
        parser.error("TRL wants whole micro-batches: --groups must be a multiple of --minibatch")
    try:
        import trl
    except ImportError as error:
        sys.exit(
            f"this benchmark compares with TRL, which cannot be imported ({error}): "
            f"pip install --no-deps trl=={TRL_VERSION}"
        )
    settings = vars(arguments)
    iterations = settings.pop("iterations")
    config = AdversaryConfig(env_runners=1, learners=0, **settings)
    with tempfile.TemporaryDirectory() as folder, connect(num_cpus=os.cpu_count()):
        ours = Ours(config, untrained_guard(Path(folder) / "guard"), Path(folder) / "round")
        theirs = Trl(config, Path(folder) / "trl")
        mine: list[Iteration] = []
        bare: list[Generation] = []
        trl_steps: list[Generation] = []
        for _ in range(iterations + 1):
            mine.append(ours.iteration())
            bare.append(ours.bare_generation())
            trl_steps.append(theirs.iteration(mine[-1].prompts))
            print(
                f"ours {mine[-1].seconds:.1f} s, bare vLLM {bare[-1].seconds:.1f} s, TRL {trl_steps[-1].seconds:.1f} s",
                file=sys.stderr,
            )
        ours.stop()
    # The first of each is where engines, allocators and caches warm up.
    mine, bare, trl_steps = mine[1:] or mine, bare[1:] or bare, trl_steps[1:] or trl_steps

    time_ratios = [a.seconds / b.seconds for a, b in zip(mine, trl_steps, strict=True)]
    rate_ratios = [a.generation.rate / b.rate for a, b in zip(mine, bare, strict=True)]
    other_shares = [1 - (each.phases["generate"] + each.phases.get("update", 0.0)) / each.seconds for each in mine]
    samples = config.groups * config.group_size
    print(
        f"{samples} samples an iteration, {len(mine)} iterations each, medians, trl {trl.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'':14} {'s/iteration':>11} {'tokens':>7} {'generate tokens/s':>18}")
    print(
        f"{'ours':14} {median([each.seconds for each in mine]):11.1f} "
        f"{median([each.generation.tokens for each in mine]):7.0f} {median([e.generation.rate for e in mine]):18.1f}"
    )
    print(f"{'bare vLLM':14} {'':11} {median([e.tokens for e in bare]):7.0f} {median([e.rate for e in bare]):18.1f}")
    print(
        f"{'TRL':14} {median([each.seconds for each in trl_steps]):11.1f} "
        f"{median([each.tokens for each in trl_steps]):7.0f}"
    )
    phases = {name: round(median([each.phases.get(name, 0.0) for each in mine]), 2) for name in mine[0].phases}
    print("our phases:", ", ".join(f"{name} {seconds} s" for name, seconds in phases.items()))
    figures = {
        "iteration_time_vs_trl": round(median(time_ratios), 4),
        "generation_vs_bare_vllm": round(median(rate_ratios), 4),
        "other_phases_share": round(median(other_shares), 4),
        "samples": samples,
        "seconds": {"ours": [round(e.seconds, 2) for e in mine], "trl": [round(e.seconds, 2) for e in trl_steps]},
        "tokens_per_second": {
            "ours": [round(e.generation.rate, 1) for e in mine],
            "bare_vllm": [round(e.rate, 1) for e in bare],
        },
        "phases": phases,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
