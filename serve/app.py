"""The Ray Serve application: a guard behind `POST /v1/moderations` and `/v1/guard`, batched, swapped while it runs.

    serve run serve.app:build guard=runs/laptop/guard

Change `guard` in the `user_config` of the deployment "Moderator" (in a Serve config file) to swap guards in place. This
is the whole `ModeratorConfig`: what is left out has its default from then on; one without `keys` is refused.
"""

import asyncio
import dataclasses
import logging
import sys
from collections import OrderedDict
from collections.abc import Sequence
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig

from guardrail.answers import GuardResponse, StreamResponse
from guardrail.backends import BackendName
from guardrail.guard import Guard, Verdict
from guardrail.guard_card import GuardCard
from guardrail.policy import GUARDS_OWN, Action, Policy, guards_own, strictest
from guardrail.promotion import load_checked
from guardrail.reading import Readable
from guardrail.taxonomy import UNSAFE
from guardrail.text import digest
from serve import litellm, perspective
from serve.admission import OverBudget, Overloaded, TooMuch
from serve.answer_headers import say
from serve.config import ModeratorArgs, ModeratorConfig
from serve.degraded import BLOCKS, NOT_JUDGED, Failure, OnFailure, degrade, failure_of
from serve.errors import answer_errors
from serve.judging import Judging
from serve.keys import Keys
from serve.litellm import GuardrailRequest, GuardrailResponse, guardrail_response
from serve.metrics import Metrics
from serve.middleware import key_of, require_keys
from serve.moderation import (
    ErrorBody,
    ModerationRequest,
    ModerationResponse,
    RequestRefused,
    check_model,
    moderation_response,
)
from serve.native import GuardRequest, guard_response
from serve.perspective import AnalyzeRequest, AnalyzeResponse, GoogleErrorBody, analyze_response
from serve.policies import Policies, read_policies
from serve.streaming import StreamRequest, stream_response
from serve.telemetry import Telemetry, measure_requests

_MAX_ONGOING_REQUESTS = 1024  # well over a batch: what waits, waits in the replica, which knows for how long
_MAX_QUEUED_REQUESTS = 256  # on their way to it
_LOADED = 3  # guards kept in memory: in use, shadow, and the one before
_HUNG_SECONDS = 300.0  # a replica whose batch takes that long is replaced
_STALLED_SECONDS = 60.0  # a batch takes a second or a few
_ERRORS = (400, 401, 408, 413, 429, 500, 503)  # what may be answered instead
_PAGE = resources.files("serve").joinpath("page.html").read_text(encoding="utf-8")
_PAGE_MAY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_GUARD_HEADER = "Rayguard-Guard"  # the digest of the guard that answers
_POLICY_HEADER = "Rayguard-Policy"  # for routes whose bodies are of others' contracts

logger = logging.getLogger("ray.serve")
api = FastAPI(
    title="rayguard",
    description="A safety guard behind OpenAI's moderation API and one of its own.",
    docs_url=None,  # they load scripts from elsewhere
    redoc_url=None,
)
answer_errors(api)
api.add_middleware(Telemetry)  # the last one comes first


class Health(BaseModel):
    """The answer of `/healthz`: the version and digest of the guard in use."""

    status: str
    guard: str
    digest: str


