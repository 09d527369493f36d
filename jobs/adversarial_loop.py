"""The adversarial loop: seeds grow into data, data trains a guard, attackers harden it round after round.

python jobs/adversarial_loop.py --config jobs/configs/laptop.yaml --run-dir runs/mine
"""

import sys
from collections.abc import Sequence
from functools import partial

from torch.utils.tensorboard import SummaryWriter

from cluster.connect import connect
from cluster.observability import record_round
from cluster.resources import plan_for_cluster
from jobs.report import round_entry, write_report
from jobs.rounds import Rounds
from jobs.run import Run, run_directory
from jobs.settings import LoopSettings, load
from jobs.terminal import orderly_end, show_rounds, terminal


def main(arguments: Sequence[str]) -> None:
    """Run the loop to its end, from wherever the run directory stands."""
    settings = load(LoopSettings, arguments, __doc__)
    console = terminal()
    run_dir = run_directory(settings.run_dir)
    console.print(f"run directory: {run_dir}", highlight=False, soft_wrap=True)
    with orderly_end(run_dir), Run(settings, console) as run, connect(address=settings.cluster.address):
        plan = plan_for_cluster(
            num_env_runners=settings.adversary.env_runners,
            num_learners=settings.adversary.learners,
            num_guard_workers=settings.training.workers,
            num_judges=len(settings.adversary.judges),
        )
        rounds = Rounds(run, settings, plan)

        console.rule("round 0")
        run.phase(0, "seed", rounds.seed)
        run.phase(0, "synthesize", rounds.synthesize)
        run.phase(0, "curate", partial(rounds.curate, 0))
        run.phase(0, "train", partial(rounds.train, 0))
        run.phase(0, "evaluate", partial(rounds.evaluate, 0))

        for index in range(1, settings.rounds + 1):
            console.rule(f"round {index}")
            run.phase(index, "attack", partial(rounds.attack, index))
            run.phase(index, "curate", partial(rounds.curate, index))
            run.phase(index, "train", partial(rounds.train, index))
            run.phase(index, "evaluate", partial(rounds.evaluate, index))
            entries = [round_entry(run.directory, i) for i in range(index + 1)]
            with SummaryWriter(str(run.directory / "tensorboard")) as board:
                record_round(run.name, entries[-1], board)
            show_rounds(console, entries)

        rounds.close()
        console.rule("report")
        run.phase(settings.rounds, "harden", partial(rounds.harden, settings.rounds))
        write_report(run.directory)
        for name, written in (("report", "report.html"), ("guard", "guard")):
            console.print(f"{name + ':':<7} {run.directory / written}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
