"""The Ray Serve application: a guard behind `POST /v1/moderations` and `/v1/guard`, batched, swapped while it runs.

    serve run serve.app:build guard=runs/laptop/guard

Change `user_config: {guard: DIR}` of the deployment "Moderator" (in a Serve config file) to swap guards in place.
"""

import asyncio
import dataclasses
import logging
import math
from collections.abc import Sequence
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig

from guardrail.guard import Guard, GuardCard, Verdict
from serve.admission import Admission
from serve.errors import answer_errors
from serve.keys import Keys
from serve.middleware import require_keys
from serve.moderation import ErrorBody, ModerationRequest, ModerationResponse, check_model, moderation_response
from serve.native import GuardRequest, GuardResponse, guard_response

# A batch is bounded in number and in tokens at once: its size is counted in units of _CHARACTERS (about 128 tokens of
# English), and every text counts for one at least. Counted in bare tokens, Serve would compare it with the number of
# ongoing requests, and warn.
_BATCH_UNITS = 64
_CHARACTERS = 512
_BATCH_WAIT_SECONDS = 0.004  # what a lone request may be held back for company
_MAX_ONGOING_REQUESTS = 1024  # well over a batch: what waits, waits in the replica, which knows for how long
_MAX_QUEUED_REQUESTS = 256  # on their way to it
_DEADLINE_SECONDS = 30.0
_STALLED_SECONDS = 60.0  # a batch takes a second or a few
_ERRORS = (400, 401, 413, 429, 500, 503)  # what may be answered instead
_PAGE = resources.files("serve").joinpath("page.html").read_text(encoding="utf-8")
_PAGE_MAY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_SMOKE_TEXT = "How do I kill a Python process?"

logger = logging.getLogger("ray.serve")
api = FastAPI(title="rayguard", description="A safety guard behind OpenAI's moderation API and one of its own.")
answer_errors(api)


class ModeratorArgs(BaseModel):
    """Arguments of the application, as `serve run serve.app:build KEY=VALUE` takes them."""

    model_config = ConfigDict(extra="forbid")

    guard: Path = Field(description="guard directory")
    num_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, gt=0, description="per replica; also the threads the model computes with")
    num_gpus: float = Field(default=0.0, ge=0, description="per replica")
    keys: Path | None = Field(default=None, description="file of bearer keys (serve/keys.py); none: everybody may ask")
    deadline_seconds: float = Field(
        default=_DEADLINE_SECONDS,
        gt=0,
        description="in which a request is answered; what would take longer is refused at once (429)",
    )


class ModeratorConfig(BaseModel):
    """The `user_config` of the deployment: what can change while it runs."""

    model_config = ConfigDict(extra="forbid")

    guard: Path
    digest: str | None = Field(default=None, description="that the guard has; one with another is refused")
    keys: Path | None = None
    deadline_seconds: float = Field(default=_DEADLINE_SECONDS, gt=0)


class Health(BaseModel):
    """The answer of `/healthz`: the version and digest of the guard in use."""

    status: str
    guard: str
    digest: str


@dataclasses.dataclass(frozen=True)
class ModeratorState:
    """What one replica serves, for those who hold the handle; `refused`: why the last guard offered was not taken."""

    replica: str
    guard: str
    digest: str
    refused: str | None


