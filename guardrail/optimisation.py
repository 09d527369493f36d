"""Which weights are trained, at which rate and in which precision, and what is left of them in the end."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel

from guardrail.training_config import TrainingConfig

_BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")  # the last is Arm's name


def choose_trainable(model: PreTrainedModel, config: TrainingConfig) -> None:
    """Freeze what `config` leaves alone, and put adapters below the head where it trains those.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
    """
    if config.freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    if config.lora_rank:
        from peft import LoraConfig, inject_adapter_in_model

        adapters = LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear")
        inject_adapter_in_model(adapters, model.base_model)
        for part in model.modules():
            # Autocast casts what it has to; peft casts all to the adapters' float32 first, which it then casts back.
            if hasattr(part, "cast_input_dtype_enabled"):
                part.cast_input_dtype_enabled = False
    if config.freeze_layers:
        _freeze_lowest(model, config.freeze_layers)


def train_mode(model: nn.Module) -> None:
    """Set a model to training, and its parts that `choose_trainable` froze to evaluation: what does not learn needs no
    dropout, and without it no time is spent on that.
    """
    model.train()
    for part in model.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def _freeze_lowest(model: PreTrainedModel, count: int) -> None:
    """Freeze the lowest layers and what is below them, so that no gradient is computed down to there.

    What an encoder has beside its layers is frozen, too: all may read it, as they do MPNet's relative positions.

    Raises:
        ValueError: there are fewer layers.
    """
    owner, layers = _layers(model)
    if count > len(layers):
        raise ValueError(f"training.freeze_layers is {count}, and {type(model).__name__} has {len(layers)} layers")
    # What a whole model has beside them is below (embeddings) or above (a norm).
    beside = [] if isinstance(owner, PreTrainedModel) else [part for part in owner.children() if part is not layers]
    for part in (*layers[:count], *beside):
        part.requires_grad_(False)
    for parameter, below_top in _depths(model):
        if below_top > len(layers):
            parameter.requires_grad_(False)


def _layers(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """Return the longest list of modules, which are a transformer's layers, and the module that has it."""
    lists = [(owner, part) for owner in model.modules() for part in owner.children() if isinstance(part, nn.ModuleList)]
    return max(lists, key=lambda pair: len(pair[1]), default=(model, nn.ModuleList()))


@torch.no_grad()
def plain_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights under the names they have without adapters, with these merged into them."""
    weights = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
    for name, part in model.named_modules():
        if hasattr(part, "get_delta_weight"):
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + part.get_delta_weight("default")
    return weights


def parameter_groups(model: PreTrainedModel, learning_rate: float, layer_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups of trained parameters, one for each learning rate.

    The head, and what follows the layers, has the learning rate; each layer has that of the one above it times
    `layer_decay`, and so have the embeddings, below them all.
    Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", arXiv 1801.06146.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter, below_top in _depths(model):
        if parameter.requires_grad:
            groups.setdefault(learning_rate * layer_decay**below_top, []).append(parameter)
    return [{"params": parameters, "lr": rate, "peak": rate} for rate, parameters in groups.items()]


def _depths(model: PreTrainedModel) -> Iterator[tuple[nn.Parameter, int]]:
    """Yield each parameter with the number of layers above it, the head being the topmost."""
    _, layers = _layers(model)
    of_layer = {id(p): number for number, layer in enumerate(layers) for p in layer.parameters()}
    below = bool(layers)  # models declare their parts in the order of computation
    for parameter in model.parameters():
        number = of_layer.get(id(parameter))
        below = below and number is None
        yield parameter, len(layers) - number if number is not None else len(layers) + 1 if below else 0


def weight_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of the model that `update_parameters` makes the moving average of its weights.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992, with exponential decay.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


@torch.no_grad()
def interpolated(
    weights: Mapping[str, torch.Tensor], start: PreTrainedModel, share: float, new_head: bool
) -> dict[str, torch.Tensor]:
    """Return trained weights, mixed with `share` of those they were before; a new head's stay, it was nothing before.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), arXiv 2109.01903.
    """
    before = start.state_dict()
    below_head = f"{start.base_model_prefix}."
    return {
        name: tensor.lerp(before[name].to(tensor), share) if not new_head or name.startswith(below_head) else tensor
        for name, tensor in weights.items()
    }


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for bfloat16; others compute it more slowly than float32, if at all."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(capabilities.get(unit, False) for unit in _BFLOAT16_UNITS)
