"""A guard on MPNet in vLLM's classification server.

MPNet adds a bias for the distance of two tokens to every layer's attention, which no attention of vLLM can. So
transformers' own model computes here; vLLM hands it all texts of a step as one row of tokens, and does the rest.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import MPNetModel
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler import DispatchPooler
from vllm.model_executor.models.interfaces_base import attn_type, default_pooling_type
from vllm.model_executor.models.roberta import RobertaClassificationHead
from vllm.model_executor.models.utils import AutoWeightsLoader
from vllm.sequence import IntermediateTensors

from guardrail.batching import token_batches

_TOKENS = 2048  # of texts that are read together, padding included


@attn_type("encoder_only")
@default_pooling_type(seq_pooling_type="CLS")
class MPNetForSequenceClassification(nn.Module):
    """The classifier that transformers has under this name, as vLLM wants one."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        pooler_config = vllm_config.model_config.pooler_config
        assert pooler_config is not None
        self.padding = config.pad_token_id
        self.mpnet = MPNetModel(config, add_pooling_layer=False)
        self.classifier = RobertaClassificationHead(vllm_config.model_config)
        self.pooler = DispatchPooler.for_seq_cls(pooler_config, classifier=self.classifier)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Take the guard's weights, whose names are the same, and return the names."""
        return AutoWeightsLoader(self).load_weights(weights)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the tokens' embeddings, [tokens, hidden]."""
        return self.mpnet.embeddings.word_embeddings(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the hidden states [tokens, hidden] of texts that follow each other in `input_ids` [tokens].

        Each begins where `positions` [tokens] is 0: encoders read a text in one step.

        Raises:
            ValueError: embeddings were given in the place of tokens.
        """
        if input_ids is None:
            raise ValueError("a guard on MPNet reads tokens, no embeddings of prompts")
        starts = torch.nonzero(positions == 0).flatten().tolist()
        lengths = [end - start for start, end in zip(starts, [*starts[1:], len(positions)], strict=True)]
        texts = input_ids.split(lengths)
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        hidden: dict[int, torch.Tensor] = {}
        for rows in token_batches(order, lengths, _TOKENS):
            padded = pad_sequence([texts[row] for row in rows], batch_first=True, padding_value=self.padding)
            read = pad_sequence([torch.ones_like(texts[row]) for row in rows], batch_first=True)
            states = self.mpnet(padded, attention_mask=read).last_hidden_state
            hidden.update((row, states[place, : lengths[row]]) for place, row in enumerate(rows))
        return torch.cat([hidden[row] for row in range(len(texts))])
