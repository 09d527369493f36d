"""A vLLM engine inside the calling process: generation with logprobs, and new weights without a restart.

Used by whoever generates: the attacker's env runners and the synthesiser. vLLM is imported when the engine is built,
because its CPU settings are read from the environment at import.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled line: token ids, the engine's log-probability of each [tokens], the text."""

    token_ids: list[int]
    logprobs: np.ndarray
    text: str
    finished: bool  # the line ended by itself, not by the length limit


class Engine:
    """A vLLM engine on one causal language model.

    Args:
        model: directory or hub id.
        max_tokens: longest prompt plus completion, in tokens.
        seed: of the engine; see `reseed`.
        gpu_memory: share of the accelerator's memory, where there is one.
        kv_cache_gib: size of the key-value cache on a CPU, in GiB.
        dtype: of the weights on an accelerator, as vLLM names it; on a CPU it is always float32.
    """

    def __init__(
        self,
        model: str,
        *,
        max_tokens: int,
        seed: int = 0,
        gpu_memory: float = 0.9,
        kv_cache_gib: int = 1,
        dtype: str = "auto",
    ) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(kv_cache_gib))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        import torch

        accelerated = torch.cuda.is_available()
        if not accelerated:
            # An eager engine still has g++ compile two small functions of its sampler, and generates no faster for it.
            torch._dynamo.config.disable = True
        from vllm import LLM

        self.model = model
        _use_all_cores()
        self.llm = LLM(
            model=model,
            seed=seed,
            max_model_len=max_tokens,
            # Without bf16 units float32 is three times as fast on a CPU, and its logprobs equal the learner's to 1e-4.
            dtype=dtype if accelerated else "float32",
            enforce_eager=not accelerated,
            gpu_memory_utilization=gpu_memory,
            enable_prefix_caching=True,
            # Only whole blocks are shared. vLLM's default on a CPU, 128 tokens, is more than most prompts here have:
            # each of a group's samples computed its prompt again, and generation took 2.5 times as long.
            **({} if accelerated else {"block_size": 32}),
            disable_log_stats=True,
            # Log-probabilities of the distribution that was sampled from, temperature included: the learner's ratio
            # divides by these.
            logprobs_mode="processed_logprobs",
        )
        self.tokenizer = self.llm.get_tokenizer()
        for part in ("inplace", "layerwise"):  # they warn of every layer that a reload leaves as it is
            logging.getLogger(f"vllm.model_executor.model_loader.reload.{part}").setLevel(logging.ERROR)

    def reseed(self, seed: int) -> None:
        """Make the next samples a function of `seed`, the prompts and the weights."""
        import torch

        torch.manual_seed(seed)

    def encode(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt that the model is to continue.

        Prompts are few-shot, without a chat format: a small model keeps to the examples before it far better than to an
        instruction, and any causal model can be used.
        """
        return self.tokenizer(prompt)["input_ids"]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        max_new_tokens: int | Sequence[int],
        temperature: float,
        stop: Sequence[str] = ("\n",),
    ) -> list[list[Completion]]:
        """Return `n` completions for each prompt (token ids), each up to the first of `stop`: by default, one line.

        `max_new_tokens` is of all, or of each prompt.
        """
        from vllm import SamplingParams

        most = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        params = [
            SamplingParams(n=n, max_tokens=tokens, temperature=temperature, logprobs=0, stop=list(stop))
            for tokens in most
        ]
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        _use_all_cores()
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        return [[_completion(sample) for sample in output.outputs] for output in outputs]

    def prompt_logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return the log-probability of every token but the first, given those before it; float64 [tokens - 1] each."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        _use_all_cores()
        outputs = self.llm.generate([{"prompt_token_ids": list(ids)} for ids in token_ids], params, use_tqdm=False)
        return [
            np.array([at[token].logprob for token, at in zip(ids[1:], output.prompt_logprobs[1:], strict=True)])
            for ids, output in zip(token_ids, outputs, strict=True)
        ]

    def load_weights(self, changed: Mapping[str, Any]) -> None:
        """Put `changed` (Hugging Face name to tensor) over the engine's weights and forget cached prefixes.

        A layer that nothing is given of stays as it is. One that only a part is given of does not: vLLM fuses query,
        key and value, gate and up. The probe after a weight sync would tell.
        """
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(changed.items())})
        self.llm.reset_prefix_cache()


def memory_share(wanted: float, gpus: float) -> float:
    """Return the share of an accelerator's memory for an engine that reserves `gpus` of it: at most 0.9 of that."""
    return min(wanted, 0.9 * gpus) if gpus else wanted


def _use_all_cores() -> None:
    """Let this thread compute on all cores.

    Ray allows an actor one thread per CPU it reserves, but the phases of the loop take turns on a machine. OpenMP keeps
    the number for each calling thread, and Ray Data calls an actor from another one than built it: vLLM stops where
    the two differ.
    """
    import torch

    torch._C.set_num_threads(os.cpu_count() or 1)  # vLLM has replaced torch.set_num_threads by a warning


def _completion(sample: Any) -> Completion:
    ids = list(sample.token_ids)
    logprobs = np.array([at[token].logprob for token, at in zip(ids, sample.logprobs, strict=True)], dtype=np.float32)
    return Completion(ids, logprobs, sample.text.strip(), sample.finish_reason == "stop")
