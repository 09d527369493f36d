"""What attackers are asked for in an iteration."""

from types import SimpleNamespace

import numpy as np
import pytest

from actors.config import CurriculumConfig
from actors.curriculum import Curriculum
from actors.goals import Goals
from actors.grpo import GRPO
from actors.styles import STYLES
from guardrail.records import make_record

GOALS = [
    make_record(f"{category} {i}", unsafe=True, source=category, categories=[category])
    for category in ("fraud", "hate", "privacy")
    for i in range(20)
]


@pytest.mark.parametrize("learn", [True, False])
def test_attackers_that_learn_are_asked_more_about_what_succeeds_and_measured_ones_about_all_alike(learn):
    algorithm = object.__new__(GRPO)
    algorithm.config = SimpleNamespace(adversary=SimpleNamespace(groups=30), seed=0)
    algorithm._round_index, algorithm._iteration_in_round, algorithm._learn = 1, 0, learn
    algorithm._goals = Goals(GOALS, STYLES[:1], len, 10_000, 0.0)
    algorithm.styles = STYLES[:1]
    algorithm.curriculum = Curriculum(CurriculumConfig(floor=0.1), STYLES[:1])
    algorithm.curriculum.record("hate", STYLES[0].name, 1000, 1000, 900)
    algorithm.curriculum.record("fraud", STYLES[0].name, 1000, 1000, 0)
    algorithm.rollouts = SimpleNamespace(ask=lambda tasks, seed: tasks)
    asked = [GOALS[task.goal]["categories"][0] for task in algorithm._ask()]
    fraud, hate, privacy = (asked.count(name) for name in ("fraud", "hate", "privacy"))
    assert fraud + hate + privacy == 30
    assert (hate > privacy > fraud) if learn else np.ptp([fraud, hate, privacy]) <= 1


def test_what_is_measured_is_measured_in_all_styles_alike_whatever_worked_before():
    algorithm = object.__new__(GRPO)
    algorithm.config = SimpleNamespace(adversary=SimpleNamespace(groups=60), seed=0)
    algorithm._round_index, algorithm._iteration_in_round, algorithm._learn = 1, 0, False
    algorithm.styles = STYLES[:3]
    algorithm._goals = Goals(GOALS, STYLES[:3], len, 10_000, 0.0)
    algorithm.curriculum = Curriculum(CurriculumConfig(), STYLES[:3])
    algorithm.curriculum.record("hate", STYLES[0].name, 1000, 1000, 900)
    algorithm.rollouts = SimpleNamespace(ask=lambda tasks, seed: tasks)
    asked = [task.style for task in algorithm._ask()]
    assert np.ptp([asked.count(style.name) for style in STYLES[:3]]) <= 1
