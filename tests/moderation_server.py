"""A moderation endpoint on loopback that flags what speaks of stealing, and meets the troubles it is told to."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "word-list-1"


@dataclasses.dataclass(frozen=True)
class Trouble:
    """What a request gets instead of its answer; status 0: a closed connection."""

    status: int
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: str = '{"error": {"message": "SECRET TEXT", "type": "of_the_test", "code": null}}'


SILENCE = Trouble(-1)  #: nothing, until the client has had enough


class ModerationServer(ThreadingHTTPServer):
    """The server: `inputs`, `asked_for` and `keys` are what it was sent, `troubles` what each next request meets.

    Attributes:
        takes_lists: whether a list of texts is answered, or refused with 400.
        refused: a text that holds it, and a list that does, is refused with 400.
        breaks_it: a text that holds it, and a list that does, is answered with 500.
        is_slow_with_lists: whether no list of several texts is answered before the client has had enough.
        answers: how many texts are answered; every later request gets `after`.
        model: what it calls its model.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.inputs: list[Any] = []
        self.asked_for: list[str | None] = []
        self.keys: list[str | None] = []
        self.troubles: list[Trouble] = []
        self.takes_lists = True
        self.refused = self.breaks_it = "a text that nobody sends"
        self.is_slow_with_lists = False
        self.answers = 10**9
        self.after = Trouble(503)
        self.model: str | None = MODEL

    @property
    def url(self) -> str:
        """The URL of the endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1/moderations"


class _Handler(BaseHTTPRequestHandler):
    server: ModerationServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: a second one would wait for the first one's acknowledgement

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        given = body["input"]
        server.inputs.append(given)
        server.asked_for.append(body.get("model"))
        server.keys.append(self.headers["Authorization"])
        texts = [given] if isinstance(given, str) else given
        if server.troubles:
            self._reply(server.troubles.pop(0))
        elif server.answers < len(texts):
            self._reply(server.after)
        elif server.is_slow_with_lists and len(texts) > 1:
            self._reply(SILENCE)
        elif any(server.breaks_it in text for text in texts):
            self._reply(Trouble(500))
        elif any(server.refused in text for text in texts) or (isinstance(given, list) and not server.takes_lists):
            self._reply(Trouble(400))
        else:
            server.answers -= len(texts)
            results = [_result("steal" in text.lower()) for text in texts]
            self._reply(Trouble(200, body=json.dumps({"id": "modr-1", "model": server.model, "results": results})))

    def _reply(self, what: Trouble) -> None:
        if what is SILENCE:
            self.rfile.read(1)  # until it hangs up
            return
        if what.status == 0:
            self.close_connection = True
            return
        body = what.body.encode()
        self.send_response(what.status)
        for name, value in {**what.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _result(flagged: bool) -> dict[str, Any]:
    scores = {"illicit": 0.9 if flagged else 0.2, "of-their-own": 0.95 if flagged else 0.1, "hate": None}
    return {"flagged": flagged, "categories": {}, "category_scores": scores}


@contextmanager
def moderation_server() -> Iterator[ModerationServer]:
    """Run a server within the block."""
    with ModerationServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
