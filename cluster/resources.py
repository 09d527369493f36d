"""How much of a cluster each actor reserves, so that everything fits at once on two cores as on a rack."""

import math
from dataclasses import dataclass

_RUNNERS_PER_SCORER = 8


@dataclass(frozen=True)
class ResourcePlan:
    """What one actor of a kind reserves.

    The phases of the loop take turns, but the adversary's actors live on between them.
    """

    env_runner_cpus: float
    env_runner_gpus: float
    learner_cpus: float
    learner_gpus: float
    scorer_cpus: float
    guard_worker_cpus: float
    guard_worker_gpus: float
    data_task_cpus: float


def plan(
    cpus: float, gpus: float, *, num_env_runners: int, num_learners: int, num_guard_workers: int, num_judges: int = 0
) -> ResourcePlan:
    """Return a plan for a cluster of `cpus` and `gpus`.

    Env runners, learners and scorers live through all phases and share all CPUs but one, at most one each: parts of
    Ray Data want a whole CPU, and wait for ever where there is none. Guard workers and data tasks share what is left,
    in turn. Of accelerators, DDP workers have one each, for NCCL wants two ranks on two of them; engines (of runners
    and judges, `env_runner_gpus` each) and whatever learner or guard worker is alone share the others evenly.

    Raises:
        ValueError: there are not two CPUs, or too few accelerators.
    """
    if cpus < 2:
        raise ValueError(
            f"the cluster has {cpus:g} CPUs and needs 2; add a node, or tell Ray so (ray start --num-cpus 2)"
        )
    lasting = num_env_runners + num_learners + num_scorers(num_env_runners)
    share = _floored(min(1.0, (cpus - 1) / lasting))
    left = cpus - share * lasting
    whole = sum(count for count in (num_learners, num_guard_workers) if count > 1)
    sharing = num_env_runners + num_judges + sum(count for count in (num_learners, num_guard_workers) if count == 1)
    others = int(gpus) - whole
    if gpus and others < (1 if sharing else 0):
        raise ValueError(
            f"the cluster has {gpus:g} accelerators and needs {whole + (1 if sharing else 0)}: one for each of several "
            "learners (adversary.learners) and guard workers (training.workers), and one for the engines; add nodes or "
            "ask for fewer"
        )
    # An actor's share lies on one accelerator: each takes as many actors as divide them evenly.
    gpu_share = _floored(1 / math.ceil(sharing / others)) if gpus and sharing else 0.0
    gpus_by_count = {0: 0.0, 1: gpu_share}
    return ResourcePlan(
        env_runner_cpus=share,
        env_runner_gpus=gpu_share,
        learner_cpus=share,
        learner_gpus=gpus_by_count.get(num_learners, 1.0 if gpus else 0.0),
        scorer_cpus=share,
        guard_worker_cpus=_floored(min(1.0, left / max(1, num_guard_workers))),
        guard_worker_gpus=gpus_by_count.get(num_guard_workers, 1.0 if gpus else 0.0),
        data_task_cpus=_floored(min(1.0, left / 2)),
    )


def num_scorers(num_env_runners: int) -> int:
    """Return how many actors score what the env runners generate."""
    return max(1, math.ceil(num_env_runners / _RUNNERS_PER_SCORER))


def _floored(value: float) -> float:
    # Ray counts in ten-thousandths; rounding up could be more than there is.
    return max(int(value * 10000) / 10000, 0.0001)


def plan_for_cluster(
    *, num_env_runners: int, num_learners: int, num_guard_workers: int, num_judges: int = 0
) -> ResourcePlan:
    """Return the plan for the connected cluster; see `plan`."""
    import ray

    total = ray.cluster_resources()
    return plan(
        total.get("CPU", 0.0),
        total.get("GPU", 0.0),
        num_env_runners=num_env_runners,
        num_learners=num_learners,
        num_guard_workers=num_guard_workers,
        num_judges=num_judges,
    )
