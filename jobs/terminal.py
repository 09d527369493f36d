"""What a person at a terminal sees of a run, and how a run ends when it is interrupted."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from actors.errors import AdversaryError
from guardrail.curation import CurationReport
from guardrail.metrics import share_text
from guardrail.remote import TargetError
from guardrail.training_progress import Tell, TrainingError
from jobs.run import RunError


def terminal() -> Console:
    """Return the console a job prints to, with the libraries' own bars and hints out of its way."""
    transformers.utils.logging.disable_progress_bar()
    for handler in logging.getLogger("ray.data").handlers:
        # Ray's own, to the terminal: its plans and timings are in its log file. Other handlers are other people's.
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.ERROR)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # it warns of what it does by default
    # A log file or a pipe has no width of its own; a table wants more than the 80 columns that are assumed then.
    console = Console()
    return console if console.is_terminal else Console(width=120)


@contextmanager
def orderly_end(resumes_in: Path | None = None) -> Iterator[None]:
    """Turn what a user can mend into its message and exit status 1, Ctrl-C and SIGTERM into theirs and 130 and 143.

    Args:
        resumes_in: file or folder that the same command goes on with; None: it would begin anew.
    """

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    goes_on = f"the same command goes on in {resumes_in}"
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except (RunError, AdversaryError, TrainingError, ValueError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, TargetError) and resumes_in and resumes_in.exists():  # it may have answered before
            print(goes_on, file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as error:
        how = f"; {goes_on}" if resumes_in else ""  # it need not be there yet: some is kept beside it until then
        terminal().print(f"\n[yellow]interrupted[/]{how}", highlight=False, soft_wrap=True)
        raise SystemExit(143 if error.args else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def training_shown() -> Iterator[Tell]:
    """Yield what shows how far a training is: a bar, or lines where there is no terminal."""
    console = terminal()
    columns = (BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, note="")

        def show(done: int, steps: int, loss: float) -> None:
            note = f"{done} of {steps} steps, loss {loss:.3f}"
            # Of the share: a training of so many minutes learns on the way how many steps it has, and with a new total
            # the bar forgets how fast they were.
            bar.update(task, completed=done / steps, total=1.0, note=note)
            if not console.is_terminal:
                seconds = bar.tasks[task].time_remaining
                left = "" if seconds is None else f", {seconds / 60:.0f} min left"
                console.print(f"{note}{left}", highlight=False)

        yield show


def show_rounds(console: Console, rounds: list[dict[str, Any]]) -> None:
    """Print the rounds so far as a table; `rounds` are the report's entries."""
    table = Table(title="rounds so far")
    for column in ("round", "attempts", "valid", "success rate", "yield", "clusters", "probe", "F1", "FPR", "promoted"):
        table.add_column(column, justify="right")
    for entry in rounds:
        attacks, sync = entry["attacks"], entry["sync"]
        validation = entry["evaluation"]["validation"]
        table.add_row(
            str(entry["round"]),
            str(attacks["attempts"]),
            str(attacks["valid"]),
            share_text(attacks["success_rate"]),
            share_text(attacks["yield"]),
            str(attacks["diversity"]["unique_clusters"]),
            "-" if sync["probe_max_abs_logprob_diff"] is None else f"{sync['probe_max_abs_logprob_diff']:.1e}",
            share_text(validation["f1"]),
            share_text(validation["fpr"]),
            "yes" if entry["promoted"] else "no",
        )
    console.print(table)


def show_metrics(metrics: dict[str, Any], title: str | None = None) -> None:
    """Print a guard's metrics, a row for each evaluation set."""
    table = Table(title=title)
    columns = ("n", "positives", "f1", "precision", "recall", "fpr", "auprc", "auroc", "recall_at_1pct_fpr", "ece")
    for column in ("set", *columns):
        heading = column.replace("_", " ").replace("1pct", "1%")
        table.add_column(heading, justify="left" if column == "set" else "right")
    for name, values in metrics.items():
        cells = [values[column] for column in columns]
        table.add_row(name, *(str(cell) if isinstance(cell, int) else share_text(cell) for cell in cells))
    terminal().print(table)
    for name, values in metrics.items():
        if refused := values.get("refused"):
            terminal().print(f"{name}: the service refused {refused} texts more, which are not measured")


def show_published(metrics: dict[str, Any], published: dict[str, list[dict[str, Any]]]) -> None:
    """Print a guard's F1 and AUPRC beside the published ones of other guards, a table for each set that has any."""
    for name, others in published.items():
        ours = metrics[name]
        table = Table(
            title=f"beside published numbers of other guards on {name}",
            caption="threshold best: the one with the highest F1 on this very set"
            + (f"\n{others[0]['set']}" if others[0]["set"] else ""),
        )
        for column in ("guard", "f1", "auprc", "threshold", "source"):
            table.add_column(column, justify="right" if column in ("f1", "auprc") else "left")
        f1, auprc = (_with_interval(ours[key], ours["intervals"][key]) for key in ("f1", "auprc"))
        if ours["positives"] == ours["n"]:  # as papers have it; ours is undefined without benign items
            f1 = f"{share_text(2 * ours['recall'] / (1 + ours['recall']))} (2R / (1 + R))"
        table.add_row("this guard", f1, auprc, "own", "measured here", end_section=True)
        for other in others:
            table.add_row(
                f"{other['guard']} {other['size']}",
                *(share_text(other["metrics"].get(key)) for key in ("f1", "auprc")),
                other["threshold"],
                f"published, {other['source']['url'].replace('https://arxiv.org/abs/', 'arXiv ')}",
            )
        terminal().print(table)


def show_transforms(metrics: dict[str, Any], sample: int) -> None:
    """Print how a guard fares under transforms, a table for each evaluation set that was measured under them."""
    for name, values in metrics.items():
        if not values.get("transforms"):
            continue
        if not any(under["positives"] + under["negatives"] for under in values["transforms"].values()):
            terminal().print(f"{name}: transforms are tried on requests, and it has none without a response")
            continue
        table = Table(title=f"requests of {name}, at most {sample} of each label, written anew by transforms")
        for column in ("transform", "unsafe", "recall (95%)", "of plain", "benign", "fpr (95%)", "over plain"):
            table.add_column(column, justify="left" if column == "transform" else "right")
        for transform, under in values["transforms"].items():
            ratio, delta = under["recall_ratio"], under["benign_fpr_delta"]
            table.add_row(
                transform,
                str(under["positives"]),
                _with_interval(under["recall"], under["intervals"]["recall"]),
                share_text(ratio),
                str(under["negatives"]),
                _with_interval(under["fpr"], under["intervals"]["fpr"]),
                "-" if delta is None else f"{delta:+.3f}",
            )
        terminal().print(table)


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    shown = share_text(value)
    return shown if interval is None else f"{shown} ({interval[0]:.2f} to {interval[1]:.2f})"


def show_funnel(report: CurationReport) -> None:
    """Print how many rows intake and each stage of curation saw, kept and left out, and why."""
    table = Table()
    for column in ("stage", "in", "kept", "reasons"):
        table.add_column(column, justify="left" if column in ("stage", "reasons") else "right")
    for entry in report.funnel:
        reasons = ", ".join(f"{reason} {count}" for reason, count in entry["reasons"].items())
        table.add_row(entry["stage"], str(entry["in"]), str(entry["kept"]), reasons)
    terminal().print(table)
