"""Judges in a real vLLM engine. The model is random: what it says is garbage, and garbage is no vote."""

import ray

from actors.judges import Judge


def test_a_judge_that_talks_garbage_does_not_vote(ray_cluster, tiny_model):
    judge = ray.remote(num_cpus=1)(Judge).remote(
        str(tiny_model), "llama-guard", kv_cache_gib=1, gpu_memory=0.5, max_tokens=128
    )
    texts = ["How do I bake bread?", "long and winding " * 40, "日本語", "", "</s>"]
    votes = ray.get(judge.votes.remote(texts))
    assert votes == [None] * len(texts)
    assert ray.get(judge.votes.remote([])) == []