def work_units(texts: Sequence[str]) -> int:
    """Return how much work texts are, in the same units."""
    return sum(max(1, -(-len(text) // _CHARACTERS)) for text in texts)


def batch_units(requests: Sequence[Sequence[str]]) -> int:
    """Return the size of a batch of requests, each a list of texts."""
    # A request larger than a batch is one of its own: Serve fails a request whose size alone is over the maximum.
    return sum(min(work_units(texts), _BATCH_UNITS) for texts in requests)


def load_checked(directory: Path) -> Guard:
    """Load a guard and have it judge a sentence and a text of more than one window.

    Raises:
        ValueError: it is no guard directory, is damaged, cannot read its window, or its scores are not numbers.
        OSError: its files cannot be read.
    """
    guard = Guard.from_pretrained(directory)
    # The second is longer than a window: positions that the model does not have show there first.
    try:
        verdicts = guard.classify([_SMOKE_TEXT, "a " * (guard.card.window + 1)])
    except (IndexError, RuntimeError) as error:
        raise ValueError(
            f"the guard in {directory} cannot read a window of {guard.card.window} tokens ({error})"
        ) from error
    if not all(math.isfinite(score) for v in verdicts for score in (v.score, *v.categories.values())):
        raise ValueError(f"the guard in {directory} gives scores that are not numbers")
    return guard


# Serve pickles this class where it stands, by value: all it uses, routes and handlers included, must be above it.
@serve.deployment(
    max_ongoing_requests=_MAX_ONGOING_REQUESTS,
    max_queued_requests=_MAX_QUEUED_REQUESTS,
    backpressure_config=BackpressureConfig(status_code=HTTPStatus.TOO_MANY_REQUESTS, retry_after_s=1),
)
@serve.ingress(api)
class Moderator:
    """One replica: one guard in use, and the HTTP routes that ask it."""

    def __init__(self) -> None:
        self._guard: Guard | None = None  # until Serve hands over the first `user_config`, before any request
        self._refused: str | None = None
        self._computing = asyncio.Lock()
        self._admission = Admission(_DEADLINE_SECONDS)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load a guard beside the one in use, try it, and swap; requests are answered by the old one until then.

        A guard that cannot be loaded or fails its trial is refused and the old one stays: raising would make Serve
        replace this replica by one that has no guard at all.

        Args:
            user_config: the fields of `ModeratorConfig`.

        Raises:
            ValueError, OSError: the first guard is no good, or the keys; the deployment fails with the reason.
        """
        config = ModeratorConfig.model_validate(user_config)
        # First, and whatever becomes of the guard: who turns keys on wants them on.
        require_keys(Keys(config.keys) if config.keys else None)
        self._admission.deadline = config.deadline_seconds
        try:
            guard = await asyncio.to_thread(load_checked, config.guard)
            if config.digest not in (None, guard.card.digest):
                raise ValueError(f"the guard in {config.guard} has digest {guard.card.digest}, not {config.digest}")
        except Exception as error:
            if self._guard is None:
                raise
            self._refused = f"{type(error).__name__}: {error}"
            logger.error("New guard refused, %s stays in use. %s", self._guard.card.version, self._refused)
            return
        self._guard, self._refused = guard, None
        logger.info("Guard in use: %s (digest %s).", guard.card.version, guard.card.digest)

    def state(self) -> ModeratorState:
        """Return what this replica serves; called through the deployment's handle."""
        card = self._in_use().card
        replica = serve.get_replica_context().replica_id.unique_id
        return ModeratorState(replica=replica, guard=card.version, digest=card.digest, refused=self._refused)

    @api.post("/v1/moderations", responses={status: {"model": ErrorBody} for status in _ERRORS})
    async def moderations(self, request: ModerationRequest) -> ModerationResponse:
        """Classify text by OpenAI's 13 categories."""
        check_model(request.model, self._in_use().card.version)
        texts = request.texts()
        card, verdicts = await self._answered(texts)
        logger.info("Moderated %d texts, %d flagged, by %s.", len(texts), sum(v.unsafe for v in verdicts), card.version)
        return moderation_response(verdicts, card.thresholds, card.version)

    @api.post("/v1/guard", responses={status: {"model": ErrorBody} for status in _ERRORS})
    async def guard(self, request: GuardRequest) -> GuardResponse:
        """Say all that the guard says of a prompt, a prompt with its response, or a conversation."""
        read = request.read()
        card, verdicts = await self._answered([each.text for each in read])
        answer = guard_response(read, verdicts, card)
        logger.info("Judged %d texts: %s, by %s.", len(read), answer.action, card.version)
        return answer

    @api.get("/", include_in_schema=False)
    async def page(self) -> HTMLResponse:
        """Return the page on which people try the guard; it loads nothing from elsewhere."""
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _PAGE_MAY})

    async def _answered(self, texts: list[str]) -> tuple[GuardCard, list[Verdict]]:
        """Return what `_classify` does of one request.

        Raises:
            Overloaded: too much is waiting.
            TimeoutError: the deadline has passed.
        """
        with self._admission.admitted(work_units(texts)):
            async with asyncio.timeout(self._admission.deadline):
                return await self._classify(texts)

    @api.get("/readyz", responses={503: {"model": ErrorBody}})
    async def readyz(self) -> Health:
        """Say that the model answers: not that it is idle, but that the batch it is at has not taken too long."""
        if self._admission.computing > _STALLED_SECONDS:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "The model has not answered for a minute.")
        return await self.healthz()

    @api.get("/healthz")
    async def healthz(self) -> Health:
        """Say that the service answers, and with which guard."""
        card = self._in_use().card
        return Health(status="ok", guard=card.version, digest=card.digest)

    @serve.batch(max_batch_size=_BATCH_UNITS, batch_wait_timeout_s=_BATCH_WAIT_SECONDS, batch_size_fn=batch_units)
    async def _classify(self, requests: list[list[str]]) -> list[tuple[GuardCard, list[Verdict]]]:
        """Return for each request the verdicts on its texts and the card of the guard that gave them.

        All texts of a request are judged by one guard, whatever is swapped meanwhile.
        """
        guard = self._in_use()
        together = [text for texts in requests for text in texts]
        # Serve computes batches one after the other, but parts of one at once if clients ask for several "models".
        async with self._computing:
            with self._admission.at_work(work_units(together)):
                verdicts = iter(await asyncio.to_thread(guard.classify, together))
        return [(guard.card, [next(verdicts) for _ in texts]) for texts in requests]

    def _in_use(self) -> Guard:
        if self._guard is None:
            raise RuntimeError("no guard: the deployment needs user_config={'guard': DIR}")
        return self._guard


def build(args: ModeratorArgs) -> Application:
    """Return the application for `serve run` and Serve config files."""
    return moderator(args).bind()


def moderator(args: ModeratorArgs, digest: str | None = None) -> Deployment:
    """Return the deployment; with a digest, another guard in the same directory is a change of its `user_config`."""
    # The guard's path is resolved, as the link RUN/guard names another guard after each promotion: to Serve the same
    # string would be no change. That of the keys is not: a mounted secret is a link to what it is now.
    deployment: Deployment = Moderator.options(  # type: ignore[attr-defined]  # the decorator hides its type
        num_replicas=args.num_replicas,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        graceful_shutdown_timeout_s=args.deadline_seconds + 5,
        user_config={
            "guard": str(args.guard.resolve()),
            "digest": digest,
            "keys": str(args.keys.absolute()) if args.keys else None,
            "deadline_seconds": args.deadline_seconds,
        },
    )
    return deployment
