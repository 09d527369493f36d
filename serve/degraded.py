"""What is answered where the model could not be asked in time, or failed: by default as if every text were unsafe.

A client that passes what it gets no answer to would pass everything then, so the service fails closed. Such an answer
says so: in the header `Rayguard-Degraded`, and where the contract has room for it.
"""

from typing import Literal

from starlette.types import Scope

from guardrail.guard import Verdict
from guardrail.policy import guards_own
from guardrail.taxonomy import CATEGORIES
from serve.answer_headers import say

Failure = Literal["deadline_exceeded", "model_failed"]
OnFailure = Literal["block", "error"]
HEADER = "Rayguard-Degraded"

#: By which what was not judged is blocked, whatever the policy of the request has no threshold for.
BLOCKS = guards_own(1.0)
#: Of a text that was not judged: unsafe, and of no category, as some are reported to authorities.
NOT_JUDGED = Verdict(unsafe=True, score=1.0, categories=dict.fromkeys(CATEGORIES, 0.0))

_FAILURE = "rayguard.degraded"  # of a request's scope


def degrade(scope: Scope, failure: Failure) -> None:
    """Have the answer to a request say that it is no judgement of the guard."""
    scope[_FAILURE] = failure
    say(scope, HEADER, failure)


def failure_of(scope: Scope) -> Failure | None:
    """Return why the answer to a request is no judgement of the guard; None where it is one."""
    failure: Failure | None = scope.get(_FAILURE)
    return failure
