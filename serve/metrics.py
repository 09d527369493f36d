"""What a replica tells Ray's metrics, and so Prometheus, Grafana and the dashboard.

Serve's own say how requests fare on their way; these, what the guard does with them. No text and no key is in any.
"""

from collections import Counter as Tally
from collections.abc import Sequence

from ray.serve.metrics import Counter, Gauge, Histogram

from guardrail.guard import Verdict
from guardrail.taxonomy import UNSAFE

_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
#: Name and meaning of every metric; a test holds the shipped Grafana dashboard against it.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rayguard_requests": ("Requests answered.", ("route", "status")),
    "rayguard_texts": ("Texts judged, by what was done with the request they came in.", ("action",)),
    "rayguard_unsafe_texts": ("Unsafe texts, by category; a text counts in each that is on.", ("category",)),
    "rayguard_disguised_texts": ("Texts that say something else in plain letters.", ()),
    "rayguard_cached_texts": ("Texts whose verdict was known.", ()),
    "rayguard_windows": ("Windows read.", ()),
    "rayguard_tokens": ("Tokens read.", ()),
    "rayguard_failures": ("Requests that the model failed, or was late for.", ("failure",)),
    "rayguard_swaps": ("Guards offered, by whether they were taken or refused.", ("outcome",)),
    "rayguard_shadow_texts": ("Texts the shadow guard judged, by whether it agrees; or skipped.", ("outcome",)),
}
HISTOGRAMS: dict[str, tuple[str, list[float], tuple[str, ...]]] = {
    "rayguard_request_seconds": ("Time to answer a request.", _SECONDS, ("route",)),
    "rayguard_batch_texts": ("Texts read together.", [float(size) for size in _SIZES], ()),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "rayguard_waiting": ("Work that waits, in units of 512 characters.", ())
}


class Metrics:
    """The metrics of one replica."""

    def __init__(self) -> None:
        self._counters = {
            name: Counter(name, description=text, tag_keys=tags) for name, (text, tags) in COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(name, description=text, boundaries=boundaries, tag_keys=tags)
            for name, (text, boundaries, tags) in HISTOGRAMS.items()
        }
        self._gauges = {name: Gauge(name, description=text, tag_keys=tags) for name, (text, tags) in GAUGES.items()}

    def count(self, name: str, value: float = 1.0, **tags: str) -> None:
        """Add to a counter."""
        if value > 0:
            self._counters[name].inc(value, tags=tags)

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Add a value to a histogram."""
        self._histograms[name].observe(value, tags=tags)

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._gauges[name].set(value)

    def read(self, verdicts: Sequence[Verdict], thresholds: dict[str, float]) -> None:
        """Count verdicts that were computed.

        Args:
            verdicts: of one guard.
            thresholds: of that guard, by label; a label not named takes that of "unsafe".
        """
        self.count("rayguard_windows", sum(verdict.windows for verdict in verdicts))
        self.count("rayguard_tokens", sum(verdict.tokens for verdict in verdicts))
        self.count("rayguard_disguised_texts", sum(verdict.said is not None for verdict in verdicts))
        on = Tally(
            category
            for verdict in verdicts
            if verdict.unsafe
            for category, score in verdict.categories.items()
            if score >= thresholds.get(category, thresholds[UNSAFE])
        )
        for category, texts in on.items():
            self.count("rayguard_unsafe_texts", texts, category=category)
