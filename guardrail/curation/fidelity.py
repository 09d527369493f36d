"""The stage that checks what a generated record means against the seeds it grew from."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from guardrail.curation.config import CurationConfig
from guardrail.curation.stage import Drop, Judge, Survey, keep_all
from guardrail.embedding import loaded_embedder
from guardrail.fidelity import polarity_flipped
from guardrail.intent import IntentModel
from guardrail.records import Record, from_table
from guardrail.synthesis.strategies import STRATEGIES, STRATEGY

_NEIGHBOURS = 5
#: Embeddings and words are English: translations are left to judges' votes.
_JUDGED = [strategy.name for strategy in STRATEGIES if strategy.language is None]


class LabelFidelity:
    """Synthetic records that are not to their seed what their strategy says.

    What says the seed's request otherwise must be like it and not turned against it; another request of its kind must
    look like seeds of its label; a contrast must be like the seed, and ask for something else. Records of other methods
    are not judged: attacks have passed the adversary's gate.
    """

    name = "fidelity"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config
        self.settings: Mapping[str, Any] = config.model_dump(
            include={"embedder", "paraphrase_similarity", "augment_similarity"}
        )

    def prepare(self, survey: Survey) -> Judge:
        """Gather the seeds, which are few, with their embeddings, if there is anything to hold against them."""
        methods = survey.kept(["method"])["method"]
        if not pc.any(pc.is_in(methods, value_set=pa.array(_JUDGED))).as_py():
            return keep_all
        seeds = survey.computed(functools.partial(_seed_rows, self.config))
        return functools.partial(_judge_fidelity, Seeds(seeds, self.config))


@functools.cache  # once in each worker process
def _intent_model() -> IntentModel:
    return IntentModel.from_pretrained()


def _seed_rows(config: CurationConfig, batch: pa.Table) -> pa.Table:
    seeds = [record for record in from_table(batch) if record["method"] == "seed"]
    rows = [{key: record[key] for key in ("id", "text", "unsafe")} for record in seeds]
    embeddings = loaded_embedder(config.embedder).encode([record["text"] for record in seeds]).tolist() if seeds else []
    table = pa.Table.from_pylist(rows, pa.schema([("id", pa.string()), ("text", pa.string()), ("unsafe", pa.bool_())]))
    return table.append_column("embedding", pa.array(embeddings, pa.list_(pa.float32())))


class Seeds:
    """The seeds, and what it takes to be close to them."""

    def __init__(self, seeds: pa.Table, config: CurationConfig) -> None:
        seeds = seeds.sort_by("id")
        ids = seeds["id"].to_pylist()
        self.config = config
        self.texts = dict(zip(ids, seeds["text"].to_pylist(), strict=True))
        self.index = {seed: i for i, seed in enumerate(ids)}
        self.unsafe = seeds["unsafe"].to_numpy()
        flat = seeds["embedding"].combine_chunks().flatten().to_numpy()
        self.embeddings = flat.reshape(len(ids), -1) if ids else flat.reshape(0, 0)

    def drop(self, record: Record, embedding: np.ndarray) -> Drop | None:
        """Return why a generated record's label cannot be trusted, or None.

        Args:
            record: of a strategy and a seed that are known.
            embedding: of its text, L2-normalised [d].
        """
        seed, relation = record["seed_id"], STRATEGY[record["method"]].relation
        similarities = self.embeddings @ embedding
        own = float(similarities[self.index[seed]])
        if relation == "contrast":
            if own < self.config.augment_similarity:
                return Drop("unlike its seed", f"similarity {own:.2f}")
            intent = _intent_model()
            same = float(intent.kept_probability([self.texts[seed]], [record["text"]])[0])
            return Drop("asks what its seed asks", f"P(same) {same:.2f}") if same >= 1 - intent.threshold else None
        if relation == "same":
            if own < self.config.paraphrase_similarity:
                return Drop("unlike its seed", f"similarity {own:.2f}")
            if polarity_flipped(self.texts[seed], record["text"]):
                return Drop("turned against its seed", "")
            return None
        nearest = np.argsort(-similarities, kind="stable")[:_NEIGHBOURS]
        if similarities[nearest[0]] < self.config.augment_similarity:
            return Drop("unlike any seed", f"similarity {similarities[nearest[0]]:.2f}")
        agreeing = float(np.mean(self.unsafe[nearest] == record["unsafe"]))
        if agreeing <= 0.5:
            return Drop("like seeds of the other label", f"{agreeing:.0%} of its neighbours agree")
        return None


def _judge_fidelity(seeds: Seeds, batch: pa.Table) -> list[Drop | None]:
    records = from_table(batch)
    verdicts: list[Drop | None] = [None] * len(records)
    # Embedding costs more than all other stages together: only what is judged is embedded.
    judged = [i for i, record in enumerate(records) if record["method"] in _JUDGED and record["seed_id"] in seeds.index]
    if judged:
        embeddings = loaded_embedder(seeds.config.embedder).encode([records[i]["text"] for i in judged])
        for i, embedding in zip(judged, embeddings, strict=True):
            verdicts[i] = seeds.drop(records[i], embedding)
    return verdicts
