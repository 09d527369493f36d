"""Weights from the learners to the engines, and the proof that they arrived."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from actors.errors import AdversaryError

_TRIES = 3


class WeightSyncError(AdversaryError):
    """The engines' log-probabilities differ from the learner's after weights were sent."""


class WeightSync:
    """Keeps an algorithm's engines on its learners' weights.

    Whenever `send` or `recover` has returned, at least one engine is in service, and each that is computes fixed token
    ids as the learners do. They leave learners and optimizers as they are, and may be called again at any time.

    Args:
        algorithm: whose runners and learners these are, at the time of each call: dead ones are replaced.
        probe_ids: token ids of the texts that both sides compute.
        max_difference: largest |difference of a log-probability| that counts as the same.
        timeout: seconds for weights to arrive, or for an engine to come back.
    """

    def __init__(
        self, algorithm: Algorithm, probe_ids: Sequence[Sequence[int]], max_difference: float, timeout: float
    ) -> None:
        self.algorithm, self.probe_ids = algorithm, probe_ids
        self.max_difference, self.timeout = max_difference, timeout
        self.version = 0  #: of the weights that were sent last

    def send(self) -> dict[str, float]:
        """Send the weights and check by fixed token ids that the engines compute what the learner computes.

        Returns:
            The largest difference of a log-probability, and the distance of the weights from those at the start.

        Raises:
            WeightSyncError: the difference is more than `max_difference`.
            AdversaryError: engines die again and again.
        """
        learners: Any = self.algorithm.learner_group
        expected = learners.foreach_learner(lambda learner, ids=self.probe_ids: learner.probe(ids))
        learner_logprobs, distance = expected.result_or_errors[0].get()
        for _ in range(_TRIES):
            self._send_weights()
            answers = self._engines("probe", token_ids=self.probe_ids)
            # RLlib takes a dead one out of service, but not one that does not answer in time.
            if answers and len(answers) == self.algorithm.env_runner_group.num_healthy_remote_env_runners():
                break
            self._wait_for_an_engine()
        else:
            raise AdversaryError(
                f"attackers died or did not answer at {_TRIES} weight syncs in a row; see their log in the dashboard"
            )
        difference = max(
            float(np.abs(mine - theirs).max())
            for answer in answers
            for mine, theirs in zip(learner_logprobs, answer, strict=True)
        )
        if not difference <= self.max_difference:  # NaN is not
            raise WeightSyncError(
                f"after a weight sync the engines' logprobs differ from the learner's by {difference:.2g}"
            )
        return {"probe_max_abs_logprob_diff": difference, "weight_distance": distance}

    def recover(self) -> dict[str, float]:
        """Wait until an engine is in service after some died, and send it the weights; returns and raises as `send`."""
        self._wait_for_an_engine()
        return self.send()

    def _send_weights(self) -> None:
        # Not RLlib's `sync_weights`: it drops what it sends while an earlier state is under way, and says nothing.
        components = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        learners: Any = self.algorithm.learner_group
        state = learners.get_state(components=components, inference_only=True)[COMPONENT_LEARNER]
        self._engines("set_state", state=ray.put({key: state[key] for key in (COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO)}))
        self.version = state[WEIGHTS_SEQ_NO]

    def _engines(self, method: str, **arguments: Any) -> list[Any]:
        """Return what the runners in service answer; one that dies meanwhile answers nothing."""
        group: Any = self.algorithm.env_runner_group
        return group.foreach_env_runner(method, kwargs=arguments, local_env_runner=False, timeout_seconds=self.timeout)

    def _wait_for_an_engine(self) -> None:
        group: Any = self.algorithm.env_runner_group
        deadline = time.monotonic() + self.timeout
        while not self.algorithm.restore_env_runners(group):
            if group.num_healthy_remote_env_runners():
                return  # the dead one comes back on its own, and RLlib gives it weights when it does
            if time.monotonic() > deadline:
                raise AdversaryError("no attacker came back; see the log of VLLMEnvRunner in the dashboard")
            time.sleep(1.0)
