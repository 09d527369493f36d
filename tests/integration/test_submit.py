"""What `ray job submit` and the dashboard say of the loop."""


def test_a_submitted_loop_runs_and_shows_in_the_dashboard(submitted_loop):
    assert submitted_loop.status == "SUCCEEDED" and "jobs/adversarial_loop.py" in submitted_loop.entrypoint
    assert f"guard:  {submitted_loop.run_dir}/guard" in submitted_loop.printed
    assert "rounds so far" in submitted_loop.printed
    actors = submitted_loop.actors
    assert "attacker-1" in actors and any(name.startswith("scorer-") for name in actors), actors
    assert "MapWorker(MapBatches(Synthesizer))" in actors and any("TrainWorker" in name for name in actors), actors
    gauges = {"rayguard_attack_iteration", "rayguard_reward_part", "rayguard_round", "rayguard_guard_f1"}
    assert gauges <= submitted_loop.gauges
