"""Settings that run every phase of the loop on real engines at tiny size."""

from pathlib import Path


def tiny_loop(run_dir: Path, model: Path, rounds: int = 1) -> list[str]:
    """Return the arguments of `jobs/adversarial_loop.py` for a run with a tiny attacker.

    A random model writes bytes at random, so the gate's bounds are as wide as they go: what is tested is the machinery.
    """
    settings = {
        "run_dir": run_dir,
        "rounds": rounds,
        "split.held_out_goals": 0.1,
        "synthesis.model": model,
        "synthesis.max_seeds": 16,
        "synthesis.max_prompt_tokens": 700,
        "synthesis.max_new_tokens": 16,
        "synthesis.temperature": 1.0,
        "adversary.model": model,
        "adversary.groups": 16,
        "adversary.group_size": 2,
        "adversary.max_prompt_tokens": 700,
        "adversary.max_new_tokens": 48,
        "adversary.temperature": 1.0,
        "adversary.trainable_layers": 1,
        "adversary.minibatch": 4,
        "adversary.learning_rate": 0.001,
        "adversary.gate.min_similarity": -1,
        "adversary.gate.min_overlap": 0,
        "adversary.gate.min_fluency": -1000,
        "adversary.gate.max_words": 200,
    }
    config = Path("jobs/configs/smoke.yaml").resolve()
    return ["--config", str(config), *(part for key, value in settings.items() for part in (f"--{key}", str(value)))]
