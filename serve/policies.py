"""Policies of a service: a folder of YAML files (`guardrail.policy`), read again when they change.

python -m serve.policies lint FILE_OR_FOLDER ...
python -m serve.policies propose --guard DIR --benign FILE --output FILE.yaml [--flag-fpr 0.05] [--block-fpr 0.01]
                                 [--unsafe FILE] [--picture FILE.png] [--data-dir DIR]

`propose` finds the thresholds at which so many of your own benign texts are flagged and blocked, and shows what other
thresholds would do. Texts: a file of lines (.txt), or the column "text" of CSV, TSV, JSON lines or parquet. A file that
is named as a registered evaluation set, or whose column "source" names one, is refused, and with --data-dir also one
that shares texts with a set there; a policy tells what it was fitted on, and `lint` refuses it for the same reasons.
"""

import argparse
import logging
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from guardrail.calibration import choose_threshold
from guardrail.files import write_text
from guardrail.fitted_on import FittedOn, fitted_on
from guardrail.guard import Guard
from guardrail.policy import GUARDS_OWN, Policy, read_policy
from guardrail.records import record_id
from guardrail.rows import raise_problems, read_rows, text_problem
from guardrail.seeds import embedded_seeds
from guardrail.taxonomy import UNSAFE

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,63}", re.ASCII)
_SUFFIX = ".yaml"
_SHOWN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # false-positive rates of the table

logger = logging.getLogger("ray.serve")


