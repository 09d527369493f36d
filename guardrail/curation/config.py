"""The settings of curation."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guardrail.rows import did_you_mean
from guardrail.taxonomy import check_category


class CurationConfig(BaseModel):
    """What a record must satisfy to be kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_words: int = Field(2, ge=0, description="shortest text of a generated record")
    max_words: int = Field(400, ge=1, description="longest text of a generated record")
    gibberish_model: str | None = Field(
        None,
        description="causal LM that finds words in no order: bundled name, directory or hub id; None: only letters",
    )
    languages: tuple[str, ...] = Field((), description="ISO 639 codes of the languages to keep; none: all")
    excluded_categories: tuple[str, ...] = Field(
        (), description="harm categories of which nothing is kept, and the loop writes nothing"
    )
    near_duplicate: float = Field(0.8, gt=0, le=0.95, description="Jaccard similarity at which two texts are one")
    shingle: int = Field(5, ge=1, le=100, description="units of a shingle that the similarity is counted in")
    shingle_unit: Literal["characters", "words"] = Field("characters", description="what a shingle is made of")
    permutations: int = Field(128, ge=16, description="MinHash permutations; more estimate the similarity better")
    semantic_duplicate: float = Field(0.88, gt=0, le=1, description="cosine at which two texts say the same")
    semantic_encoder: str = Field(
        "static:bundled:all-minilm-l6-v2",
        description="encoder of that cosine, named as embedder is; static: its vectors of single tokens, much faster",
    )
    ngram: int = Field(8, ge=3, description="words in a row that a text may not share with an evaluation text")
    embedder: str = Field("bundled:all-minilm-l6-v2", description="sentence encoder: bundled name, directory or hub id")
    paraphrase_similarity: float = Field(0.55, ge=-1, le=1, description="cosine to its seed that a rewording needs")
    augment_similarity: float = Field(0.35, ge=-1, le=1, description="cosine to a seed that a new request needs")
    label_noise: float = Field(
        0.65, ge=0.5, le=1, description="probability of the other label that a label taken for wrong must have"
    )
    trusted_sources: tuple[str, ...] = Field(
        ("rayguard-seeds:", "rayguard-texts:"),
        description="starts of sources labelled by hand: their labels outweigh others and are no noise, "
        "their seeds no semantic duplicates",
    )
    balance: float = Field(
        4.0, ge=1, description="most generated records of one label, category and method, over the median of these"
    )

    @field_validator("languages")
    @classmethod
    def _languages_can_be_told(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        if codes:
            from guardrail.languages import detectable  # takes a second, and most runs keep all languages

            known = sorted(detectable())
            for code in codes:
                if code not in known:
                    raise ValueError(f"unknown language {code!r}{did_you_mean(code, known)} Known: {', '.join(known)}")
        return codes

    @field_validator("excluded_categories")
    @classmethod
    def _categories_are_known(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            check_category(key)
        return keys

    @model_validator(mode="after")
    def _lengths_are_a_range(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words ({self.min_words}) is over max_words ({self.max_words}): nothing would be kept"
            )
        return self
