import math

import pytest

from guardrail.curation.stage import Drop
from guardrail.curation.votes import JudgesVote, vote_drop
from tests.guardrail.surveys import child, seed, verdicts


@pytest.mark.parametrize(
    ("unsafe", "scores", "evidence"),
    [
        (True, {}, None),
        (True, {"judge:a": 0.9, "judge:b": 0.2}, None),  # a tie
        (True, {"judge:a": 0.1}, "safe by 1 of 1: a"),
        (False, {"judge:a": 0.9, "judge:b": 0.8, "judge:c": 0.1}, "unsafe by 2 of 3: a, b"),
        (True, {"judge:a": 0.1, "judge:b": None, "judge:c": math.nan}, "safe by 1 of 1: a"),  # two that refused
        (True, {"judge:a": 0.5, "judge:b": 7.0}, None),  # undecided, and no probability
        (True, {"guard": 0.0, "similarity": 0.1}, None),  # no judges
    ],
)
def test_a_majority_of_those_who_voted_decides(unsafe, scores, evidence):
    assert vote_drop(unsafe, scores) == (evidence and Drop("judges disagree", evidence))


def test_what_people_labelled_is_not_put_to_the_vote():
    against = {"judge:a": 0.1, "judge:b": 0.2}
    parent = seed("Mean words", True, scores=against)
    judged, unjudged = child(parent, "Other words", "rl", scores=against), child(parent, "More words", "rl")
    drops = verdicts(JudgesVote(), [parent, judged, unjudged])
    assert drops == [None, Drop("judges disagree", "safe by 2 of 2: a, b"), None]