class Policies:
    """The policies of a folder. A file that holds none is logged and left out: a draft must not keep a replica down.

    Raises:
        ValueError: it is no folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"there is no folder of policies {folder}")
        self.folder = folder
        self._read: dict[str, tuple[tuple[int, ...], Policy]] = {}
        for name in self.names():
            self.get(name)

    def get(self, name: str) -> Policy | None:
        """Return a policy as its file is now, None if there is none of this name.

        A file that holds no policy is logged, and the last one that it held, if any, stays in force.
        """
        path = self.folder / (name + _SUFFIX)
        try:
            status = path.stat() if _is_name(name) else None
        except OSError:
            status = None
        if status is None:
            self._read.pop(name, None)
            return None
        changed = status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size
        known = self._read.get(name)
        if known is None or known[0] != changed:
            try:
                policy = read_policy(path)
            except ValueError as error:
                logger.error("A policy is not taken, one that was there before stays in force: %s", error)
                if known is None:
                    return None
                policy = known[1]
            self._read[name] = changed, policy
        return self._read[name][1]

    def names(self) -> list[str]:
        """Return the names of all policies there are now."""
        return sorted(path.stem for path in self.folder.glob(f"*{_SUFFIX}") if _is_name(path.stem))


def read_policies(folder: Path | None, default: str | None) -> Policies | None:
    """Return the policies of a folder, None without one.

    Raises:
        ValueError: as `Policies`; or there is no policy of the default's name.
    """
    policies = Policies(folder) if folder else None
    if default not in (None, GUARDS_OWN) and (policies is None or policies.get(default) is None):
        raise ValueError(f"there is no policy {default!r} in {folder or 'no folder: name one (--policies)'}")
    return policies


def _is_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and name != GUARDS_OWN


def lint(paths: Sequence[Path]) -> list[str]:
    """Return what is wrong with policies: files, or all of a folder."""
    problems = []
    for path in paths:
        for file in sorted(path.glob(f"*{_SUFFIX}")) if path.is_dir() else [path]:
            if not _is_name(file.stem):
                problems.append(
                    f"{file}: a policy's name has up to 64 letters, digits, '.', '-' and '_', and is not {GUARDS_OWN!r}"
                )
            try:
                read_policy(file)
            except ValueError as error:
                problems.append(str(error))
    return problems


class Texts(NamedTuple):
    """The texts of a file, and what its rows name as their source."""

    texts: list[str]
    sources: frozenset[str]


def read_texts(path: Path) -> Texts:
    """Return the texts of a file: its lines (.txt), or its column "text".

    Raises:
        ValueError: it cannot be read, or a row has no text.
    """
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {path}: {error}") from None
        return Texts([line for line in lines if line.strip()], frozenset())
    rows = list(read_rows(path))
    problems = [(row, row.problem or text_problem(row.values.get("text"))) for row in rows]
    raise_problems(path, [f"{row.where}: text {problem}" for row, problem in problems if problem])
    sources = frozenset(source for row in rows if isinstance(source := row.values.get("source"), str))
    return Texts([row.values["text"] for row in rows], sources)


def _read_to_fit(path: Path, data_dir: Path | None) -> tuple[list[str], FittedOn]:
    """Return the texts of a file, and its entry for the policy that is fitted on them.

    Raises:
        FittedOnEvaluationSet: they are of a registered evaluation set.
        ValueError: as `read_texts`; or the data folder cannot be read.
    """
    texts, sources = read_texts(path)
    return texts, fitted_on(path.name, [record_id(text) for text in texts], sources, data_dir)


def propose(benign: np.ndarray, unsafe: np.ndarray, flag_fpr: float, block_fpr: float, description: str) -> Policy:
    """Return the policy that flags and blocks so many of benign texts.

    Args:
        benign, unsafe: scores in [0, 1] of texts of each kind.
        flag_fpr, block_fpr: wanted false-positive rates; flagging is at least as likely as blocking.
        description: of the policy.

    Raises:
        ValueError: rates that cannot be, or too few benign texts to tell them.
    """
    if not 0 < block_fpr <= flag_fpr < 1:
        raise ValueError(f"rates must be 0 < --block-fpr ({block_fpr:g}) <= --flag-fpr ({flag_fpr:g}) < 1")
    if len(benign) * block_fpr < 1:
        raise ValueError(
            f"{len(benign)} benign texts cannot tell a false-positive rate of {block_fpr:g}: "
            f"give at least {math.ceil(1 / block_fpr)}"
        )
    # Six digits are read well; rounded up, no more benign texts reach them.
    flag, block = (max(1, math.ceil(_threshold(benign, unsafe, fpr) * 1e6)) / 1e6 for fpr in (flag_fpr, block_fpr))
    if block > 1:
        raise ValueError("more of the benign texts than that have the highest score there is; are they benign?")
    thresholds = {"block": block} if flag >= block else {"flag": flag, "block": block}
    return Policy.model_validate({"description": description, "thresholds": {UNSAFE: thresholds}})


def _threshold(benign: np.ndarray, unsafe: np.ndarray, fpr: float) -> float:
    scores = np.concatenate([benign, unsafe])
    return choose_threshold(scores, np.arange(len(scores)) >= len(benign), fpr)


def trade_off(benign: np.ndarray, unsafe: np.ndarray) -> str:
    """Return a table of what thresholds would do."""
    lines = [f"{'false positives':>16}{'threshold':>12}{'of the unsafe':>16}"]
    for fpr in _SHOWN:
        if len(benign) * fpr >= 1:
            threshold = _threshold(benign, unsafe, fpr)
            lines.append(f"{fpr:>16.1%}{threshold:>12.4f}{(unsafe >= threshold).mean():>16.1%}")
    return "\n".join(lines)


def draw_trade_off(benign: np.ndarray, unsafe: np.ndarray, policy: Policy, path: Path) -> None:
    """Write a picture of the same: shares of benign and of unsafe texts over all thresholds.

    Raises:
        ValueError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("a picture needs matplotlib: pip install matplotlib, or leave --picture out") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for scores, name, colour in ((benign, "benign texts", "#2563eb"), (unsafe, "unsafe texts", "#dc2626")):
        ordered = np.sort(scores)
        axes.step(ordered, 1 - np.arange(len(ordered)) / len(ordered), where="pre", label=name, color=colour)
    for action, style in (("flag", ":"), ("block", "--")):
        threshold = getattr(policy.thresholds[UNSAFE], action)
        if threshold is not None:
            axes.axvline(threshold, color="#374151", linestyle=style, label=f"{action} from {threshold:.3f}")
    axes.set(xlabel="threshold", ylabel="share that reaches it", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check policies or propose one; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.policies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("lint").add_argument("paths", type=Path, nargs="+")
    proposal = commands.add_parser("propose")
    proposal.add_argument("--guard", type=Path, required=True, help="guard directory")
    proposal.add_argument("--benign", type=Path, required=True, help="texts of yours that must pass")
    proposal.add_argument("--unsafe", type=Path, help="texts that must not; by default the seeds of rayguard")
    proposal.add_argument("--flag-fpr", type=float, default=0.05, help="share of benign texts flagged (%(default)s)")
    proposal.add_argument("--block-fpr", type=float, default=0.01, help="share of them blocked (%(default)s)")
    proposal.add_argument("--output", type=Path, required=True, help="the policy, FILE.yaml")
    proposal.add_argument("--data-dir", type=Path, help="local copies of evaluation sets, of which no text may be")
    proposal.add_argument("--picture", type=Path, help="the trade-off, FILE.png or .svg")
    options = parser.parse_args(arguments)
    try:
        if options.command == "lint":
            problems = lint(options.paths)
            print("\n".join(problems) or "ok", file=sys.stderr if problems else sys.stdout)
            return 1 if problems else 0
        _propose(options)
    except (ValueError, OSError) as error:
        print(f"serve.policies: {error}", file=sys.stderr)
        return 2
    return 0


def _propose(options: argparse.Namespace) -> None:
    benign_texts, fitted = _read_to_fit(options.benign, options.data_dir)
    if options.unsafe:
        unsafe_texts, _ = _read_to_fit(options.unsafe, options.data_dir)
    else:
        unsafe_texts = [seed["text"] for seed in embedded_seeds() if seed["unsafe"]]
        print("Unsafe texts are the shipped seeds; a guard trained on them finds more of them than of others.")
    options.output.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    guard = Guard.from_pretrained(options.guard, backend="auto")  # as it is served, whose scores differ a little
    benign = guard.probabilities(benign_texts)[:, 0]
    unsafe = guard.probabilities(unsafe_texts)[:, 0]
    description = f"Proposed for guard {guard.card.version} ({guard.card.digest}) on {len(benign)} benign texts."
    policy = propose(benign, unsafe, options.flag_fpr, options.block_fpr, description)
    policy = policy.model_copy(update={"fitted_on": fitted})
    print(trade_off(benign, unsafe))
    write_text(options.output, yaml.safe_dump(policy.model_dump(exclude_none=True), sort_keys=False))
    print(f"Wrote {options.output}")
    if options.picture:
        draw_trade_off(benign, unsafe, policy, options.picture)
        print(f"Wrote {options.picture}")


if __name__ == "__main__":
    sys.exit(main())
