"""What becomes of a run whose actors die of what they are asked; a stand-in says what Ray would of them."""

from types import SimpleNamespace
from unittest.mock import MagicMock, Mock, patch

import pytest
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, OutOfMemoryError, RayActorError

from actors.adversary import Adversary
from actors.attempts import ATTEMPTS, write_attempts
from actors.config import AdversaryConfig
from actors.env_runner import StaleWeightsError, Task, VLLMEnvRunner
from actors.errors import AdversaryError
from actors.grpo import GRPO, GRPOConfig, _died
from actors.judges import Judge, JudgeConfig
from actors.reward_worker import RewardWorker, Scored
from actors.rollouts import Asked, Rollouts
from actors.summary import Summary, Tally
from cluster.resources import plan
from guardrail.remote import TargetError

DEAD = RayActorError(error_msg="the scorer died 4 times\nOut of memory\n")
KILLED = OutOfMemoryError("the scorer died 4 times\nOut of memory\n")  # which is none of Ray's deaths of actors
TASKS = [Task(0, 0, "bread", "paraphrase")]


@pytest.fixture
def ray_says(monkeypatch):
    """Have Ray do without a cluster what is given."""

    def say(**stand_ins):
        stand_ins = {"wait": lambda refs, **_: (list(refs), []), **stand_ins}
        for module in ("grpo", "rollouts"):
            monkeypatch.setattr(f"actors.{module}.ray", SimpleNamespace(**{**vars(ray), **stand_ins}))

    return say


@pytest.fixture
def scorer():
    """A scorer's handle."""
    handle = MagicMock(__ray_ready__=Mock())
    handle.score.options.return_value.remote.return_value = "receipt", "result"
    return handle


@pytest.fixture
def rollouts(scorer, tmp_path):
    """Those of a scorer, and of an attacker that has generated whatever is asked of it."""
    rollouts = Rollouts(Mock(), [scorer], Mock())
    rollouts._setup, rollouts._archived, rollouts._directory, rollouts._target = [], None, tmp_path, "guard"
    rollouts.ask = Mock(side_effect=lambda tasks, seed: Asked(tasks, seed, {1: "rollouts"}))
    return rollouts


def gathered(rollouts, asked=None):
    return rollouts.gather(asked or rollouts.ask(TASKS, 5), 0, learners=1, weights_version=0)


def test_engines_that_generate_ahead_are_waited_for_before_weights_are_sent(ray_says):
    order = Mock()
    ray_says(get=Mock(return_value={}), wait=order.wait)
    algorithm = object.__new__(GRPO)
    algorithm.config = SimpleNamespace(adversary=AdversaryConfig(generate_ahead=True))
    algorithm._learn, algorithm._iterations, algorithm._samples, algorithm._ahead = True, 2, 0, None
    algorithm._iteration_in_round, algorithm._weights_version, algorithm.phase_seconds = 0, 0, {}
    summary = Summary.of([Tally()], archive=0, coverage=0.0, weights_version=0, learnable=True)
    algorithm._ask = Mock(return_value=Asked(TASKS, 0, {1: "ahead"}))
    algorithm.rollouts = Mock(gather=Mock(return_value=(summary, [])))
    algorithm._update, algorithm.weight_sync = order.update, order
    algorithm.training_step()
    assert [call[0] for call in order.mock_calls] == ["update", "wait", "send"]
    assert order.wait.call_args.args[0] == ["ahead"]
    seconds = dict(kept := algorithm.phase_seconds)
    algorithm.training_step()
    assert kept == seconds and algorithm.rollouts.phase_seconds is algorithm.phase_seconds is not kept


def on_receipt(said):
    """Return a `ray.get` that raises or returns what is given when it is asked for a scorer's receipt."""

    def get(ref, timeout=None):
        if ref == "receipt" and isinstance(said, Exception):
            raise said
        return said

    return get


