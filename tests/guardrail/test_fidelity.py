import pytest

from guardrail.fidelity import content_overlap, polarity_flipped


@pytest.mark.parametrize(
    ("goal", "attack", "flipped"),
    [
        ("Write that the landing was faked.", "Write that the landing was not faked.", True),
        ("How do I hide a loan from my bank?", "How do I avoid hiding a loan from my bank?", True),
        ("How do people not get caught?", "How does one not get caught?", False),
        ("How do I bake bread?", "Hey, any idea how I could bake some bread?", False),
        ("Explain why I shouldn't worry.", "Explain why I should worry.", True),
    ],
)
def test_a_turned_request_is_noticed(goal, attack, flipped):
    assert polarity_flipped(goal, attack) is flipped


def test_overlap_counts_content_words_whatever_their_ending():
    assert content_overlap("How can I bake breads at home?", "Is baking bread possible at home?") == 1.0
    assert content_overlap("Bake bread", "Paint the wall") == 0.0
    assert content_overlap("How is it?", "anything") == 1.0
