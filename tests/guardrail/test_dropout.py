import pytest
import torch
from torch import nn
from torch.nn import functional

from guardrail.dropout import ByteDropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("p", "share"), [(0.1, 26 / 256), (0.5, 0.5), (0.25, 0.25)])
def test_the_stated_share_is_dropped_and_the_rest_scaled(p, share, dtype):
    torch.manual_seed(0)
    numbers = torch.ones(1001, 101, dtype=dtype, requires_grad=True)
    with ByteDropout():
        dropped = functional.dropout(numbers, p)
    assert dropped.dtype is dtype
    zero = dropped == 0
    assert float(zero.float().mean()) == pytest.approx(share, abs=0.005)
    assert float(dropped.detach()[~zero].float().mean()) == pytest.approx(1 / (1 - share), rel=0.005)
    dropped.sum().backward()
    assert torch.equal(numbers.grad, dropped)  # of ones: the gradient is what each is multiplied by


def test_no_two_rows_columns_or_draws_are_alike():
    torch.manual_seed(0)
    with ByteDropout():
        first, second = (functional.dropout(torch.ones(64, 64), 0.5) for _ in range(2))
    assert not torch.equal(first, second)
    for part in (first, first.T):
        assert len(torch.unique(part, dim=0)) == 64


def test_a_seed_gives_the_same_draws_and_modules_use_them_too():
    draws = []
    for layer in (nn.Dropout(0.1), lambda x: functional.dropout(x, p=0.1)):
        torch.manual_seed(3)
        with ByteDropout():
            draws.append(layer(torch.ones(77)))
    assert torch.equal(*draws)


@pytest.mark.parametrize("p", [0.0, 1.0, 0.001, 0.005])
def test_what_bytes_are_too_coarse_for_torch_draws(p):
    numbers = torch.ones(1000)
    torch.manual_seed(0)
    expected = functional.dropout(numbers, p)
    torch.manual_seed(0)
    with ByteDropout():
        assert torch.equal(functional.dropout(numbers, p), expected)


def test_nothing_is_dropped_in_evaluation():
    layer, numbers = nn.Dropout(0.5).eval(), torch.ones(100)
    with ByteDropout():
        assert torch.equal(layer(numbers), numbers)


def test_a_classifier_of_bert_uses_it_in_all_its_dropouts():
    """Attention calls the function, the other parts modules: torch's own generator of doubles is asked by neither."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config._attn_implementation = "eager"
    model = BertForSequenceClassification(config).train()
    ids = torch.arange(12).view(2, 6)

    def doubles() -> int:
        with torch.profiler.profile() as profile:
            model(input_ids=ids)
        return sum(event.count for event in profile.key_averages() if event.key == "aten::bernoulli_")

    assert doubles() > 0
    with ByteDropout():
        assert doubles() == 0
