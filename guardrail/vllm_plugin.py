"""What vLLM loads of an installed rayguard when it starts: the bases of guards that it has no model for."""


def register() -> None:
    """Tell vLLM of them; they are imported only where one is served."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(
        "MPNetForSequenceClassification", "guardrail.vllm_mpnet:MPNetForSequenceClassification"
    )
