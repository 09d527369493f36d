"""Work in files of one batch each, by vLLM engines that are an actor pool of Ray Data.

What is asked lies in a folder beside the output; an engine writes its answers to a batch into a file of their own. So
no answer passes the driver, and a killed run goes on with the batches without answers.

`ray.data.llm` is not used where accelerators are: it hands on rows as they are done, without batches that could be
written whole, and drops the reason a completion ended, which tells half an answer from a whole one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.exceptions import RayActorError

from guardrail.code_digest import code_digest
from guardrail.records import write_table

_HERE = Path(__file__).parent
_CODE = code_digest(_HERE, _HERE.with_name("guardrail"))  # when it was loaded: an update may come while it runs


def parts_folder(output: Path) -> Path:
    """Return the folder that a killed run goes on from; on a cluster, all nodes must share it."""
    return output.resolve().with_name(f"{output.name}.parts")


def answer_batches(
    asked: Sequence[Path],
    folder: Path,
    actor: type,
    arguments: Sequence[Any],
    *,
    engines: int,
    num_cpus: float,
    num_gpus: float,
) -> list[Path]:
    """Return the files of answers to files of requests, in their order; those that exist are not asked again.

    Args:
        asked: files of one batch each, each named by its key.
        folder: of the answers, which have the same names; in one of its own for each version of the code.
        actor: a class with one engine, which Ray Data calls; see `answer_files`.
        arguments: that it is built with.
        engines: how many of them.
        num_cpus, num_gpus: what one reserves.

    Raises:
        ValueError: an engine cannot start; the message says why.
    """
    answered = [folder / _CODE / path.name for path in asked]
    left = [paths for paths in zip(asked, answered, strict=True) if not paths[1].exists()]
    if left:
        try:
            run_actors(left, actor, arguments, engines=engines, num_cpus=num_cpus, num_gpus=num_gpus)
        except RayActorError as error:  # one that dies later is restarted
            raise ValueError(f"an engine cannot start: {str(error).strip().splitlines()[-1]}") from error
    return answered


def answer_here(asked: Sequence[Path], folder: Path, actor: Callable[[pa.Table], pa.Table]) -> list[Path]:
    """Do as `answer_batches` in this process, with an actor that is built and does no more than wait for others."""
    answered = [folder / _CODE / path.name for path in asked]
    for paths in zip(asked, answered, strict=True):
        if not paths[1].exists():
            actor(pa.table({"asked": [str(paths[0])], "answered": [str(paths[1])]}))
    return answered


def run_actors(
    paths: Sequence[tuple[Path, Path]],
    actor: type,
    arguments: Sequence[Any],
    *,
    engines: int,
    num_cpus: float,
    num_gpus: float,
) -> None:
    """Answer batches on the cluster, (file of requests, file of answers) each."""
    rows = [{"asked": str(asked), "answered": str(answered)} for asked, answered in paths]
    ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        actor,
        fn_constructor_args=tuple(arguments),
        batch_format="pyarrow",
        batch_size=1,
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=engines),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    ).materialize()


def answer_files(paths: pa.Table, answers: Callable[[pa.Table, str], pa.Table]) -> pa.Table:
    """Answer, in an actor, the batches in the files `asked` into the files `answered`, and return the paths.

    Args:
        paths: columns `asked` and `answered`.
        answers: of a batch and its key.
    """
    for asked, answered in zip(*(map(Path, paths[name].to_pylist()) for name in ("asked", "answered")), strict=True):
        write_table(answers(pq.read_table(asked), asked.stem), answered)
    return paths
