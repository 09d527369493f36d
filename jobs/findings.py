"""What an attack on a guard has found: every attempt, the figures, and the files that hold them."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from actors.archive import category_of
from actors.attempts import ATTEMPTS, REFUSED, diversity_of, left_successes, read_attempts
from guardrail.files import write_text
from guardrail.metrics import share_text, wilson
from guardrail.records import Record, to_table, write_table
from guardrail.text import digest
from jobs.run import RunError
from jobs.settings import to_yaml

UNTRANSFORMED = "none"  # in the place of a transform: the goals as they are
_TRANSFORM = "transform"  # the action of what is no attacker's
_UNDECIDING = ("output", "cluster")  # settings that do not decide what is found
_COLUMNS = pa.schema([field for field in ATTEMPTS if field.name != "embedding"])
_UNENDED = "has not ended: it is running, or was killed"

Rows = Sequence[dict[str, Any]]  # of a table of `ATTEMPTS`


class Findings:
    """The findings as a context: the files are whole at any moment, and say in the end whether and why it ended early.

    Attributes:
        attackers: folder of the adversary, which goes on from there.
        goals_left_out: how many goals could not be used, by reason.
    """

    def __init__(self, directory: Path, settings: BaseModel, target: str, guard: str | None) -> None:
        """Take a new directory, or one to go on in.

        Args:
            directory: to write.
            settings: all of the job's.
            target: what is attacked, as the user named it.
            guard: name of what was found there; None: the directory `has_ended`, and nobody looked.

        Raises:
            RunError: the directory is something else, in use, or was begun with other settings or another guard.
        """
        self.directory, self.target = directory, target
        self.attackers = directory / "attackers"
        self.goals_left_out: dict[str, int] = {}
        config = directory / "config.yaml"
        if directory.exists() and not config.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise RunError(f"{directory} holds something else; give another --output")
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(directory / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise RunError(f"{directory} is in use by another process") from None
        new = yaml.safe_load(to_yaml(settings))
        old = yaml.safe_load(config.read_text()) if config.exists() else new
        if changed := [key for key in new if key not in _UNDECIDING and old.get(key) != new[key]]:
            raise RunError(
                f"{directory} was begun with another {' and another '.join(changed)} (see {config}): "
                "give another --output, or the same settings"
            )
        self.summary = _summary_in(directory) or {"guard": guard}
        self.guard: str = self.summary["guard"]
        if guard not in (None, self.guard):
            raise RunError(f"{directory} is about {self.guard}, but {target} is {guard} now: give another --output")
        path = directory / "attacks.parquet"
        table = pq.read_table(path, schema=_COLUMNS) if path.exists() else _COLUMNS.empty_table()
        table = table.filter(pc.equal(table["action"], _TRANSFORM))
        tried = pc.is_in(table["style"], pa.array(list(self.summary.get("transforms", ())), pa.string()))
        # What is no figure is of a transform at which the target failed: that is tried again.
        self._transformed, self._part = table.filter(tried), table.filter(pc.invert(tried))
        write_text(config, to_yaml(settings))

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return bool(self.summary.get("complete"))

    def __enter__(self) -> "Findings":
        self.write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.write(None)
        else:
            self.write((str(error) or type(error).__name__) if isinstance(error, Exception) else "interrupted")
        self._lock.release()

    def transforms(self) -> set[str]:
        """Return the transforms that have been tried."""
        return set(self._transformed["style"].to_pylist())

    def add_transform(self, name: str, records: Sequence[Record], scores: np.ndarray, flagged: np.ndarray) -> None:
        """Keep what the guard says of goals that a transform wrote.

        Args:
            name: of the transform.
            records: n goals, transformed.
            scores, flagged: the guard's, [n]; a score is NaN where it refused to judge.
        """
        self._transformed = pa.concat_tables([self._transformed, self._table(name, records, scores, flagged)])
        self.write()

    def add_part(self, name: str, records: Sequence[Record], scores: np.ndarray, flagged: np.ndarray) -> None:
        """Keep the successes of a transform at which the guard failed, until it is tried again: no rate counts them.

        Args:
            name, records, scores, flagged: as of `add_transform`; a score is NaN where there is none.
        """
        table = self._table(name, records, scores, flagged)
        self._part = table.filter(table["success"])

    def _table(self, name: str, records: Sequence[Record], scores: np.ndarray, flagged: np.ndarray) -> pa.Table:
        judged = np.isfinite(scores).tolist()
        table = to_table(
            {**record, "guard_version": self.guard, "scores": {"guard": float(score)} if read else {}}
            for record, score, read in zip(records, scores, judged, strict=True)
        )
        columns = {
            "style": name,
            "action": _TRANSFORM,
            "iteration": None,
            "valid": judged,
            "success": [
                read and bool(said) != record["unsafe"]
                for read, said, record in zip(judged, flagged, records, strict=True)
            ],
            "rejected": [None if read else REFUSED for read in judged],
        }
        for key, value in columns.items():
            values = value if isinstance(value, list) else [value] * len(records)
            table = table.append_column(key, pa.array(values, _COLUMNS.field(key).type))
        return table

    def write(self, problem: str | None = _UNENDED) -> None:
        """Write all files as of now; `problem`: why they are not complete, None where they are."""
        attempts = read_attempts(self.attackers)
        found = (each.select(_COLUMNS.names) for each in (attempts, left_successes(self.attackers)))
        untried = pc.invert(pc.is_in(self._part["style"], self._transformed["style"]))
        table = pa.concat_tables([*found, self._transformed, self._part.filter(untried)])
        write_table(table, self.directory / "attacks.parquet")
        lines = [json.dumps(item, ensure_ascii=False) for item in evaluation_items(table.to_pylist())]
        write_text(self.directory / "successes.jsonl", "".join(f"{line}\n" for line in lines))
        self.summary = {
            "target": self.target,
            "guard": self.guard,
            "complete": problem is None,
            "errors": [] if problem is None else [problem],
            "goals_left_out": self.goals_left_out,
            **summary(attempts, self._transformed),
        }
        write_text(self.directory / "summary.json", json.dumps(self.summary, indent=2) + "\n")


def _summary_in(directory: Path) -> dict[str, Any]:
    path = directory / "summary.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def has_ended(directory: Path) -> bool:
    """Whether a directory holds findings that are complete."""
    return (directory / "config.yaml").exists() and bool(_summary_in(directory).get("complete"))


def summary(attempts: pa.Table, transformed: pa.Table) -> dict[str, Any]:
    """Return the figures: of the attackers' attempts at the top, of each transform under `transforms`.

    Args:
        attempts, transformed: tables of `ATTEMPTS`; the latter needs no embeddings.
    """
    rows, by_transform = (each.select(_COLUMNS.names).to_pylist() for each in (attempts, transformed))
    successes = attempts.filter(attempts["success"])
    return {
        **tally(rows),
        "rejected": dict(sorted(Counter(row["rejected"] for row in rows if row["rejected"]).items())),
        "diversity": diversity_of(successes),
        "by_label": tallies(rows, _label),
        "by_category": tallies(rows, category_of),
        "by_style": tallies(rows, _style),
        "transforms": {
            name: {**figures, "by_label": tallies([row for row in by_transform if row["style"] == name], _label)}
            for name, figures in tallies(by_transform, _style).items()
        },
    }


def tally(rows: Rows) -> dict[str, Any]:
    """Return counts and rates of attempts: success over the valid ones, yield over all; None where there are none."""
    valid, successes = sum(row["valid"] for row in rows), sum(row["success"] for row in rows)
    return {
        "attempts": len(rows),
        "valid": valid,
        "successes": successes,
        "success_rate": successes / valid if valid else None,
        "interval": wilson(successes, valid),
        "yield": successes / len(rows) if rows else None,
    }


def tallies(rows: Rows, name_of: Callable[[dict[str, Any]], str]) -> dict[str, dict[str, Any]]:
    """Return the tally of each name, in the order of names."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(name_of(row), []).append(row)
    return {name: tally(by_name[name]) for name in sorted(by_name)}


