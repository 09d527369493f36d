"""Synthesis over Ray Data: seeds in, vLLM engines as an actor pool (actors/batches.py), records out."""

import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.batches import answer_batches, answer_files, parts_folder
from actors.engine import Completion, Engine, memory_share
from guardrail.models import model_state, resolve
from guardrail.records import SCHEMA, Record, from_table, to_table, write_table, write_tables
from guardrail.synthesis import Request, SynthesisConfig, drop_reason, requests, synthetic_record, written
from guardrail.text import digest

KEPT = "kept"
#: What an answer has beside the columns of a record; the tokens are those that the model wrote.
_ANSWERED = (pa.field("fate", pa.string()), pa.field("strategy", pa.string()), pa.field("tokens", pa.int64()))
#: What a request has beside the columns of its parent.
_ASKED = (pa.field("strategy", pa.string()), pa.field("prompts", pa.list_(pa.string())))


class Synthesizer:
    """A Ray Data actor: one engine that answers batches of synthesis requests."""

    def __init__(self, config: dict[str, Any], num_gpus: float) -> None:
        self.config = SynthesisConfig.model_validate(config)
        self.engine = Engine(
            resolve(self.config.model),
            max_tokens=self.config.max_prompt_tokens + max(self.config.max_new_tokens, self.config.max_around_tokens),
            gpu_memory=memory_share(self.config.gpu_memory, num_gpus),
            kv_cache_gib=self.config.kv_cache_gib,
        )

    def __call__(self, paths: pa.Table) -> pa.Table:
        """Answer batches of requests, from file to file."""
        return answer_files(paths, self.answers)

    def answers(self, batch: pa.Table, key: str) -> pa.Table:
        """Return the synthetic records of a batch of requests (record columns plus strategy and prompts).

        What is dropped comes back as its parent, with the reason as its `fate`. The same key and batch get the same
        answers, whichever actor they fall to, whatever it did before and however often they are tried.
        """
        asked = [
            (Request(parent, strategy, tuple(prompts)), self.engine.encode(prompt))
            for parent, strategy, prompts in zip(
                from_table(batch), batch["strategy"].to_pylist(), batch["prompts"].to_pylist(), strict=True
            )
            for prompt in prompts
        ]
        fitting = [(request, ids) for request, ids in asked if len(ids) <= self.config.max_prompt_tokens]
        self.engine.llm.reset_prefix_cache()
        self.engine.reseed(int(key[:8], 16))
        groups = self.engine.generate(
            [ids for _, ids in fitting],
            n=1,
            max_new_tokens=[self.config.max_tokens_of(request.strategy) for request, _ in fitting],
            temperature=self.config.temperature,
        )
        results = [
            (*self._result(request, group[0]), request.strategy, len(group[0].token_ids))
            for (request, _), group in zip(fitting, groups, strict=True)
        ]
        too_long = [request for request, ids in asked if len(ids) > self.config.max_prompt_tokens]
        results += [(request.parent, "prompt too long", request.strategy, 0) for request in too_long]
        table = to_table([record for record, *_ in results])
        for place, field in enumerate(_ANSWERED, 1):
            table = table.append_column(field, pa.array([result[place] for result in results], field.type))
        return table

    def _result(self, request: Request, completion: Completion) -> tuple[Record, str]:
        text = written(request, completion.text, finished=completion.finished)
        if text is None:  # half a request
            return request.parent, "answer too long"
        if reason := drop_reason(request, text):
            return request.parent, reason
        return synthetic_record(request, text, model=self.config.model), KEPT


def synthesize(
    seeds: Sequence[Record], config: SynthesisConfig, output: Path, *, seed: int, num_cpus: float, num_gpus: float
) -> tuple[dict[str, Counter[str]], int]:
    """Grow seeds into synthetic records, written to `output` as parquet, in the order they were asked for.

    A call that is killed goes on where it was when it is made again; the file is the one it would have written. Work
    lies in `OUTPUT.parts` until then: on a cluster, all nodes must share that folder.

    Returns:
        By strategy, what became of its answers: how many were `KEPT`, or dropped for which reason; and how many tokens
        the model wrote in all.

    Args:
        seeds: what to grow.
        config: how.
        output: parquet file to write; whole or absent.
        seed: decides examples and sampling.
        num_cpus, num_gpus: what one engine reserves.

    Raises:
        ValueError: an engine cannot start; the message says why.
    """
    work = parts_folder(output)
    keys = write_batches(requests(seeds, config, seed), config, seed, work / "asked")
    answered = answer_batches(
        [work / "asked" / f"{key}.parquet" for key in keys],
        work / "answered" / model_state(config.model),  # not in the keys, which decide the sampling
        Synthesizer,
        (config.model_dump(), num_gpus),
        engines=config.engines,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    fates, tokens = dict[str, Counter[str]](), list[int]()
    write_tables(_kept(answered, fates, tokens), SCHEMA, output)
    shutil.rmtree(work, ignore_errors=True)
    return fates, sum(tokens)


def write_batches(asked: Iterable[Request], config: SynthesisConfig, seed: int, folder: Path) -> list[str]:
    """Write each batch of requests to `folder/KEY.parquet` and return the keys: digests of all that answers hang on."""
    fields = {"model", "max_prompt_tokens", "max_new_tokens", "max_around_tokens", "temperature"}
    settings = config.model_dump_json(include=fields)
    keys, asked = [], iter(asked)
    while batch := list(itertools.islice(asked, config.batch_size)):
        rows = [repr((list(r.parent.items()), r.strategy, r.prompts)) for r in batch]
        keys.append(digest(settings, str(seed), *rows))
        table = to_table(request.parent for request in batch)
        for field in _ASKED:
            values = [getattr(request, field.name) for request in batch]
            table = table.append_column(field, pa.array(values, field.type))
        write_table(table, folder / f"{keys[-1]}.parquet")
    return keys


def _kept(paths: Iterable[Path], fates: dict[str, Counter[str]], tokens: list[int]) -> Iterator[pa.Table]:
    """Yield the records in files of answers; count what became of each strategy's answers, and each file's tokens."""
    for path in paths:
        answers = pq.read_table(path)
        for strategy, fate in zip(answers["strategy"].to_pylist(), answers["fate"].to_pylist(), strict=True):
            fates.setdefault(strategy, Counter())[fate] += 1
        tokens.append(pc.sum(answers["tokens"]).as_py() or 0)
        yield answers.filter(pc.equal(answers["fate"], KEPT)).select(SCHEMA.names).cast(SCHEMA)


def totals(fates: Mapping[str, Counter[str]]) -> tuple[int, dict[str, int]]:
    """Return how many answers of all strategies were kept, and how many dropped for which reason."""
    together = sum(fates.values(), Counter())
    return together.pop(KEPT, 0), dict(sorted(together.items()))