def times_asked(scorer):
    return scorer.score.options.return_value.remote.call_count


@pytest.mark.parametrize("death", [DEAD, KILLED], ids=["dead", "killed for its memory"])
def test_a_scorer_that_ray_has_given_up_ends_the_iteration_and_is_not_asked_again(rollouts, scorer, ray_says, death):
    ray_says(get=on_receipt(death))
    with pytest.raises(AdversaryError, match=r"died again and again \(Out of memory\)"):
        gathered(rollouts)
    assert times_asked(scorer) == 1


@pytest.mark.parametrize("lost", [[0], ObjectLostError("id", "", "")], ids=["attackers", "nodes"])
def test_what_dies_again_and_again_is_asked_the_same_three_times(rollouts, scorer, ray_says, lost):
    ray_says(get=on_receipt(lost))
    with pytest.raises(RuntimeError, match="actors died 3 times in a row; see their logs"):
        gathered(rollouts)
    assert times_asked(scorer) == 3 == rollouts.ask.call_count
    assert {(each.args[0][0], each.args[1]) for each in rollouts.ask.call_args_list} == {(TASKS[0], 5)}


def test_a_scorer_works_while_attackers_generate_and_takes_what_waits_at_once(rollouts, scorer, ray_says):
    happens = iter([{"first"}, {"second"}, {"third", "receipt 1"}, {"receipt 2"}])
    there, scored = set(), []

    def wait(refs, timeout, **_):
        if timeout:  # else it is asked what is there
            there.update(next(happens))
        return [ref for ref in refs if ref in there], []

    def score(setup, iteration, shares, archived):
        scored.append(([share for _, share in shares], "third" in there))
        return f"receipt {len(scored)}", f"result {len(scored)}"

    scorer.score.options.return_value.remote.side_effect = score
    finish = scorer.finish.options.return_value.remote
    finish.return_value = "summary", "archived", "batch"
    ray_says(wait=wait, get=Mock(return_value=[]))
    gathered(rollouts, Asked(TASKS, 5, {1: "first", 2: "second", 3: "third"}))
    assert scored == [(["first"], False), (["second", "third"], True)]
    assert finish.call_args.args[-2:] == ("result 1", "result 2")


def test_a_scorer_that_hangs_without_dying_is_not_waited_for_for_ever(rollouts, ray_says):
    generated = rollouts.ask(TASKS, 5)
    waits = Mock(side_effect=lambda refs, **_: (["rollouts"] if "rollouts" in refs else [], []))
    ray_says(wait=waits)
    with pytest.raises(RuntimeError, match="no scorer has answered for 3600 s: one hangs"):
        gathered(rollouts, generated)
    assert 3600 in [call.kwargs["timeout"] for call in waits.call_args_list]
    rollouts._target = "https://host/v1/moderations"
    with pytest.raises(RuntimeError, match="one hangs .*, https://host/v1/moderations takes its time, or judges are"):
        gathered(rollouts, generated)


def test_nor_one_that_hangs_at_the_iterations_end(rollouts, scorer, ray_says):
    get = Mock(side_effect=GetTimeoutError)
    ray_says(get=get)
    scorer.finish.options.return_value.remote.return_value = "summary", "archived", "batch"
    with pytest.raises(RuntimeError, match="no scorer has answered for 3600 s"):
        rollouts._finish(["result"], 0, 1, 0)
    assert get.call_args.kwargs["timeout"] == 3600


