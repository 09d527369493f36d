"""Synthesis over Ray Data: seeds in, vLLM engines as an actor pool, records out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from actors.engine import Completion, Engine, memory_share
from guardrail.models import resolve
from guardrail.records import SCHEMA, Record, from_table, to_table, write_table
from guardrail.synthesis import Request, SynthesisConfig, requests, synthetic_record
from guardrail.text import digest


class Synthesizer:
    """A Ray Data actor: one engine that answers batches of synthesis requests."""

    def __init__(self, config: dict[str, Any], seed: int, num_gpus: float) -> None:
        self.config = SynthesisConfig.model_validate(config)
        self.seed = seed
        self.engine = Engine(
            resolve(self.config.model),
            max_tokens=self.config.max_prompt_tokens + self.config.max_new_tokens,
            seed=seed,
            gpu_memory=memory_share(self.config.gpu_memory, num_gpus),
            kv_cache_gib=self.config.kv_cache_gib,
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the synthetic records of a batch of requests (record columns plus strategy, prompt, count).

        What is dropped comes back as its parent, with the reason in the column `dropped`.
        """
        columns = batch.select(["strategy", "prompt", "count"]).to_pylist()
        asked = [Request(parent, **row) for parent, row in zip(from_table(batch), columns, strict=True)]
        prompts = [self.engine.encode(request.prompt) for request in asked]
        fitting = [(r, ids) for r, ids in zip(asked, prompts, strict=True) if len(ids) <= self.config.max_prompt_tokens]
        # The same batch gets the same answers, whichever actor it falls to and however often it is tried.
        self.engine.reseed(int(digest(str(self.seed), *(request.prompt for request, _ in fitting))[:8], 16))
        repeated = [(request, ids) for request, ids in fitting for _ in range(request.count)]
        groups = self.engine.generate(
            [ids for _, ids in repeated],
            n=1,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
        )
        results = [
            self._result(request, completion)
            for (request, _), group in zip(repeated, groups, strict=True)
            for completion in group
        ]
        fits = {id(request) for request, _ in fitting}
        results += [(r.parent, "prompt too long") for r in asked if id(r) not in fits for _ in range(r.count)]
        reasons = pa.array([reason for _, reason in results], pa.string())
        return to_table([record for record, _ in results]).append_column("dropped", reasons)

    def _result(self, request: Request, completion: Completion) -> tuple[Record, str | None]:
        if not completion.finished:  # half a request
            return request.parent, "answer too long"
        record = synthetic_record(request, completion.text, model=self.config.model)
        return (record, None) if record else (request.parent, "answer empty or withheld")


def synthesize(
    seeds: Sequence[Record], config: SynthesisConfig, output: Path, *, seed: int, num_cpus: float, num_gpus: float
) -> tuple[int, dict[str, int]]:
    """Grow seeds into synthetic records, written to `output` as parquet.

    Returns:
        How many there are, and how many answers were dropped, by reason.

    Args:
        seeds: what to grow.
        config: how.
        output: parquet file to write; whole or absent.
        seed: decides examples and sampling.
        num_cpus, num_gpus: what one engine reserves.
    """
    asked = requests(seeds, config, seed)
    if not asked:
        write_table(SCHEMA.empty_table(), output)
        return 0, {}
    table = to_table(request.parent for request in asked)
    for name in ("strategy", "prompt", "count"):
        table = table.append_column(name, pa.array([getattr(request, name) for request in asked]))
    answers = ray.data.from_arrow(table).map_batches(
        Synthesizer,
        fn_constructor_args=(config.model_dump(), seed, num_gpus),
        batch_format="pyarrow",
        batch_size=config.batch_size,
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=config.engines),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    batches = list(answers.iter_batches(batch_size=None, batch_format="pyarrow"))
    table = pa.concat_tables([batch for batch in batches if batch.num_rows])
    kept = table.filter(table["dropped"].is_null()).select(SCHEMA.names).cast(SCHEMA)
    # Batches arrive in the order they are done in; the file's order is that of the ids.
    write_table(kept.sort_by("id"), output)
    return kept.num_rows, dict(Counter(table["dropped"].drop_null().to_pylist()))
