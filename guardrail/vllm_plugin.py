"""What vLLM loads of an installed rayguard when it starts: the bases of guards that it has no model for."""


def register() -> None:
    """Tell vLLM of them; they are imported only where one is served."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    class MPNetLimits(VerifyAndUpdateConfig):
        """How long a text may be: MPNet numbers positions from the one after the padding token's id on."""

        @staticmethod
        def verify_and_update_model_config(model_config) -> None:  # type: ignore[no-untyped-def]
            """Refuse longer ones, which would end the server."""
            positions = model_config.hf_config.max_position_embeddings - model_config.hf_config.pad_token_id - 1
            model_config.max_model_len = min(model_config.max_model_len, positions)

    name = "MPNetForSequenceClassification"
    MODELS_CONFIG_MAP[name] = MPNetLimits
    ModelRegistry.register_model(name, f"guardrail.vllm_mpnet:{name}")
