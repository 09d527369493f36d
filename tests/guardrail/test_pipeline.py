"""What a resumed curation takes for done."""

from guardrail.curation.config import CurationConfig
from guardrail.curation.pipeline import stage_key, stages


def test_another_model_in_the_same_directory_has_the_stages_that_read_it_done_again(tmp_path):
    def changed(**settings):
        """Return the stages whose key is another one once the model in `tmp_path` is."""
        (tmp_path / "model.safetensors").write_bytes(b"weights")
        listed = stages(CurationConfig(**settings), {})
        before = [stage_key("", stage) for stage in listed]
        assert before == [stage_key("", stage) for stage in listed]
        (tmp_path / "model.safetensors").write_bytes(b"other weights")
        return {stage.name for stage, key in zip(listed, before, strict=True) if stage_key("", stage) != key}

    assert changed() == set()
    assert changed(gibberish_model=str(tmp_path)) == {"quality"}
    for prefix in ("", "static:"):
        assert changed(semantic_encoder=f"{prefix}{tmp_path}") == {"decontamination", "semantic", "noise"}
    assert changed(embedder=str(tmp_path)) == {"fidelity", "noise"}
