"""The settings of the service: what `serve run` and Serve config files take, and what can change while it runs."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from guardrail.backends import BackendName
from serve.degraded import OnFailure

DEADLINE_SECONDS = 30.0
MAX_TOKENS = 1_000_000


class ModeratorConfig(BaseModel):
    """The `user_config` of the deployment: what can change while it runs."""

    model_config = ConfigDict(extra="forbid")

    guard: Path = Field(description="guard directory")
    digest: str | None = Field(default=None, description="that the guard has; one with another is refused")
    card: str | None = Field(
        default=None, description="of guard.json: what else it says; another value has the guard's card read again"
    )
    backend: BackendName = Field(default="auto", description="what computes; auto: the fastest that the guard has here")
    shadow: Path | None = Field(default=None, description="guard that judges the same texts and answers nobody")
    # It must be said, for one who swaps a guard and leaves it out would open the service.
    keys: Path | None = Field(description="file of bearer keys (serve/keys.py); null: everybody may ask")
    policies: Path | None = Field(default=None, description="folder of policies (serve/policies.py)")
    policy: str | None = Field(default=None, description="of requests that name none; none: the guard's own thresholds")
    num_replicas: int = Field(default=1, ge=1, description="processes with a guard each; they share keys' budgets")
    cached_texts: int = Field(default=4096, ge=0, description="texts whose verdict is remembered")
    max_tokens: int = Field(
        default=MAX_TOKENS, ge=1, description="of a request, a fourth of its characters; more is refused (413)"
    )
    deadline_seconds: float = Field(
        default=DEADLINE_SECONDS,
        gt=0,
        description="in which a request is answered; what would take longer is refused at once (429)",
    )
    on_failure: OnFailure = Field(
        default="block", description="of the model, or past the deadline: block what was not judged, or answer an error"
    )


class ModeratorArgs(ModeratorConfig):
    """Arguments of the application, as `serve run serve.app:build KEY=VALUE` takes them."""

    keys: Path | None = Field(default=None, description="file of bearer keys (serve/keys.py); none: everybody may ask")
    num_cpus: float = Field(default=1.0, gt=0, description="per replica; also the threads the model computes with")
    num_gpus: float = Field(default=0.0, ge=0, description="per replica")