@dataclasses.dataclass(frozen=True)
class ModeratorState:
    """What one replica serves, for those who hold the handle.

    Attributes:
        replica: its id.
        guard, digest: version and digest of the guard in use.
        refused: why the last guard offered was not taken.
        shadow: digest of the shadow guard.
        shadow_agreed, shadow_disagreed: texts on which it agreed with the guard in use, and did not.
    """

    replica: str
    guard: str
    digest: str
    refused: str | None
    shadow: str | None
    shadow_agreed: int
    shadow_disagreed: int


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """A request's policy; None: that of the guard that answers."""

    name: str
    policy: Policy | None

    def over(self, card: GuardCard, http: Request) -> Policy:
        """Return what decides a request that has been answered."""
        return BLOCKS if failure_of(http.scope) else self.policy or guards_own(card.thresholds[UNSAFE])


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
        # The guard in use and the one before, so that going back is at once.
        self._loaded: OrderedDict[tuple[str, BackendName], Guard] = OrderedDict()
        self._refused: str | None = None
        self._policies: Policies | None = None
        self._policy: str | None = None
        self._on_failure: OnFailure = "block"
        self._metrics = Metrics()
        self._judging = Judging(self._metrics)  # without a guard until Serve hands over the first `user_config`
        measure_requests(self._metrics)
        # A model's call that ends waits for Python's lock as long as this, wherever a text is being prepared: 5 ms, by
        # default, beside calls of one or two.
        sys.setswitchinterval(0.0005)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load a guard beside the one in use, try it, and swap; requests are answered by the old one until then.

        A guard that cannot be loaded or fails its trial is refused and the old one stays: raising would make Serve
        replace this replica by one that has no guard at all. So do policies where new ones cannot be read.

        Args:
            user_config: the fields of `ModeratorConfig`.

        Raises:
            ValueError, OSError: the first configuration, guard or policies are no good, or the keys; the deployment
                fails with the reason.
        """
        try:
            config = ModeratorConfig.model_validate(user_config)
        except ValueError as error:
            self._refuse(error)
            return
        # First, and whatever becomes of the guard: who turns keys on wants them on.
        require_keys(Keys(config.keys, unreadable_for_now=self._judging.used is not None) if config.keys else None)
        self._judging.budgets.replicas = config.num_replicas
        self._judging.max_tokens = config.max_tokens
        self._judging.admission.deadline, self._on_failure = config.deadline_seconds, config.on_failure
        try:
            self._policies, self._policy = read_policies(config.policies, config.policy), config.policy
        except ValueError as error:
            if self._judging.used is None:
                raise
            logger.error("Policies stay as they were: %s", error)
        try:
            guard = await self._load(config.guard, config.digest, config.backend)
            shadow = await self._shadow_of(config)
        except Exception as error:  # noqa: BLE001 - whatever it is, the guard in use is better than none
            self._refuse(error)
            return
        self._judging.swap(guard, shadow, config.cached_texts)
        self._refused = None
        self._metrics.count("rayguard_swaps", outcome="taken")
        logger.info("Guard in use: %s (digest %s, by %s).", guard.card.version, guard.card.digest, guard.backend.name)

    async def _shadow_of(self, config: ModeratorConfig) -> Guard | None:
        """Return the shadow; none where it is no good and a guard is in use already: it holds no other guard back."""
        try:
            return await self._load(config.shadow, None, config.backend) if config.shadow else None
        except Exception as error:
            if self._judging.used is None:
                raise
            logger.error("There is no shadow now. %s: %s", type(error).__name__, error)
            return None

    def _refuse(self, error: Exception) -> None:
        """Note why a configuration is not taken; raise the error where there is no guard to stay in use."""
        self._metrics.count("rayguard_swaps", outcome="refused")
        if self._judging.used is None:
            raise error
        self._refused = f"{type(error).__name__}: {error}"
        logger.error("New guard refused, %s stays in use. %s", self._judging.used.guard.card.version, self._refused)

    async def _load(self, directory: Path, digest: str | None, backend: BackendName) -> Guard:
        """Return a guard that has passed its trial; one that is loaded is not loaded again.

        Raises:
            ValueError, OSError: as `load_checked`; or it has another digest than is wanted.
        """
        card = await asyncio.to_thread(GuardCard.read, directory)
        if digest not in (None, card.digest):
            raise ValueError(f"the guard in {directory} has digest {card.digest}, not {digest}")
        key = card.digest, backend
        if key not in self._loaded or self._loaded[key].card != card:
            self._loaded[key] = await asyncio.to_thread(load_checked, directory, backend)
        self._loaded.move_to_end(key)
        while len(self._loaded) > _LOADED:
            self._loaded.popitem(last=False)
        return self._loaded[key]

    def check_health(self) -> None:
        """Have Serve replace this replica where the model hangs: `/readyz` tells balancers, which may not ask it."""
        if self._judging.admission.computing > max(_HUNG_SECONDS, 10 * self._judging.admission.deadline):
            raise RuntimeError("the model has not answered for minutes")

    def state(self) -> ModeratorState:
        """Return what this replica serves; called through the deployment's handle."""
        card, shadow = self._judging.in_use().guard.card, self._judging.shadow
        return ModeratorState(
            replica=serve.get_replica_context().replica_id.unique_id,
            guard=card.version,
            digest=card.digest,
            refused=self._refused,
            shadow=shadow.guard.card.digest if shadow else None,
            shadow_agreed=shadow.agreed if shadow else 0,
            shadow_disagreed=shadow.disagreed if shadow else 0,
        )

    @api.post("/v1/moderations", responses={status: {"model": ErrorBody} for status in _ERRORS})
    async def moderations(self, request: ModerationRequest, http: Request) -> ModerationResponse:
        """Classify text by OpenAI's 13 categories."""
        check_model(request.model, self._judging.in_use().guard.card.version)
        texts = request.texts()
        chosen = self._chosen(http)
        card, verdicts = await self._answered(texts, http)
        policy = chosen.over(card, http)
        decisions = [policy.decide(verdict.scores) for verdict in verdicts]
        self._tell(http, texts, strictest(decisions).action, card)
        flagged = [decision.action != "allow" for decision in decisions]
        return moderation_response(verdicts, flagged, policy.lowest(card.thresholds), card.version)

    @api.post("/v1/guard", responses={status: {"model": ErrorBody} for status in _ERRORS})
    async def guard(self, request: GuardRequest, http: Request) -> GuardResponse:
        """Say all that the guard says of a prompt, a prompt with its response, or a conversation."""
        read = request.read()
        chosen = self._chosen(http, request.policy)
        texts = [each.text for each in read]
        card, verdicts = await self._answered(texts, http)
        answer = guard_response(
            read, verdicts, card, chosen.name, chosen.over(card, http), degraded=failure_of(http.scope)
        )
        self._tell(http, texts, answer.action, card)
        return answer

    @api.post(litellm.PATH, responses={status: {"model": ErrorBody} for status in _ERRORS})
    async def guardrail(self, request: GuardrailRequest, http: Request) -> GuardrailResponse:
        """Say whether LiteLLM may let a request or an answer pass."""
        chosen = self._chosen(http)
        texts = request.read()
        card, verdicts = await self._answered(texts, http)
        answer = guardrail_response(verdicts, chosen.over(card, http), card.thresholds, failure_of(http.scope))
        self._tell(http, texts, "block" if answer.action == "BLOCKED" else "allow", card)
        return answer

    @api.post(
        perspective.PATH,
        response_model_exclude_none=True,
        responses={status: {"model": GoogleErrorBody} for status in _ERRORS},
    )
    async def analyze(self, request: AnalyzeRequest, http: Request) -> AnalyzeResponse:
        """Score a comment by Perspective's attributes."""
        request.attributes()  # refused before anything is computed
        chosen = self._chosen(http)
        texts = [request.comment.text[begin:end] for begin, end in request.spans()]
        card, verdicts = await self._answered(texts, http)
        self._tell(http, texts, chosen.over(card, http).decide(verdicts[0].scores).action, card)
        return analyze_response(request, verdicts)

    @api.post("/v1/guard/stream", responses={status: {"model": ErrorBody} for status in _ERRORS})
    async def stream(self, request: StreamRequest, http: Request) -> StreamResponse:
        """Say how much of a response that is being written may be shown."""
        chosen = self._chosen(http, request.policy)
        texts = request.texts()
        card, verdicts = await self._answered(texts, http)
        answer = stream_response(
            request, verdicts, card, chosen.name, chosen.over(card, http), degraded=failure_of(http.scope)
        )
        self._tell(http, texts, answer.action, card)
        return answer

    @api.get("/v1/policies")
    async def policies(self) -> dict[str, str]:
        """Return the names of the policies that a request may name, and what they are for."""
        own = {GUARDS_OWN: "The guard's own thresholds."}
        if self._policies is None:
            return own
        found = {name: self._policies.get(name) for name in self._policies.names()}
        return own | {name: policy.description for name, policy in found.items() if policy}

    @api.get("/", include_in_schema=False)
    async def page(self) -> HTMLResponse:
        """Return the page on which people try the guard; it loads nothing from elsewhere."""
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _PAGE_MAY})

    def _chosen(self, http: Request, name: str | None = None) -> _Chosen:
        """Return the policy of a request: the one it names, or its key's, or the service's.

        Raises:
            RequestRefused: there is none of that name.
        """
        key = key_of(http.scope)
        name = name or http.headers.get(_POLICY_HEADER) or (key and key.policy) or self._policy or GUARDS_OWN
        if name == GUARDS_OWN:
            return _Chosen(name, None)
        policy = self._policies.get(name) if self._policies else None
        if policy is None:
            known = ", ".join([GUARDS_OWN, *(self._policies.names() if self._policies else ())])
            raise RequestRefused(
                f"There is no policy {name!r}. Known: {known}.", param="policy", code="policy_not_found"
            )
        return _Chosen(name, policy)

    def _tell(self, http: Request, texts: Sequence[Readable], action: Action, card: GuardCard) -> None:
        """Count and log what was done with texts, and by which guard; of texts the log has a hash and a length."""
        if not failure_of(http.scope):
            say(http.scope, _GUARD_HEADER, card.digest)
        self._metrics.count("rayguard_texts", len(texts), action=action)
        written = [str(text) for text in texts]
        logger.info(
            "%s %s: %d texts, %d characters, sha256 %s, by %s (%s).",
            http.url.path, action, len(texts), sum(map(len, written)), digest(*written), card.version, card.digest,
        )  # fmt: skip

    async def _answered(self, texts: Sequence[Readable], http: Request) -> tuple[GuardCard, list[Verdict]]:
        """Return the verdicts on the texts of one request and the card of the one guard that gave them all.

        Where the model fails, or is late, they are of texts that were not judged (`serve.degraded`), and the request's
        scope says so; or these errors are raised, as the service is configured.

        Raises:
            OverBudget: its key has spent its tokens.
            Overloaded, TooMuch: too much is waiting, or asked.
        """
        try:
            return await self._judging.judged(texts, key_of(http.scope))
        except (OverBudget, Overloaded, TooMuch):
            raise
        except Exception as error:
            failure: Failure = "deadline_exceeded" if isinstance(error, TimeoutError) else "model_failed"
            self._metrics.count("rayguard_failures", failure=failure)
            # Perspective's answer is scores, and there are none.
            if self._on_failure == "error" or http.url.path == perspective.PATH:
                raise
            # The message may quote the text.
            logger.error("Not judged, and blocked: %s (%s).", failure, type(error).__name__)
            degrade(http.scope, failure)
            return self._judging.in_use().guard.card, [NOT_JUDGED] * len(texts)

    @api.get("/readyz", responses={503: {"model": ErrorBody}})
    async def readyz(self) -> Health:
        """Say that the model answers: not that it is idle, but that the batch it is at has not taken too long."""
        if self._judging.admission.computing > _STALLED_SECONDS:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "The model has not answered for a minute.")
        return await self.healthz()

    @api.get("/healthz")
    async def healthz(self) -> Health:
        """Say that the service answers, and with which guard."""
        card = self._judging.in_use().guard.card
        return Health(status="ok", guard=card.version, digest=card.digest)


def build(args: ModeratorArgs) -> Application:
    """Return the application for `serve run` and Serve config files."""
    return moderator(args).bind()


def moderator(args: ModeratorArgs) -> Deployment:
    """Return the deployment; with a digest, another guard in the same directory is a change of its `user_config`."""
    # Guards' paths are resolved, as the link RUN/guard names another guard after each promotion: to Serve the same
    # string would be no change. Others are not: a mounted secret is a link to what it is now.
    config = ModeratorConfig.model_validate(args.model_dump(include=set(ModeratorConfig.model_fields)))
    found = {name: path.resolve() for name in ("guard", "shadow") if (path := getattr(args, name))}
    named = {name: path.absolute() for name in ("keys", "policies") if (path := getattr(args, name))}
    deployment: Deployment = Moderator.options(  # type: ignore[attr-defined]  # the decorator hides its type
        num_replicas=args.num_replicas,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        graceful_shutdown_timeout_s=args.deadline_seconds + 5,
        user_config=config.model_copy(update=found | named).model_dump(mode="json"),
    )
    return deployment
