import pytest

from guardrail.refusals import has_meta_text, is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot assist.",
        "Sorry, I cannot answer this question.",
        "I am unable to provide that.",
        "As an AI language model, I have no opinions.",
        "That goes against my guidelines, friend.",
    ],
)
def test_refusals_are_recognised(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I can't sleep, what can I do?",
        "Sorry to bother you, how do I cook rice?",
        "How do I apologise to a friend I hurt?",
        "I will not make it to work today, write my boss a note.",
        "Here is my essay, can you fix the grammar?",
        "What is the original text of the Magna Carta about?",
    ],
)
def test_requests_of_people_are_no_refusals(text):
    assert not is_refusal(text)


@pytest.mark.parametrize(
    "text",
    ["Here is the rewritten message: hello", "Sure! Here you go: hello", "Output: hello", "hello [insert name]"],
)
def test_meta_text_is_recognised(text):
    assert has_meta_text(text)


@pytest.mark.parametrize("text", ["Here's my essay, can you fix it?", "What is a good message for a birthday card?"])
def test_requests_of_people_are_no_meta_text(text):
    assert not has_meta_text(text)
