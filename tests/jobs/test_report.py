"""The report of a written run: what `report.json` and the page hold, and how the page is in a browser."""

import json
import re
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.report import MOST_TEXTS, _attacks, main, summary
from jobs.run import Manifest
from tests.browser import binary, chromium
from tests.written_run import NOT_PROMOTED, ROUNDS, SETS, forget_what_older_versions_did_not_keep, write_run

DESKTOP = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    settings = {"adversary": {"model": "tiny", "groups": 8}}
    return write_run(tmp_path_factory.mktemp("runs") / "another", seed=3, attempts=60, config=settings)


def page_of(run_dir, *arguments):
    main([str(run_dir), *map(str, arguments)])
    return (run_dir / "report.html").read_text()


def section(page, name):
    """Return a section of the page as words."""
    (found,) = re.findall(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", found).split())


def test_every_section_is_drawn(run):
    page = page_of(run)
    assert 'class="note absent">No curves: all items have one label' in page and page.count('class="note absent"') == 2
    assert len(page) < 2_000_000
    for name in SETS:
        assert f"<h3>{name}</h3>" in page
    for title in ("ROC curves on public", "Precision-recall curves on held_out", "Reliability on validation"):
        assert f'role="img" aria-label="{title}' in page
    assert f"round {NOT_PROMOTED}, not promoted" in section(page, "matrix")
    assert "digest-0" in section(page, "with") and "bundled:mini" in section(page, "with")
    assert section(page, "sets").count("0.041 cross-fitted") == ROUNDS
    assert page.count("<circle") == 450 and "150 of 280 synthetic records" in section(page, "map")
    assert re.findall(r'href="#([a-z]+)"', page) == re.findall(r'<section id="([a-z]+)">', page)


def test_failure_signatures_are_shown_where_they_are_of_the_final_guard(run):
    share = {"what": "<attacks>", "n": 40, "value": 0.25, "interval": [0.14, 0.4]}
    row = {**share, "name": "fiction", "metric": "recall", "beside": {**share, "value": 0.75}, "note": ""}
    path = run / "failure_signatures.json"
    final = json.loads((run / "report.json").read_text())["rounds"]
    digest = [entry["guard"] for entry in final if entry["promoted"]][-1]
    try:
        path.write_text(json.dumps({"guard": digest, "signatures": {"styles": [row], "drift": []}}))
        shown = section(page_of(run), "signatures")
        assert "styles" in shown and "&lt;attacks&gt; recall 40 25.0% 14.0 to 40.0% &lt;attacks&gt; 40 75.0%" in shown
        path.write_text(json.dumps({"guard": "another", "signatures": {"styles": [row]}}))
        assert "was not run on this guard" in section(page_of(run), "signatures")
    finally:
        path.unlink()


def test_the_confusion_is_that_of_the_metrics(run):
    metrics = json.loads((run / "rounds/00/metrics.json").read_text())["evaluation"]["public"]
    own = page_of(run).split("<h3>public</h3>")[1]
    hits, misses, alarms, passed = map(int, re.findall(r'<td class="(?:right|wrong)">(\d+)', own)[:4])
    assert hits + misses == alarms + passed == 150
    assert metrics["f1"] == pytest.approx(2 * hits / (2 * hits + misses + alarms))


def test_the_matrix_shows_each_guard_against_each_round(run):
    by_round = Manifest.read(run).phases[f"{ROUNDS:02d}/harden"]["hardening"]["by_round"]
    shown = re.findall(r"(\d+) of (\d+);", section(page_of(run), "matrix"))
    expected = [(n, of) for row in by_round["successes"] for n, of in zip(row, by_round["stored_attacks"], strict=True)]
    assert [(int(n), int(of)) for n, of in shown] == expected and len(expected) == (ROUNDS + 1) * ROUNDS


def test_successes_of_no_iteration_that_ended_are_in_no_rate(run, tmp_path):
    path = tmp_path / "attacks.parquet"
    table = pq.read_table(run / "rounds/01/attacks.parquet")
    left = table.filter(table["success"])
    left = left.set_column(
        left.schema.get_field_index("iteration"), table.schema.field("iteration"), pa.nulls(len(left), pa.int32())
    )
    pq.write_table(pa.concat_tables([table, left]), path)
    assert len(left) and _attacks(path, {}) == _attacks(run / "rounds/01/attacks.parquet", {})


def test_texts_are_in_the_file_only_where_asked_for(run, tmp_path, monkeypatch):
    assert "attack 1." not in page_of(run) and "--texts" in section(page_of(run), "texts")
    stored = Manifest.read(run).phases[f"{ROUNDS:02d}/harden"]["hardening"]["stored_attacks"]
    page = page_of(run, "--texts")
    assert stored <= MOST_TEXTS and f"{stored} of {stored} stored attacks" in section(page, "texts")
    assert page.count('<td class="text attack">') == stored
    assert "<details class=" in page and "<details open" not in page
    assert "&lt;b&gt;on&lt;/b&gt;" in page and "<b>on</b>" not in page
    monkeypatch.setattr("jobs.report.MOST_TEXTS", 7)
    page = page_of(run, "--texts")
    rounds = re.findall(
        r'<tr><th scope="row">(\d)</th><td class="text">[^<]*</td><td class="text">[^<]*</td><td class="t', page
    )
    assert f"7 of {stored} stored attacks" in section(page, "texts")
    assert sorted(rounds) == ["1", "1", "1", "2", "2", "3", "3"]


def test_a_run_of_an_older_version_says_what_it_lacks(other, tmp_path):
    older = Path(shutil.copytree(other, tmp_path / "older", symlinks=True))
    forget_what_older_versions_did_not_keep(older)
    shutil.rmtree(older / "rounds/00/guard")
    (older / "config.yaml").unlink()
    page = page_of(older, "--against", other)
    for name, what in (("matrix", "matrix"), ("sets", "curves"), ("categories", "categories"), ("curation", "funnel")):
        assert f"No {what}: " in section(page, name)
    assert "No map: " in section(page, "map") and "No settings: " in section(page, "with")
    assert "public this run" in section(page, "against")
    assert "older" in section(page_of(other, "--against", older), "against")


def test_two_runs_are_set_side_by_side(run, other):
    text = section(page_of(run, "--against", other), "against")
    assert "adversary.groups 13 8" in text and "seed 0 3" in text and "run_dir" not in text
    assert "code code-0 code-3" in text and "version of ray" not in text  # the same
    for row in ("round 1, success rate", "round 3, yield", "attack/generate", "success of stored attacks on all goals"):
        assert row in text
    assert "The same settings, code, versions and machine" in section(page_of(run, "--against", run), "against")
    assert set(json.loads((run / "report.json").read_text())) == {"run", "rounds", "hardening"}


def test_versions_are_those_the_run_was_made_with(run):
    page_of(run)
    assert json.loads((run / "report.json").read_text())["run"]["versions"] == {"rayguard": "0.1.0", "ray": "2.60.0"}


def test_a_run_without_one_valid_attempt_and_without_promotion_has_a_page_too(tmp_path):
    empty = write_run(tmp_path / "empty", attempts=60)
    for path in empty.glob("rounds/*/attacks.parquet"):
        path.unlink()
    for path in empty.glob("rounds/0[1-9]/metrics.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"promoted": False}))
    page = page_of(empty)
    assert "No curve: no attempt of any round was valid" in section(page, "attacks")
    assert "No diversity: no round attacked" in section(page, "diversity")
    assert "it is the final guard, too" in page


def test_a_run_that_has_not_ended_or_lacks_files_has_no_report(run, tmp_path, capsys):
    def refusal(*arguments: str) -> str:
        with pytest.raises(SystemExit, match="^1$"):
            main([*arguments])
        return capsys.readouterr().err

    part = tmp_path / "part"
    part.mkdir()
    assert "holds no run" in refusal(str(part)) and "holds no run" in refusal(str(run), "--against", str(part))
    (part / "manifest.json").write_text('{"config_digest": "d", "phases": {"00/seed": {"seconds": 1}}}')
    assert "has not ended; the command that began it" in refusal(str(part))
    shutil.copytree(run, tmp_path / "copy", symlinks=True)
    next((tmp_path / "copy").rglob("metrics.json")).unlink()
    assert "metrics.json" in refusal(str(tmp_path / "copy"))


def test_the_summary_sets_the_two_guards_side_by_side(run):
    page_of(run)
    report = json.loads((run / "report.json").read_text())
    text = summary(report)
    assert text.startswith("18 min 1 s, peak memory 3.5 GiB, 360 attack attempts\n")
    attacks, f1 = report["rounds"][1]["attacks"], report["rounds"][1]["evaluation"]["validation"]["f1"]
    assert f"| 1 | 120 | {attacks['valid']} | {attacks['successes']} | 3.0e-05 | {f1:.3f} | yes |" in text
    assert "| false positives, benign held-out seeds | 0.050 | 0.037 |" in text


@pytest.mark.skipif(binary() is None, reason="no chromium or chrome is installed")
def test_in_a_browser_the_page_asks_for_nothing_and_fits_a_phone_and_a_desktop(run, other):
    page_of(run, "--against", other, "--texts")
    profile = tempfile.mkdtemp()  # a short path, for the browser's sockets
    try:
        with chromium(binary(), Path(profile)) as browser:
            browser.command("Emulation.setDeviceMetricsOverride", **PHONE)
            browser.open((run / "report.html").as_uri())
            assert [each["request"]["url"] for each in browser.told("Network.requestWillBeSent")] == [
                (run / "report.html").as_uri()
            ]
            assert browser.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
            browser.command("Emulation.setDeviceMetricsOverride", **DESKTOP)
            assert (
                browser.evaluate("document.documentElement.scrollWidth <= innerWidth && innerWidth") == DESKTOP["width"]
            )
            assert not browser.evaluate("document.querySelector('.attack').checkVisibility()")
            browser.evaluate(
                "document.querySelector('circle.success').dispatchEvent(new Event('click', {bubbles: true}))"
            )
            assert browser.evaluate("document.querySelector('.says').textContent").startswith("attack of round")
            browser.evaluate("document.getElementById('show-seed').click()")
            hidden = (
                "[...document.querySelectorAll('circle')].filter(c => getComputedStyle(c).display == 'none').length"
            )
            assert browser.evaluate(hidden) == 150
            named = [node for node in browser.spoken() if node["role"]["value"] == "image"]
            assert len(named) > 15 and all(node["name"]["value"] for node in named)
            assert browser.complaints() == []
    finally:
        shutil.rmtree(profile, ignore_errors=True)
