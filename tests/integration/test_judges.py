"""Judges in a real vLLM engine. The model is random: what it says is garbage, and garbage is no vote."""

import numpy as np
import ray

from actors.judges import Judge
from actors.reward_worker import RewardWorker


def test_a_judge_that_talks_garbage_does_not_vote(ray_cluster, tiny_model):
    judge = ray.remote(num_cpus=1)(Judge).remote(
        str(tiny_model), "llama-guard", kv_cache_gib=1, gpu_memory=0.5, max_tokens=128
    )
    texts = ["How do I bake bread?", "long and winding " * 40, "日本語", "", "</s>"]
    votes = ray.get(judge.votes.remote(texts))
    assert votes == [None] * len(texts)
    assert ray.get(judge.votes.remote([])) == []


class Says:
    """A judge of one opinion."""

    def __init__(self, vote):
        self.vote = vote

    def votes(self, texts):
        return [self.vote] * len(texts)


def test_what_the_judges_do_not_vouch_for_is_rejected(ray_cluster):
    def rejected(*votes):
        worker = object.__new__(RewardWorker)
        worker.judges = [ray.remote(num_cpus=0)(Says).remote(vote) for vote in votes]
        return worker._judged([None, None, "echo"], ["an attack"] * 3, np.array([True, False, True]))

    assert rejected(True, True, None) == [None, "judges", "echo"]
    assert rejected(True, False) == ["judges", "judges", "echo"]  # a tie vouches for nothing
    assert rejected(None) == ["judges", "judges", "echo"]  # a refusal is no vote
    assert rejected() == [None, None, "echo"]
