"""Published numbers: each is of a set that we know, by a metric that we have, from a source that can be looked up."""

import re

from guardrail.dataset_registry import registry
from guardrail.metrics import binary_metrics
from guardrail.published import published_on, published_results


def test_every_number_has_a_known_set_metric_and_source():
    published = published_results()
    assert {entry.source for entry in published.guards} == set(published.sources)  # none unknown, none unused
    for source in published.sources.values():
        assert source.title and re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", source.url)
    for entry in published.guards:
        assert re.fullmatch(r"\d+(\.\d+)?B", entry.size), entry.guard
        for name, metrics in entry.results.items():
            assert registry()[name].use == "eval", name
            assert metrics and metrics.keys() <= binary_metrics([True], [1.0], 0.5).keys()
            assert all(0 < value <= 1 for value in metrics.values()), (entry.guard, name)


def test_no_number_is_given_twice():
    given = [
        (entry.guard, entry.size, name, metric)
        for entry in published_results().guards
        for name, metrics in entry.results.items()
        for metric in metrics
    ]
    assert len(given) == len(set(given))


def test_the_numbers_on_a_set_come_with_what_is_needed_to_judge_them():
    [shieldgemma] = [each for each in published_on("openai-moderation") if each["guard"] == "ShieldGemma"]
    assert shieldgemma["metrics"] == {"f1": 0.821, "auprc": 0.907}
    assert (shieldgemma["size"], shieldgemma["threshold"], shieldgemma["reported_by"]) == ("9B", "best", "makers")
    assert shieldgemma["source"]["url"] == "https://arxiv.org/abs/2407.21772"
    assert published_on("xstest") == []