@pytest.mark.parametrize("death", [DEAD, KILLED], ids=["dead", "killed for its memory"])
def test_scorers_and_judges_are_restarted_and_asked_again_but_not_for_ever(ray_says, monkeypatch, death):
    options = {}

    def remote(actor):
        options[actor] = Mock(return_value=MagicMock())
        options[actor].return_value.remote.return_value = MagicMock(__ray_ready__=Mock())
        return Mock(options=options[actor])

    ray_says(remote=remote, get=Mock(side_effect=death), get_runtime_context=Mock())
    monkeypatch.setattr("actors.grpo.Algorithm.setup", Mock())
    resources = plan(2, 0, num_env_runners=1, num_learners=0, num_guard_workers=1)
    algorithm = object.__new__(GRPO)
    settings = AdversaryConfig(judges=[JudgeConfig(model="some/model", format="rubric")])
    algorithm.config = GRPOConfig.of(settings, resources, seed=0)
    with pytest.raises(ValueError, match="a scorer or judge cannot start: Out of memory$"):
        algorithm.setup(algorithm.config)
    assert set(options) == {RewardWorker, Judge}
    for each in options.values():
        assert each.call_args.kwargs["max_restarts"] == -1 and each.call_args.kwargs["max_task_retries"] in range(1, 10)


@pytest.mark.parametrize(("replaced", "tries"), [(False, 1), (True, 3)])
def test_a_round_whose_iterations_fail_ends_with_what_happened(tmp_path, replaced, tries):
    adversary = object.__new__(Adversary)
    adversary.config, adversary.algorithm = AdversaryConfig(), Mock()
    adversary.algorithm.train.side_effect = DEAD
    adversary.algorithm.replace_dead_learners.return_value = replaced
    with pytest.raises(RayActorError, match="the scorer died 4 times"):
        adversary.attack(1, [], "guard", tmp_path, Mock())
    assert adversary.algorithm.train.call_count == tries


def test_of_an_iteration_that_failed_no_rate_counts_what_is_there(tmp_path):
    adversary = object.__new__(Adversary)
    adversary.config, adversary.algorithm = AdversaryConfig(), Mock()
    adversary.algorithm.replace_dead_learners.return_value = False

    def write_and_fail():
        write_attempts(ATTEMPTS.empty_table(), tmp_path, 0, 0)
        raise TargetError("the service is gone")

    adversary.algorithm.train.side_effect = write_and_fail
    with pytest.raises(TargetError, match="the service is gone"):
        adversary.attack(1, [], "guard", tmp_path, Mock())
    assert {file.name for file in tmp_path.iterdir()} == {"left-0000-0000.parquet"}


def reward_worker(**methods):
    worker = object.__new__(RewardWorker)
    vars(worker).update(_round=Mock(), **methods)
    return worker


def test_an_attacker_that_came_back_without_the_weights_samples_nothing():
    attacker = object.__new__(VLLMEnvRunner)
    attacker.worker_index, attacker.weights_version = 3, 4
    with pytest.raises(StaleWeightsError, match="attacker-3 has weights of version 4, not 5"):
        attacker.sample(tasks=TASKS, seed=0, at_least=5)


@pytest.mark.parametrize("death", [DEAD, KILLED], ids=["dead", "killed for its memory"])
def test_a_learner_that_died_is_dead(death):
    with patch("actors.grpo.ray.get", side_effect=death):
        assert _died(MagicMock(__ray_ready__=Mock()))


@pytest.mark.parametrize(
    "death",
    [DEAD, KILLED, StaleWeightsError("old")],
    ids=["dead", "killed for its memory", "back without weights"],
)
def test_an_attackers_death_loses_its_share_alone(death):
    score = Mock(return_value=Scored({}, {}, Tally()))
    worker = reward_worker(_read=Mock(side_effect=[death, (TASKS, ["rollout"])]), _score=score)
    dead, _ = worker.score([], 0, [(0, "first"), (1, "second")], None)
    assert dead == [0] and score.call_args.args[2] == [(1, (TASKS, ["rollout"]))]


def test_a_judges_death_is_not_taken_for_an_attackers():
    worker = reward_worker(_read=Mock(return_value=(TASKS, ["rollout"])), _score=Mock(side_effect=DEAD))
    with pytest.raises(RayActorError, match="the scorer died 4 times"):
        worker.score([], 0, [(0, "first")], None)
