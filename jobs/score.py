"""Have teachers score records, for a guard to learn from beside the labels (`training.teachers`).

python jobs/score.py --input kept.parquet --output scored.parquet --teachers '{"large": "guards/large"}'
python jobs/train_guard.py --records scored.parquet --output guards/small --training.teachers '["teacher:large"]'

A teacher is a guard directory, which all nodes must see, or the URL of a service (see jobs/evaluate.py), which is asked
from here; its key, if it wants one, is in RAYGUARD_TARGET_KEY. It reads every record, a response behind its prompt; its
score, teacher:NAME, is the probability of "unsafe" (of a moderation service, its highest score; none where it refuses
the text) and takes the place of an earlier one of that name. All else, and the order, stays. The output may be the
input.

Ctrl-C leaves a folder beside the output, from which the same command goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from actors.teachers import TEACHER, TeachersConfig, ask_teachers
from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.records import check_records
from jobs.settings import ClusterSettings, load, save_beside
from jobs.terminal import orderly_end


class ScoreSettings(ClusterSettings):
    """Settings of the scoring."""

    input: Path = Field(description="parquet file of records")
    output: Path = Field(description="parquet file to write: the same records, with the teachers' scores")
    teachers: dict[str, str] = Field(
        min_length=1,
        description="by name, guard directory, or URL of a moderation endpoint or, as FORMAT+URL, of a chat model",
    )
    asking: TeachersConfig = TeachersConfig()


def main(arguments: Sequence[str]) -> None:
    """Write records with the teachers' scores."""
    settings = load(ScoreSettings, arguments, __doc__)
    with orderly_end(settings.output):
        check_records(settings.input)
        if settings.output.is_dir():
            raise ValueError(f"{settings.output} is a folder; --output takes the parquet file to write")
        with connect(address=settings.cluster.address):
            plan = plan_for_cluster(num_env_runners=settings.asking.copies, num_learners=0, num_guard_workers=0)
            counts = ask_teachers(
                settings.input,
                settings.teachers,
                settings.asking,
                settings.output,
                num_cpus=plan.env_runner_cpus,
                num_gpus=plan.env_runner_gpus,
            )
    save_beside(settings, settings.output)
    for name, scores in counts.items():
        told = f"{scores[True]} unsafe, {scores[False]} safe, {scores[None]} without a score"
        print(f"{TEACHER}{name}: {scores.total()} records, {told}")


if __name__ == "__main__":
    main(sys.argv[1:])
