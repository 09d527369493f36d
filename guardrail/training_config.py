"""The settings of guard training."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingConfig(BaseModel):
    """How a guard is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field("bundled:all-minilm-l6-v2", description="transformers base: bundled name, directory or hub id")
    layers: int = Field(
        0, ge=0, description="layers of the base to keep, the lowest; 0: all. The upper ones of a language model write"
    )
    window: int = Field(256, ge=16, description="tokens the guard reads at once")
    epochs: int = Field(4, ge=1, description="passes over the data when training from the base")
    retrain_from: Literal["base", "round0"] = Field(
        "round0",
        description="what a round trains: the base anew, or the round-0 guard further, so that no passes add up",
    )
    retrain_epochs: int = Field(2, ge=1, description="passes when the round-0 guard is trained further")
    minutes: float = Field(
        0.0,
        ge=0,
        description="most minutes of steps; where all would take longer, the learning rate has fallen by then, and the "
        "others are left out; 0: any",
    )
    learning_rate: float = Field(2e-4, gt=0, description="peak of a linear schedule with warm-up")
    retrain_learning_rate: float = Field(
        1e-4, gt=0, description="the same when the round-0 guard is trained further: what it knows should outlive that"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="a layer's learning rate over that of the one above: lower layers are more general",
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay")
    tokens_per_batch: int = Field(
        1024, ge=64, description="tokens of a step, of all workers together, padding included"
    )
    accumulate: int = Field(
        1, ge=1, description="passes that a worker's part of a step is computed in: less memory, the same gradients"
    )
    mixed_precision: bool = Field(True, description="compute in bfloat16 where the device has units for it")
    category_weight: float = Field(
        1.0, ge=0, description='weight of the loss of a record\'s categories, added up, beside that of "unsafe"'
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a target that is 1/2 instead: labels are wrong now and then"
    )
    balance: float = Field(
        0.0, ge=0, le=1, description="a record weighs as much as its source and label are rare, to this power"
    )
    teachers: tuple[str, ...] = Field(
        (), description='models whose mean probability of "unsafe" is learned from: keys of the records\' `scores`'
    )
    distil: float = Field(0.5, gt=0, le=1, description="share of the teachers' mean in the unsafe target")
    adversarial: float = Field(
        0.0, ge=0, description="length of a worst-case step in embedding space over the embeddings'; 0: trains on none"
    )
    average: float = Field(
        0.0, ge=0, lt=1, description="decay of a moving average of the weights, which is kept instead; 0: none"
    )
    start_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the weights before training in those after it, a new head's aside: texts unlike those "
        "trained on are ranked better, what is learned by heart is lost; 0: none",
    )
    patience: int = Field(
        0, ge=0, description="epochs that bring no better AUPRC on the validation split before training stops; 0: never"
    )
    freeze_embeddings: bool = Field(True, description="leave the token embeddings alone: their dense update costs most")
    freeze_layers: int = Field(
        0, ge=0, description="leave the lowest layers alone, and the embeddings with them: no gradients and no dropout"
    )
    lora_rank: int = Field(
        0, ge=0, description="train low-rank adapters below the head instead, merged in the end; 0: the weights"
    )
    max_fpr: float = Field(0.05, gt=0, lt=1, description="most of the benign validation records the threshold may flag")
    augment: float = Field(
        0.0, ge=0, le=1, description="share of the records that are trained on a second time, written by a transform"
    )
    workers: int = Field(1, ge=0, description="DDP workers; 0 trains in the calling process")
    checkpoint_every: int = Field(200, ge=1, description="steps that a worker's death can cost")
    max_failures: int = Field(3, ge=0, description="worker deaths survived before the training gives up")
