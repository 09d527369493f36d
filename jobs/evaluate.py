"""Measure a guard, or a service, on evaluation sets, by its own decisions.

python jobs/evaluate.py --guard runs/laptop/guard --data xstest my-set.jsonl --output metrics.json [--data-dir DIR]
python jobs/evaluate.py --guard runs/laptop/guard --data all --transforms all --output metrics.json --data-dir DIR
python jobs/evaluate.py --guard guards/default --backend onnx-int8 --data xstest --output metrics.json
python jobs/evaluate.py --guard https://HOST/v1/moderations --data xstest --output metrics.json
python jobs/evaluate.py --guard qwen3guard+https://HOST/v1/chat/completions --data xstest --output metrics.json

`--data all` takes every registered evaluation set; those that cannot be loaded are named at the end, with exit status
1, and the others are measured. `--transforms` measures robustness, too: recall and false positives on requests that
encodings, lookalikes, typing errors and wrappers have written anew, beside those on the same requests as they were.
Intervals are 95%. What others have published of their guards on a set is shown and written beside what is measured
(guardrail/published_results.yaml).

A service speaks OpenAI's moderation contract, or it completes chats and has a guard model, whose format stands before
the URL: llama-guard, qwen3guard, wildguard (at /v1/completions, for it has no chat template), shieldgemma,
granite-guardian, or rubric for any instruct model. Where it has several models, "#" and one's name end its URL. It is
sent the texts of the sets; a response and its prompt are one text to a moderation endpoint, which cannot know which
is which, and shieldgemma refuses responses; its key, if it wants one, is in RAYGUARD_TARGET_KEY. The output names it
by the model it says it is (ours with its digest), where a directory has its digest, and `backend`, what computed it
(`--backend auto` takes what the service would). A service tells no threshold, and its scores only rank texts:
`threshold` and `ece` are null. A text's score is that of a moderation service's highest category, or the probability
of a guard model's verdict not being "safe"; Qwen3Guard's "Controversial" is unsafe, as in its strict mode. Texts that
a service refuses, answers without a verdict, or fails at whenever it is asked, are counted (`refused`), and the rest
is measured. If it fails, what was measured before is written, and why the rest was not (`incomplete`). Its verdicts
are kept beside the output, in OUTPUT.verdicts without the texts, until all is measured: the same command asks only for
those that are missing, of a model of the same name.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from guardrail.backends import BackendName
from guardrail.evaluation import evaluate_set
from guardrail.evaluation_sets import ALL_SETS, load_available_evaluations, raise_missing
from guardrail.files import check_writable, write_text
from guardrail.guard import Guard
from guardrail.kept_verdicts import VERDICTS
from guardrail.published import published_on
from guardrail.remote import RemoteGuard
from guardrail.robustness import add_robustness
from guardrail.targets import is_url, open_guard
from jobs.settings import EvaluationSettings, load, save_beside
from jobs.terminal import orderly_end, show_metrics, show_published, show_transforms


class EvaluateSettings(EvaluationSettings):
    """Settings of the evaluation."""

    guard: str = Field(
        description="guard directory, or URL of a moderation endpoint or, as FORMAT+URL, of a chat model"
    )
    backend: BackendName = Field(
        "torch", description="what computes a guard directory; auto: the fastest that it has here, as when served"
    )
    data: list[str] = Field(min_length=1, description="evaluation sets by name (all: every registered one), or files")
    output: Path = Field(description="JSON file to write")
    data_dir: Path | None = Field(None, description="local copies of public data sets")


def main(arguments: Sequence[str]) -> None:
    """Write and print a guard's metrics."""
    settings = load(EvaluateSettings, arguments, __doc__)
    metrics: dict[str, Any] = {}
    verdicts = Path(f"{settings.output}.{VERDICTS}")
    with orderly_end(verdicts if is_url(settings.guard) else None):
        if settings.output.is_dir():
            raise ValueError(f"{settings.output} is a folder; --output takes the JSON file to write")
        check_writable(settings.output)  # else hours are spent before that is found
        guard = open_guard(settings.guard, backend=settings.backend)
        if isinstance(guard, RemoteGuard):
            guard.remember(verdicts)
        sets, missing = load_available_evaluations(settings.data, settings.data_dir)
        ended: str | None = "interrupted"
        try:
            for name, items in sets.items():
                print(f"{name}: {len(items)} texts", file=sys.stderr)
                metrics[name] = evaluate_set(guard, items, seed=settings.seed)
            if settings.transforms:
                add_robustness(
                    metrics, guard, sets, settings.transforms, sample=settings.transform_sample, seed=settings.seed
                )
            ended = "; ".join(f"{name}: {why}" for name, why in missing.items()) or None
        except Exception as error:
            ended = str(error) or type(error).__name__
            raise
        finally:  # what was asked of a service may have taken hours, and money
            if metrics or not settings.output.exists():  # of an earlier evaluation, of which nothing is measured again
                _report(settings, guard, metrics, ended)
        if isinstance(guard, RemoteGuard) and not ended:
            shutil.rmtree(verdicts, ignore_errors=True)
        raise_missing(missing, "measured")


def _report(settings: EvaluateSettings, guard: Guard | RemoteGuard, metrics: dict[str, Any], ended: str | None) -> None:
    """Write and print what was measured, and what is published on the registered sets among these.

    `ended` says what ended it before all was measured; None: nothing.
    """
    registered = [name for name in metrics if not {name, ALL_SETS}.isdisjoint(settings.data)]
    published = {name: others for name in registered if (others := published_on(name))}
    backend = guard.backend.name if isinstance(guard, Guard) else None
    found = {
        "guard": guard.name if isinstance(guard, RemoteGuard) else guard.card.digest,
        **({"backend": backend} if backend else {}),
        **({"incomplete": ended} if ended else {}),
        **({"transform_sample": settings.transform_sample} if settings.transforms else {}),
        "sets": metrics,
        "published": published,
    }
    try:
        write_text(settings.output, json.dumps(found, indent=2) + "\n")
        save_beside(settings, settings.output)
    finally:  # on a full disk, too, what was measured is told
        if metrics:
            show_metrics(metrics, f"computed by {backend}" if backend else None)
            show_transforms(metrics, settings.transform_sample)
            show_published(metrics, published)


if __name__ == "__main__":
    main(sys.argv[1:])
