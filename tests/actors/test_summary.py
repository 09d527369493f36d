import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from actors.summary import PARTS, Summary, Tally

counts = st.integers(0, 20)


@st.composite
def tallies(draw):
    valid = draw(counts)
    successes = draw(st.integers(0, valid))
    rejected = Counter({"drift": draw(counts), "gibberish": draw(counts)})
    attempts = valid + rejected.total()
    return Tally(
        attempts=attempts,
        valid=valid,
        successes=successes,
        read=valid + rejected["gibberish"],
        tokens=draw(counts),
        rejected=rejected,
        cells={("hate", "polite"): [attempts, valid, successes]},
        sums={name: float(draw(counts)) for name in PARTS},
        versions=2 * attempts,
    )


def summary(parts):
    return Summary.of(parts, archive=3, coverage=0.5, weights_version=3, learnable=True)


@given(st.lists(tallies(), max_size=4))
def test_a_summary_is_the_same_however_the_attempts_were_dealt_out(parts):
    total = summary(parts)
    assert total == summary(parts[::-1])
    assert total.attempts == sum(part.attempts for part in parts) == total.valid + sum(total.rejected.values())
    if total.attempts:
        counts = (total.attempts, total.valid, total.successes)
        assert total.staleness == 1 and total.cells == {("hate", "polite"): counts}
        assert total.parts["kept"] == sum(part.sums["kept"] for part in parts) / total.attempts
    if total.valid:
        for name in ("evasion", "novelty"):
            assert total.parts[name] == sum(part.sums[name] for part in parts) / total.valid
    if read := total.valid + total.rejected.get("gibberish", 0):
        assert total.parts["fluency"] == sum(part.sums["fluency"] for part in parts) / read


@given(st.lists(tallies(), max_size=2))
def test_a_summary_survives_json(parts):
    assert Summary.from_json(json.loads(json.dumps(summary(parts).as_json()))) == summary(parts)