def _label(row: dict[str, Any]) -> str:
    return "unsafe" if row["unsafe"] else "benign"


def _style(row: dict[str, Any]) -> str:
    return row["style"]


def evaluation_items(rows: Rows) -> list[dict[str, Any]]:
    """Return the successes as the lines of an evaluation file, each text once; the tag is its style or transform."""
    by_text = {row["text"]: row for row in rows if row["success"]}
    return [
        {
            "id": digest(text),  # not the record's, which texts share that differ in case or invisible characters alone
            "text": text,
            "response": None,
            "unsafe": row["unsafe"],
            "categories": row["categories"],
            "tags": [row["style"]],
        }
        for text, row in by_text.items()
    ]


def show_findings(console: Console, found: dict[str, Any]) -> None:
    """Print the figures of a summary; no text of an attack is among them."""
    labels = {f"all {label}": values for label, values in found["by_label"].items()}
    _show(console, "attackers, by category of the goal", {"all": found, **labels, **found["by_category"]})
    _show(console, "attackers, by style", found["by_style"])
    diversity = found["diversity"]
    console.print(
        f"attackers' successes: unique clusters {diversity['unique_clusters']}, "
        f"mean distance {share_text(diversity['mean_distance'])}, self-BLEU {share_text(diversity['self_bleu'])}",
        highlight=False,
    )
    _show(console, "transforms", dict(sorted(found["transforms"].items(), key=_by_success)))


def _by_success(entry: tuple[str, dict[str, Any]]) -> tuple[bool, float]:
    return entry[0] != UNTRANSFORMED, -(entry[1]["success_rate"] or 0.0)


def _show(console: Console, title: str, rows: dict[str, dict[str, Any]]) -> None:
    if not rows:
        return
    table = Table(title=title)
    for column in ("", "attempts", "valid", "successes", "success rate", "95% interval", "yield"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in rows.items():
        interval = values["interval"]
        table.add_row(
            name,
            *(str(values[key]) for key in ("attempts", "valid", "successes")),
            share_text(values["success_rate"]),
            "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
            share_text(values["yield"]),
        )
    console.print(table)
