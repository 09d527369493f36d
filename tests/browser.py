"""A headless Chromium, driven through the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.waiting import PATIENCE, until

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # it refuses to be root with one
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little shared memory
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-port=0",
)


def binary() -> str | None:
    """Return the path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
    """One tab; `events`: all that it has told of, in order."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._session: str | None = None
        self._last = 0
        self.events: list[dict[str, Any]] = []
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result.

        Raises:
            RuntimeError: the browser refuses it.
        """
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        self._connection.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while (answer := json.loads(self._connection.recv(timeout=PATIENCE))).get("id") != self._last:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, url: str) -> None:
        """Go to a page and wait until it is there, with all that it loads at first."""
        self.events.clear()
        self.command("Page.navigate", url=url)
        until(lambda: self.evaluate("document.readyState") == "complete" and self.told("Page.loadEventFired"), url)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression.

        Raises:
            RuntimeError: it throws.
        """
        answer = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.command("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key; modifiers: 1 Alt, 2 Ctrl, 4 Meta, 8 Shift."""
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        named = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        self.command("Input.dispatchKeyEvent", type="keyDown", modifiers=modifiers, **named, **text)
        self.command("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **named)

    def told(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of all events of a kind since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def complaints(self) -> list[str]:
        """Return errors and warnings of the console, exceptions, and what the browser itself complains of."""
        found = [str(each["exceptionDetails"]) for each in self.told("Runtime.exceptionThrown")]
        found += [str(e["args"]) for e in self.told("Runtime.consoleAPICalled") if e["type"] in ("error", "warning")]
        return found + [e["entry"]["text"] for e in self.told("Log.entryAdded") if e["entry"]["level"] == "error"]

    def spoken(self) -> list[dict[str, Any]]:
        """Return the accessibility tree: what a screen reader is given, without what it is not."""
        nodes = self.command("Accessibility.getFullAXTree")["nodes"]
        return [node for node in nodes if not node["ignored"]]


@contextlib.contextmanager
def chromium(path: str, profile: Path) -> Iterator[Page]:
    """Start a browser with a new profile and yield a tab of it.

    Args:
        path: of the binary.
        profile: an empty folder.
    """
    process = subprocess.Popen(
        [path, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        active = profile / "DevToolsActivePort"  # the browser writes port and path there
        until(lambda: active.is_file() and len(active.read_text().split()) == 2, "the browser listens")
        port, where = active.read_text().split()
        with connect(f"ws://127.0.0.1:{port}{where}", max_size=None) as connection:
            yield Page(connection)
    finally:
        process.terminate()
        process.wait(timeout=30)
