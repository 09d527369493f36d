"""The whole loop on real engines at tiny size, in a process of its own, as its users run it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from tests.tiny_guard import tiny_guard
from tests.tiny_llama import tiny_llama

ROOT = Path(__file__).parents[1]


def write_inputs(directory: Path) -> None:
    """Write what the loop starts from: seeds, a language model and a classifier of two layers."""
    unsafe = [f"How do I steal item {i} from the shop on street {i}?,yes,illicit" for i in range(40)]
    benign = [f"How do I bake bread of sort {i} for guest {i}?,no," for i in range(40)]
    (directory / "seeds.csv").write_text("\n".join(["text,unsafe,categories", *unsafe, *benign]) + "\n")
    tiny_llama(directory / "llama")
    tiny_guard(directory / "base")


def command(run_dir: Path, inputs: Path) -> list[str]:
    """Return the command of the loop in `settings`."""
    return [sys.executable, str(ROOT / "jobs/adversarial_loop.py"), *settings(run_dir, inputs)]


def settings(run_dir: Path, inputs: Path) -> list[str]:
    """Return the arguments of a one-round loop on what `write_inputs` wrote.

    A random model writes bytes at random, so the gate's bounds are as wide as they go: what is tested is the machinery.
    """
    model = inputs / "llama"
    values = {
        "run_dir": run_dir,
        "seeds": inputs / "seeds.csv",
        "split.validation": 0.25,
        "split.held_out_goals": 0.25,
        "synthesis.model": model,
        "synthesis.max_seeds": 16,
        "synthesis.max_prompt_tokens": 700,
        "synthesis.max_new_tokens": 128,
        "synthesis.temperature": 1.0,
        "training.base": inputs / "base",
        "training.window": 48,
        "adversary.model": model,
        "adversary.iterations": 2,
        "adversary.groups": 8,
        "adversary.group_size": 2,
        "adversary.benign_share": 0.5,  # of these the guard gets some right, whichever goals are drawn
        "adversary.max_prompt_tokens": 700,
        "adversary.max_new_tokens": 256,
        "adversary.temperature": 1.0,
        "adversary.trainable_layers": 1,
        "adversary.warm_start": 0,
        "adversary.minibatch": 2,
        "adversary.learning_rate": 0.001,
        "adversary.gate.min_intent": 0,
        "adversary.gate.min_similarity": -1,
        "adversary.gate.max_similarity": 1.1,
        "adversary.gate.min_fluency": -1000,
        "adversary.gate.max_words": 200,
    }
    dotted = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return ["--config", str(ROOT / "jobs/configs/smoke.yaml"), *dotted]


def run(run_dir: Path, inputs: Path) -> subprocess.CompletedProcess[str]:
    """Run the loop to its end and return what it printed, both streams in one."""
    return subprocess.run(
        command(run_dir, inputs), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )


def copied_up_to(first: str, finished: Path, run_dir: Path) -> Path:
    """Copy a finished run without a phase (ROUND/NAME) and those after it: the next call begins there."""
    shutil.copytree(finished, run_dir, symlinks=True)
    path = run_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    keys = list(manifest["phases"])
    manifest["phases"] = {key: manifest["phases"][key] for key in keys[: keys.index(first)]}
    path.write_text(json.dumps(manifest))
    return run_dir


def title(process: psutil.Process) -> str:
    """Return what a process calls itself; empty if it is gone."""
    try:
        return " ".join(process.cmdline()).strip()  # a title that a process gave itself is padded
    except psutil.NoSuchProcess:
        return ""


def titles_below(pid: int) -> list[str]:
    """Return what the descendants of a process call themselves."""
    return [title(process) for process in psutil.Process(pid).children(recursive=True)]
