"""A guard served by Ray Serve in this process's cluster, as `python -m serve` serves one, for tests and benchmarks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import openai
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from serve.app import moderator
from serve.config import ModeratorArgs
from tests.waiting import free_port, until

APPLICATION = "moderation"


def deploy(args: Mapping[str, Any], **changed: Any) -> None:
    """Deploy, or change in place what `serve deploy` changes in place: the `user_config`.

    Args:
        args: of the application (`serve.config.ModeratorArgs`).
        changed: other values in its `user_config`.
    """
    config = {**moderator(ModeratorArgs.model_validate(args)).user_config, **changed}
    application = {
        "name": APPLICATION,
        "import_path": "serve.app:build",
        "args": dict(args),
        "deployments": [{"name": "Moderator", "user_config": config}],
    }
    # `serve deploy` sends this to the dashboard, which a cluster started here is without; both end in this call.
    client: Any = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))


def in_use(address: str) -> tuple[str, str] | None:
    """Return version and digest of the guard that answers, None where none does."""
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.get(f"{address}/healthz")
        if answer.is_success:
            return answer.json()["guard"], answer.json()["digest"]
    return None


@contextlib.contextmanager
def served(guard: Path, **args: Any) -> Iterator[str]:
    """Serve a guard within the block, under the address that it yields; Ray must be connected.

    Args:
        guard: its directory.
        args: further arguments of the application.
    """
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        deploy({"guard": str(guard.resolve()), **args})
        address = f"http://127.0.0.1:{port}"
        until(lambda: in_use(address), "the guard is served")
        yield address
    finally:
        serve.shutdown()


@contextlib.asynccontextmanager
async def load(address: str, text: str, answers: list[tuple[str, bool]]) -> AsyncIterator[None]:
    """Send requests with a text all the while, four at a time; any that fails fails the block.

    Args:
        address: of the service.
        text: of each request.
        answers: gets (model, flagged) of each.
    """

    async def ask() -> None:
        while not done:
            answer = await client.moderations.create(input=text)
            answers.append((answer.model, answer.results[0].flagged))

    done = False
    async with (
        openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(4):
            group.create_task(ask())
        try:
            yield
        finally:
            done = True
