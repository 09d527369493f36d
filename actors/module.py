"""The policy as an RLModule: a causal language model whose top layers are trained over a frozen copy of itself.

Embeddings, output head and lower layers are shared by policy and reference, so one pass through them serves both, and
only the top layers travel to the engines and into checkpoints. A row holds a whole group, the prompt once and then its
completions, each of which sees the prompt and itself: prompts are several times as long as what follows them.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from transformers import AutoModelForCausalLM

from guardrail.models import resolve

INPUT_IDS = "input_ids"
#: 0 on the prompt, k on the k-th completion, -1 on padding.
SEGMENTS = "segments"
ENGINE_LOGPROBS = "engine_logprobs"
OLD_LOGPROBS = "old_logprobs"
ADVANTAGES = "advantages"


def check_built_as_llama(model: torch.nn.Module, name: str) -> None:
    """Raise ValueError if a model has not the parts that are trained."""
    if not all(hasattr(getattr(model, "model", None), part) for part in ("layers", "norm", "embed_tokens")):
        raise ValueError(
            f"cannot train {name}: a {type(model).__name__} is not built as Llama is (model.embed_tokens, "
            "model.layers, model.norm); Llama, Mistral, Qwen2, Qwen3 and SmolLM are"
        )


class CausalLMModule(TorchRLModule):
    """Log-probabilities of completions under the policy and under the frozen reference.

    `model_config`: `model` (bundled name, directory or hub id), `trainable_layers`, `lora_rank` (0: the layers' weights
    themselves are trained), `temperature` (of sampling).
    """

    def setup(self) -> None:
        """Load the reference and copy its top layers and final norm as the trainable policy."""
        name = self.model_config["model"]
        self.reference = AutoModelForCausalLM.from_pretrained(resolve(name), dtype=torch.float32)
        check_built_as_llama(self.reference, name)
        self.reference.requires_grad_(False)
        layers = self.reference.model.layers
        self.frozen_layers = max(0, len(layers) - self.model_config["trainable_layers"])
        self.layers = copy.deepcopy(layers[self.frozen_layers :]).requires_grad_(True)
        self.norm = copy.deepcopy(self.reference.model.norm).requires_grad_(True)
        if rank := self.model_config["lora_rank"]:
            from peft import LoraConfig, inject_adapter_in_model

            self.norm.requires_grad_(False)
            adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
            inject_adapter_in_model(adapters, self.layers)
        self.temperature: float = self.model_config["temperature"]

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, torch.Tensor]:
        """Return what `logprobs` returns, at the temperature that was sampled with."""
        return self.logprobs(batch[INPUT_IDS].long(), batch[SEGMENTS].long(), self.temperature)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        return self._forward_train(batch, **kwargs)

    def logprobs(self, input_ids: torch.Tensor, segments: torch.Tensor, temperature: float) -> dict[str, torch.Tensor]:
        """Return `logprobs`, `reference_logprobs` and `entropy`, float [batch, tokens], zero outside completions.

        At t each is about the token at t given the prompt and those of its completion before it.

        Args:
            input_ids, segments: [batch, tokens].
            temperature: divides the logits of both policies.
        """
        wanted = segments > 0
        positions, before, mask = _layout(segments)
        first_trained: dict[str, Any] = {}

        def capture(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # What the reference's first trained layer is given (hidden states, mask, rotary embeddings) is what the
            # policy's is given: the layers below are the same.
            first_trained.update(args=args, kwargs=kwargs)

        hook = self.reference.model.layers[self.frozen_layers].register_forward_pre_hook(capture, with_kwargs=True)
        try:
            with torch.no_grad():
                reference_hidden = self.reference.model(
                    input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False
                ).last_hidden_state
        finally:
            hook.remove()
        args, kwargs = first_trained["args"], first_trained["kwargs"]
        if args:
            hidden, args = args[0], args[1:]
        else:
            hidden = kwargs.pop("hidden_states")
        for layer in self.layers:
            output = layer(hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        hidden = self.norm(hidden)

        rows = torch.arange(len(segments), device=segments.device)[:, None].expand_as(segments)[wanted]
        tokens, before = input_ids[wanted], before[wanted]
        with torch.no_grad():
            reference, _ = self._token_logprobs(reference_hidden[rows, before], tokens, temperature)
        policy, entropy = self._token_logprobs(hidden[rows, before], tokens, temperature)
        return {
            "logprobs": _scatter(policy, wanted),
            "reference_logprobs": _scatter(reference, wanted),
            "entropy": _scatter(entropy.detach(), wanted),
        }

    def _token_logprobs(
        self, hidden: torch.Tensor, tokens: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probability of each token and entropy of its distribution, [n]; `hidden` is [n, width]."""
        logprobs = torch.log_softmax(self.reference.lm_head(hidden) / temperature, dim=-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, tokens[:, None]).squeeze(-1), entropy

    def get_state(self, *args: Any, inference_only: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Return what was trained; the rest is the base model's.

        For engines (`inference_only`) that is weights under their Hugging Face names, adapters merged into them; else
        the trained parameters, to go on from.
        """
        tensors = self._merged() if inference_only else self._trained()
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over parameters that `get_state` returned.

        Raises:
            ValueError: the names are not those of this module's trained parameters.
        """
        trained = self._trained()
        if trained.keys() != state.keys():
            raise ValueError("the state is of another model, or of another number of trained layers or rank")
        with torch.no_grad():
            for name, tensor in convert_to_torch_tensor(dict(state)).items():
                trained[name].copy_(tensor)

    @torch.no_grad()
    def distance_from_reference(self) -> float:
        """Return the L2 norm of what training has changed."""
        original = dict(self.reference.named_parameters())
        squares = [((tensor - original[name]) ** 2).sum() for name, tensor in self._merged().items()]
        return float(torch.stack(squares).sum().sqrt())

    def _trained(self) -> dict[str, torch.Tensor]:
        return {name: p for name, p in self._named() if p.requires_grad}

    @torch.no_grad()
    def _merged(self) -> dict[str, torch.Tensor]:
        """Return the weights of the trained layers under their Hugging Face names."""
        if not self.model_config["lora_rank"]:
            return self._trained()
        merged = {name.replace(".base_layer", ""): p.detach() for name, p in self._named() if ".lora_" not in name}
        for offset, layer in enumerate(self.layers):
            for name, part in layer.named_modules():
                if hasattr(part, "get_delta_weight"):
                    key = f"model.layers.{self.frozen_layers + offset}.{name}.weight"
                    merged[key] = merged[key] + part.get_delta_weight("default")
        return merged

    def _named(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, parameter in self.norm.named_parameters():
            yield f"model.norm.{name}", parameter
        for offset, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                yield f"model.layers.{self.frozen_layers + offset}.{name}", parameter


def completion_lengths(segments: torch.Tensor) -> torch.Tensor:
    """Return the length of the completion that each token is in, int [batch, tokens]; 0 outside completions."""
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
    return same.sum(-1)


def completion_starts(segments: torch.Tensor) -> torch.Tensor:
    """Return where completions begin, bool [batch, tokens]."""
    starts = segments > 0
    starts[:, 1:] &= segments[:, 1:] != segments[:, :-1]
    return starts


def _layout(segments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return positions, the index of each token's predecessor, and the additive attention mask [batch, 1, query, key].

    Every completion goes on where the prompt ends, and sees nothing of its siblings.
    """
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = completion_starts(segments)
    prompt = (segments == 0).sum(dim=1, keepdim=True)
    own_start = torch.where(starts, index, 0).cummax(dim=1).values
    positions = torch.where(segments > 0, prompt + index - own_start, index)
    before = torch.where(starts, prompt, index) - 1
    query, key = segments[:, :, None], segments[:, None, :]
    visible = ((key == 0) | (key == query)) & (index[:, :, None] >= index[:, None, :])
    mask = torch.zeros(visible.shape, device=segments.device).masked_fill_(~visible, torch.finfo(torch.float32).min)
    return positions, before, mask[:, None]


def _scatter(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return [batch, tokens] with `values` where `mask` is set, in order, and zeros elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
