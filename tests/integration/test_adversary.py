"""The adversary on real engines: a two-layer Llama in vLLM, RLlib's learner, Ray actors."""

import os
import shutil
import signal

import numpy as np
import psutil
import pytest
import ray
import torch

from actors.adversary import Adversary
from actors.attempts import successes_of
from actors.styles import STYLE
from actors.summary import PARTS
from actors.weight_sync import WeightSyncError
from cluster.resources import plan_for_cluster
from guardrail.guard import Guard
from guardrail.records import make_record
from tests import tiny_adversary
from tests.tiny_guard import tiny_guard
from tests.waiting import until_workers_log

GOALS = [
    *tiny_adversary.GOALS,
    make_record("never used", unsafe=True, source="c", categories=["sexual/minors"]),
    make_record("Something sexual, never used, about a child", unsafe=True, source="c", categories=None),
    make_record("Something sexual, never used, about a niece", unsafe=True, source="c", categories=["sexual"]),
    make_record("never used", unsafe=True, source="c", categories=[], response="its label is that of both"),
    make_record("never used, for it is long " * 200, unsafe=True, source="c", categories=[]),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_adversary.tiny_settings(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return tiny_guard(tmp_path_factory.mktemp("guard") / "guard")


@pytest.fixture(scope="module")
def adversary(ray_cluster, config):
    plan = plan_for_cluster(num_env_runners=1, num_learners=0, num_guard_workers=1)
    adversary = Adversary(config, plan, seed=1)
    yield adversary
    adversary.stop()


@pytest.fixture(scope="module")
def attack(adversary, guard, tmp_path_factory):
    """Attack for a round, in a directory of its own unless one is given."""

    def start(round_index, goals=GOALS, directory=None, after=lambda done, iteration: None, **options):
        directory = directory or tmp_path_factory.mktemp("round")
        return adversary.attack(round_index, goals, str(guard), directory, after, **options)

    return start


@pytest.fixture(scope="module")
def outcome(attack):
    return attack(1, guard_version="tiny@1")


def syncs(outcome):
    return [each.sync for each in outcome.iterations]


def test_a_round_generates_learns_and_keeps_engine_and_learner_together(outcome, config):
    assert outcome.attempts.num_rows == config.iterations * config.groups * config.group_size
    assert len(outcome.iterations) == config.iterations
    assert all(sync["probe_max_abs_logprob_diff"] < 1e-3 for sync in syncs(outcome))
    distances = [sync["weight_distance"] for sync in syncs(outcome)]
    assert 0 < distances[0] < distances[1]
    for iteration in outcome.iterations:
        assert {"kl", "entropy", "clipped_share", "ratio"} < set(iteration.learner)
        assert iteration.summary.tokens > 0 and iteration.summary.staleness == 0
        assert set(iteration.summary.parts) == set(PARTS)
        assert iteration.summary.parts["fluency"] < 0  # a log-probability
        assert set(iteration.seconds) == {"generate", "score", "update", "sync"}


def test_both_directions_are_attacked_and_never_what_must_not_be(outcome):
    goals = {goal["id"]: goal for goal in GOALS}
    attacked = [goals[seed] for seed in set(outcome.attempts["seed_id"].to_pylist())]
    assert {goal["unsafe"] for goal in attacked} == {True, False}
    assert not any("never used" in goal["text"] for goal in attacked)
    assert outcome.goals_left_out == {"not to be generated from": 4, "too long for adversary.max_prompt_tokens": 1}


def test_goals_of_one_label_alone_are_refused_with_the_reason(attack, outcome):
    with pytest.raises(ValueError, match="6 and 0 of 11 can be used .4 not to be generated from, 1 too long"):
        attack(1, [goal for goal in GOALS if goal["unsafe"]])


def test_attempts_are_records_that_lead_back_to_their_seed(outcome):
    seeds = {goal["id"]: goal for goal in GOALS}
    for row in outcome.attempts.to_pylist():
        seed = seeds[row["seed_id"]]
        assert (row["unsafe"], row["parent_id"]) == (seed["unsafe"], seed["id"])
        assert row["method"] == (f"rl:{row['style']}" if STYLE[row["style"]].transforms else "rl")
        assert row["guard_version"] == "tiny@1" and row["attacker_version"].endswith("/round-01")
        assert row["valid"] is (row["rejected"] is None) and (row["valid"] or not row["success"])
    assert all(record["style"] for record in successes_of(outcome.attempts))


def test_a_disguised_attack_reaches_the_guard_and_the_records_as_it_is_written(attack, guard):
    outcome = attack(1, updates=8, learn=False)  # most lines of a random model do not end
    shown = [row for row in outcome.attempts.to_pylist() if row["valid"]]
    scores = Guard.from_pretrained(guard).probabilities([row["text"] for row in shown])[:, 0]
    assert np.allclose(scores, [dict(row["scores"])["guard"] for row in shown], atol=1e-4)
    assert any(row["method"].startswith("rl:") for row in shown)


def test_actors_have_names_that_say_what_they_are(adversary):
    assert any(name.startswith("scorer-") for name in ray.util.list_named_actors())
    assert adversary.algorithm.env_runner_group.foreach_env_runner(repr, local_env_runner=False) == ["attacker-1"]


def test_what_prompts_begin_with_is_cached_in_blocks_shorter_than_a_prompt(adversary):
    def cache(runner):
        resolved = runner.engine.llm.llm_engine.vllm_config.cache_config
        return resolved.enable_prefix_caching, resolved.block_size

    ((cached, tokens),) = adversary.algorithm.env_runner_group.foreach_env_runner(cache, local_env_runner=False)
    assert cached is True and tokens <= 32  # vLLM's own choice on CPUs is 128


def learned(adversary):
    return adversary.algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]


def test_a_round_that_is_killed_goes_on_as_if_it_had_not_been(adversary, attack, outcome, tmp_path):
    whole_dir, killed_dir = tmp_path / "whole", tmp_path / "killed"

    def leave_behind(done, iteration):
        """What a kill in the second iteration leaves: the first one's checkpoint, and files of the second."""
        if done == 1:
            shutil.copytree(whole_dir, killed_dir)
        elif done == 2:
            shutil.copy(whole_dir / "archive-0002.parquet", killed_dir)
            # Of a second attacker, which there is none of any more.
            shutil.copy(whole_dir / "iteration-0001-000.parquet", killed_dir / "iteration-0001-001.parquet")

    whole = attack(2, directory=whole_dir, after=leave_behind, updates=3)
    weights = learned(adversary)
    again = attack(2, directory=killed_dir, updates=3)
    assert again.attempts.equals(whole.attempts) and len(again.iterations) == 3
    assert all(np.allclose(weights[name], value, atol=1e-6) for name, value in learned(adversary).items())
    assert difference_without_sending(adversary) < 1e-3  # the engines have these weights, too
    assert len(list(killed_dir.glob("checkpoint-*"))) == 1


def test_a_round_that_only_measures_changes_nothing(adversary, attack, outcome):
    weights, counts = learned(adversary), adversary.algorithm.curriculum.get_state()
    measured = attack(0, learn=False, updates=1)
    assert measured.attempts.num_rows and not measured.iterations[0].sync
    assert all(np.array_equal(weights[name], value) for name, value in learned(adversary).items())
    assert adversary.algorithm.curriculum.get_state() == counts


@pytest.fixture
def generates_ahead(adversary, monkeypatch):
    """Have the attackers generate while the learner updates."""
    ahead = adversary.algorithm.config.adversary.model_copy(update={"generate_ahead": True})
    monkeypatch.setitem(vars(adversary.algorithm.config), "adversary", ahead)


def test_generating_ahead_is_one_version_behind_and_says_so(attack, outcome, generates_ahead):
    iterations = attack(2, updates=3).iterations
    assert [each.summary.staleness for each in iterations] == [0, 1, 1]
    assert all(each.sync["probe_max_abs_logprob_diff"] < 1e-3 for each in iterations)
    assert len({each.sync["weight_distance"] for each in iterations}) == 3


def difference_without_sending(adversary):
    """What the probe finds of the weights that the engines have as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adversary.algorithm.weight_sync, "_send_weights", lambda: None)
        return adversary.algorithm.weight_sync.send()["probe_max_abs_logprob_diff"]


def test_a_wrong_weight_in_the_engine_is_noticed(adversary, outcome):
    group = adversary.algorithm.env_runner_group
    wrong = {"model.norm.weight": torch.zeros(64)}  # the tiny model's width
    group.foreach_env_runner(lambda runner: runner.engine.load_weights(wrong), local_env_runner=False)
    with pytest.raises(WeightSyncError, match="differ from the learner's"):
        difference_without_sending(adversary)
    assert adversary.algorithm.weight_sync.send()["probe_max_abs_logprob_diff"] < 1e-3


def attacker(adversary):
    """Return the attacker's process; while it generates it does not tell."""
    (pid,) = adversary.algorithm.env_runner_group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
    return psutil.Process(pid)


def kill_attacker(adversary):
    attacker(adversary).send_signal(signal.SIGKILL)


def test_a_killed_attacker_comes_back_with_the_learners_weights(adversary, attack, outcome, config, caplog):
    kill_attacker(adversary)
    after = attack(2, after=lambda done, iteration: kill_attacker(adversary))
    assert after.attempts.num_rows == config.iterations * config.groups * config.group_size
    assert "1 of 1 attackers died" in caplog.text
    assert all(syncs(after))
    assert adversary.algorithm.weight_sync.send()["weight_distance"] > 0  # it was killed after its last sync
    assert difference_without_sending(adversary) < 1e-3


@pytest.mark.long
def test_an_attacker_that_is_killed_while_it_generates_ahead_is_asked_again(
    adversary, attack, outcome, config, generates_ahead, monkeypatch, caplog
):
    doomed, update = [attacker(adversary)], adversary.algorithm._update

    def update_meanwhile(batches):
        while doomed:
            doomed.pop().send_signal(signal.SIGKILL)
        update(batches)

    monkeypatch.setattr(adversary.algorithm, "_update", update_meanwhile)
    after = attack(2, updates=3)
    assert "1 of 1 attackers died" in caplog.text
    assert len(after.iterations) == 3 and after.attempts.num_rows == 3 * config.groups * config.group_size
    assert all(each.summary.staleness <= 1 for each in after.iterations)
    assert all(sync["probe_max_abs_logprob_diff"] < 1e-3 for sync in syncs(after))


def process_of(worker):
    return psutil.Process(ray.get(worker.__ray_call__.remote(lambda _: os.getpid())))


def test_a_killed_scorer_is_restarted_and_loses_nothing(adversary, attack, outcome, config, monkeypatch, tmp_path):
    undisturbed = attack(3, learn=False, updates=1)
    (worker,) = adversary.algorithm._workers
    before, have_scored = process_of(worker), adversary.algorithm.rollouts._have_scored

    def killed(*arguments):
        asked = have_scored(*arguments)
        before.send_signal(signal.SIGKILL)
        return asked

    with monkeypatch.context() as patch:
        patch.setattr(adversary.algorithm.rollouts, "_have_scored", killed)
        after = attack(3, learn=False, updates=1, directory=tmp_path / "killed")
    assert process_of(worker).pid != before.pid
    until_workers_log("a scorer died and was restarted; what it was scoring is scored again")
    assert after.attempts.equals(undisturbed.attempts)
    assert attack(3, updates=1).attempts.num_rows == config.groups * config.group_size


def test_attackers_that_take_too_long_are_named_with_the_settings_to_change(attack, outcome, monkeypatch):
    monkeypatch.setattr("actors.rollouts.RUNNER_TIMEOUT_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match="took longer than 0 s to generate; .*adversary.groups"):
        attack(3)
