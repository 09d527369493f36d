"""Dropout for CPUs, where torch draws doubles, one after the other, which takes up to a quarter of a step."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_VALUES = 256  # of a byte
_LARGEST_ERROR = 0.05  # of the share that is dropped, relative to what was asked for


class ByteDropout(TorchFunctionMode):
    """Within it `torch.nn.functional.dropout` draws a byte for each number, from torch's generator.

    So the share that is dropped is a multiple of 1/256: 26/256 in the place of 0.1. What is kept is scaled by the share
    that is kept indeed, so that the expectation is the input. Where bytes are too coarse, torch's own draws.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.dropout:
            return _dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    dropped = round(p * _VALUES)
    coarse = dropped in (0, _VALUES) or abs(dropped / _VALUES - p) > _LARGEST_ERROR * p
    if not training or inplace or coarse:
        return torch.nn.functional.dropout(input, p, training, inplace)
    words = torch.empty(-(-input.numel() // 8), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    kept = words.view(torch.uint8)[: input.numel()].view(input.shape) >= dropped
    return input * kept.to(input.dtype).mul_(_VALUES / (_VALUES - dropped))
