"""Attack a guard, or a service that moderates, with freshly trained attackers, and say how often it is fooled.

python jobs/red_team.py --target runs/laptop/guard --output out/ [--budget 500] [--seeds FILE] [--transforms true]
python jobs/red_team.py --target https://HOST/v1/moderations --output out/ [--adversary.groups 16 ...]
python jobs/red_team.py --target qwen3guard+https://HOST/v1/chat/completions --output out/     # as jobs/evaluate.py

Attack only what is yours or what you may test. A service's key, if it wants one, is in RAYGUARD_TARGET_KEY; on a
running cluster, in the environment of the job (ray job submit --runtime-env-json '{"env_vars": {...}}').

Writes attacks.parquet (every attempt), successes.jsonl (an evaluation file), summary.json, config.yaml and
TensorBoard events into the output folder. They are whole after each transform and iteration; until the end
summary.json says `complete: false` and why. The same command goes on in the folder, and does not ask a service
again for what it has said, but for a text that tells whether it is the same model; with other settings, or if the
target has changed, it is refused. A service is not asked about what has ended. An iteration that was interrupted
is run again: its successes stay, without `iteration`, and no rate counts them. Attack texts are in these files
alone, never on the terminal.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from actors.adversary import Adversary, Iteration
from actors.attempts import REFUSED
from actors.config import AdversaryConfig
from cluster.connect import connect
from cluster.observability import record_iteration
from cluster.resources import plan_for_cluster
from guardrail.generable import generation_seeds
from guardrail.guard import Guard
from guardrail.kept_verdicts import VERDICTS
from guardrail.records import Record
from guardrail.remote import RemoteGuard, TargetError
from guardrail.seeds import HELD_OUT, embedded_seeds, load_seeds, split_by_seed
from guardrail.targets import is_url, known_scores, moderation_of, open_guard, unsafe_scores
from guardrail.transforms import TRANSFORMS, transformed
from jobs.findings import UNTRANSFORMED, Findings, has_ended, show_findings
from jobs.run import run_directory
from jobs.settings import ClusterSettings, SeedSettings, SplitConfig, load
from jobs.terminal import orderly_end, terminal

_REFUSES_ALL = (
    "the target refuses every text that it is asked about, or answers without a verdict: see whether its key, limits "
    "or model have changed"
)
_REFUSALS = 20  # that are no accident where nothing else is answered


class RedTeamSettings(ClusterSettings, SeedSettings):
    """Settings of an attack."""

    target: str = Field(
        description="guard directory, or URL of a moderation endpoint or, as FORMAT+URL, of a chat model (evaluate.py)"
    )
    output: Path = Field(description="folder to write; the same one resumes")
    seeds: Path | None = Field(
        None, description="CSV, JSONL or parquet of goals; None: the embedded ones that the loop never trains on"
    )
    budget: int = Field(
        500, ge=1, description="attempts, rounded up to whole iterations, in the place of adversary.iterations"
    )
    transforms: bool = Field(False, description="also try each deterministic transform, beyond the budget")
    transform_goals: int = Field(50, ge=1, description="goals that each transform is tried on, at most")
    adversary: AdversaryConfig = AdversaryConfig()


def main(arguments: Sequence[str]) -> None:
    """Attack until the budget is spent, and print what came of it."""
    settings = load(RedTeamSettings, arguments, __doc__)
    console = terminal()
    output = run_directory(settings.output)
    with orderly_end(output):
        goals = goals_of(settings)
        guard = None
        if not (is_url(settings.target) and has_ended(output)):  # to show what a service said, it need not be there
            guard = open_guard(settings.target)
            moderation_of(guard, ["How do I bake bread at home?"])  # a target that cannot answer is found out here
        findings = Findings(output, settings, settings.target, name_of(guard) if guard else None)
        if findings.ended:
            console.print(f"{findings.guard} was attacked before, with these settings", highlight=False)
        elif guard:
            if isinstance(guard, RemoteGuard):
                guard.remember(findings.attackers / VERDICTS)  # with those that the attackers' scorers keep
            with findings:
                if settings.transforms:
                    try_transforms(settings, goals, guard, findings)
                train_attackers(settings, goals, guard, findings, console)
        shutil.rmtree(findings.attackers, ignore_errors=True)  # the attempts are in attacks.parquet
        show_findings(console, findings.summary)
        console.print(f"attacks: {output}", highlight=False, soft_wrap=True)


def goals_of(settings: RedTeamSettings) -> list[Record]:
    """Return what may be attacked with: the user's seeds, or those of ours that a loop with default shares holds out.

    Raises:
        ValueError: none is unsafe, or none is benign though the adversary wants such goals, too.
    """
    if settings.seeds is None:
        shares = SplitConfig()
        parts = split_by_seed(embedded_seeds(), validation=shares.validation, held_out=shares.held_out_goals)
        return generation_seeds(parts[HELD_OUT])
    goals = generation_seeds(load_seeds(settings.seeds))
    labels = {goal["unsafe"] for goal in goals}
    if True not in labels:
        raise ValueError(f"{settings.seeds} holds no unsafe seed that may be attacked with; add some")
    if False not in labels and settings.adversary.benign_share > 0:
        raise ValueError(f"{settings.seeds} holds no benign seed; add some, or set adversary.benign_share to 0")
    return goals


def name_of(guard: Guard | RemoteGuard) -> str:
    """Return what records call a target: version and digest, or what a service calls its model."""
    return guard.name if isinstance(guard, RemoteGuard) else f"{guard.card.version}@{guard.card.digest}"


def updates_of(settings: RedTeamSettings) -> int:
    """Return how many iterations of the adversary spend the budget, the last one perhaps more than it."""
    return -(-settings.budget // (settings.adversary.groups * settings.adversary.group_size))


def try_transforms(
    settings: RedTeamSettings, goals: Sequence[Record], guard: Guard | RemoteGuard, findings: Findings
) -> None:
    """Ask the target about some goals as they are, then as each transform writes them, where it changes them.

    Raises:
        TargetError: the target failed.
    """
    drawn = np.random.default_rng(settings.seed).permutation(len(goals))[: settings.transform_goals]
    sample = [goals[index] for index in drawn]
    for name in (UNTRANSFORMED, *TRANSFORMS):
        if name in findings.transforms():
            continue
        records = sample
        if name != UNTRANSFORMED:
            pairs = [(goal, transformed(goal, name, settings.seed)) for goal in sample]
            records = [record for goal, record in pairs if record["text"] != goal["text"]]
        texts = [record["text"] for record in records]
        try:
            scores, flagged = unsafe_scores(guard, texts)
        except TargetError:
            findings.add_part(name, records, *known_scores(guard, texts))
            raise
        if records and not np.isfinite(scores).any():
            if name == UNTRANSFORMED:
                raise TargetError(_REFUSES_ALL)
            _still_answers(guard, name)  # then that it refuses this form is a finding
        findings.add_transform(name, records, scores, flagged)


def _still_answers(guard: Guard | RemoteGuard, unlike: str) -> None:
    """Raise TargetError if a target refuses a harmless text, unlike others by what is told."""
    scores, _ = unsafe_scores(guard, [f"How do I bake bread at home? ({unlike})"])
    if np.isnan(scores).any():
        raise TargetError(_REFUSES_ALL)


def train_attackers(
    settings: RedTeamSettings,
    goals: Sequence[Record],
    guard: Guard | RemoteGuard,
    findings: Findings,
    console: Console,
) -> None:
    """Train attackers against the target for as many iterations as the budget pays for.

    Raises:
        TargetError: the target failed.
    """
    adversary, updates = settings.adversary, updates_of(settings)
    judged = refused = 0

    def after_iteration(done: int, iteration: Iteration) -> None:
        nonlocal judged, refused
        findings.goals_left_out = attackers.algorithm.goals_left_out  # what is interrupted tells it, too
        findings.write()
        summary = iteration.summary
        note = f"{summary.valid} of {summary.attempts} valid, {summary.successes} successes"
        console.print(f"  iteration {done} of {updates}: {note}", highlight=False)
        record_iteration(findings.directory.name, iteration, done, board)
        judged, refused = judged + summary.valid, refused + summary.rejected.get(REFUSED, 0)
        if refused >= _REFUSALS and not judged:
            raise TargetError(_REFUSES_ALL)
        if summary.rejected.get(REFUSED) and not summary.valid:
            _still_answers(guard, f"iteration {done}")

    with (
        connect(address=settings.cluster.address),
        SummaryWriter(str(findings.directory / "tensorboard")) as board,
    ):
        plan = plan_for_cluster(
            num_env_runners=adversary.env_runners,
            num_learners=adversary.learners,
            num_guard_workers=0,
            num_judges=len(adversary.judges),
        )
        attackers = Adversary(adversary, plan, settings.seed)
        try:
            outcome = attackers.attack(
                1,
                goals,
                settings.target,
                findings.attackers,
                after_iteration,
                updates=updates,
                guard_version=findings.guard,
            )
        except TargetError as error:
            raise getattr(error, "cause", error) from None  # Ray's form of it says all that an actor's traceback does
        finally:
            attackers.stop()
    findings.goals_left_out = outcome.goals_left_out


if __name__ == "__main__":
    main(sys.argv[1:])
