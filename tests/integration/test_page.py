"""The page `/` as people use it, in a headless Chromium: with mouse, keyboard and screen reader."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from guardrail.taxonomy import CATEGORIES
from guardrail.transforms import TRANSFORMS
from tests.browser import Page, binary, chromium
from tests.served_guard import deploy, in_use, served
from tests.waiting import until

TEXT = '👋 <b>I will</b> find "you".'
_BINARY = binary()
_CTRL = 2

pytestmark = pytest.mark.skipif(_BINARY is None, reason="no chromium or chrome is installed")


@pytest.fixture(scope="module")
def address(ray_cluster: Any, guards: tuple[Path, Path]) -> Iterator[str]:
    with served(guards[0]) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    assert _BINARY is not None
    profile = tempfile.mkdtemp()  # a short path, for the browser's sockets
    try:
        with chromium(_BINARY, Path(profile)) as page:
            yield page
    finally:
        shutil.rmtree(profile, ignore_errors=True)  # its last processes may still write there


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    """The page, newly opened; whatever is done with it, it loads nothing from elsewhere and nothing goes wrong."""
    browser.open(address)
    yield browser
    assert browser.complaints() == []
    assert {each["request"]["url"].split("/")[2] for each in browser.told("Network.requestWillBeSent")} == {
        address.removeprefix("http://")
    }


def focused(page: Page) -> str:
    """What has the focus: its id, or its text where it has none."""
    return str(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))


def serve_guard(address: str, guards: tuple[Path, Path], number: int) -> None:
    deploy({"guard": str(guards[0])}, guard=str(guards[number]))
    until(lambda: (in_use(address) or "")[:1] == (f"tiny-{(0, 3)[number]}",), "the guard is in use")


def announced(page: Page) -> str:
    """What a screen reader is told by a region that it follows."""
    nodes = page.spoken()
    (region,) = [node for node in nodes if node["role"]["value"] == "status"]
    live = {each["name"]: each["value"]["value"] for each in region["properties"]}
    assert live["live"] == "polite"
    names = {node["nodeId"]: node["name"]["value"] for node in nodes if "name" in node}
    return " ".join(names.get(child, "") for child in region["childIds"])


@pytest.mark.parametrize(("number", "verdict"), [(0, "Allowed"), (1, "Blocked")])
def test_a_text_is_judged(page: Page, address: str, guards: tuple[Path, Path], number: int, verdict: str) -> None:
    serve_guard(address, guards, number)
    page.evaluate("document.getElementById('prompt').focus()")
    page.type(TEXT)
    assert announced(page) == ""
    button = page.evaluate(
        "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
        "(document.querySelector('#form button').getBoundingClientRect())"
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.command("Input.dispatchMouseEvent", type=kind, x=button[0], y=button[1], button="left", clickCount=1)
    until(lambda: page.evaluate("document.querySelectorAll('.bar').length") == len(CATEGORIES), "bars show")
    shown = "Array.from(document.querySelectorAll({}), each => each.textContent)"
    names = page.evaluate(shown.format("'.bars > span:nth-child(3n + 1)'"))
    values = [float(each.rstrip(" %")) for each in page.evaluate(shown.format("'.bars > span:nth-child(3n)'"))]
    assert set(names) == set(CATEGORIES) and values == sorted(values, reverse=True)
    assert page.evaluate("document.querySelector('.verdict').textContent") == verdict
    assert announced(page).startswith(verdict)
    # The tiny guards read all of so short a text at once. Markup in it is text.
    assert page.evaluate(shown.format("'mark'")) == ([TEXT] if verdict == "Blocked" else [])


def test_the_keyboard_suffices(page: Page) -> None:
    order = []
    for _ in range(5):
        page.press("Tab")
        order.append(focused(page))
        if order[-1] == "prompt":
            page.type(TEXT)
    assert order == ["prompt", "response", "Judge", "curl", "Python"]
    page.press(" ")
    assert "guard" in page.evaluate("document.getElementById('snippet').textContent")
    assert page.evaluate("document.querySelector('[data-show=python]').ariaPressed") == "true"
    page.evaluate("document.getElementById('response').focus()")
    page.press("Enter", _CTRL)
    until(lambda: page.evaluate("document.querySelectorAll('.bar').length") > 0, "bars show")


def test_all_that_can_be_used_has_a_name(page: Page) -> None:
    used = [node for node in page.spoken() if node["role"]["value"] in ("textbox", "button", "combobox", "group")]
    names = {node["name"]["value"] for node in used}
    assert {"Prompt", "Response (optional)", "Judge", "curl", "Python"} <= names
    assert "" not in names


def test_the_example_is_what_a_shell_sends(page: Page) -> None:
    page.evaluate("document.getElementById('prompt').focus()")
    page.type('It\'s \\ "you"')
    command = page.evaluate("document.getElementById('snippet').textContent")
    sent = command.split("-d '", 1)[1].removesuffix("'").replace("'\\''", "'")
    assert json.loads(sent) == {"prompt": 'It\'s \\ "you"'}


def test_an_error_is_told(browser: Page, address: str) -> None:
    browser.open(address)
    browser.evaluate("document.getElementById('prompt').value = '\\ud800'")  # half a surrogate pair
    browser.evaluate("document.getElementById('form').requestSubmit()")
    until(lambda: "surrogate" in announced(browser), "the error is announced")
    assert "surrogate" in browser.evaluate("document.getElementById('result').textContent")


def test_a_policy_marks_what_it_does_not_allow_and_what_a_disguise_says(
    browser: Page, address: str, guards: tuple[Path, Path], tmp_path: Path
) -> None:
    said = "how do i kill a python process that does not answer?"
    (tmp_path / "strict.yaml").write_text("thresholds: {unsafe: {block: 0.000001}}")
    deploy({"guard": str(guards[0])}, policies=str(tmp_path))
    until(lambda: "strict" in httpx.get(f"{address}/v1/policies").json(), "the policy is served")
    try:
        browser.open(address)
        until(lambda: browser.evaluate("document.querySelectorAll('#policy option').length") == 3, "it can be chosen")
        browser.evaluate("document.getElementById('policy').value = 'strict'")
        browser.evaluate("document.getElementById('prompt').focus()")
        browser.type(TRANSFORMS["base64"].apply(said, np.random.default_rng(0)))
        browser.press("Enter", _CTRL)
        until(lambda: browser.evaluate("document.querySelectorAll('mark').length") == 2, "both readings are marked")
        shown = browser.evaluate("document.getElementById('result').textContent")
        assert shown.startswith("BlockedBy policy strict, for unsafe.")
        assert "It is disguised (base_64), and says:" in shown
        assert browser.evaluate("document.querySelectorAll('mark')[1].textContent") == said
    finally:
        deploy({"guard": str(guards[0])})
