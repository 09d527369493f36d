"""The steps of the loop, each a phase of a round: what it reads from and writes to the run directory."""

import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.tensorboard import SummaryWriter

from actors.adversary import Adversary, Iteration, forget_checkpoints
from actors.attempts import diversity_of, kept_of, merge_attempts, read_successes, stored_attacks
from actors.synthesizer import synthesize, totals
from cluster.observability import record, record_iteration
from cluster.resources import ResourcePlan
from guardrail.cards import Provenance, named_in_cards, write_cards
from guardrail.code_digest import code_digest
from guardrail.curation import curate
from guardrail.embedding import shared_encoder
from guardrail.evaluation import misjudged, success_rate
from guardrail.evaluation_items import EvaluationItem
from guardrail.evaluation_sets import evaluation_texts
from guardrail.files import write_text
from guardrail.generable import generation_seeds, without
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard
from guardrail.hardening import hardening
from guardrail.promotion import promote
from guardrail.records import Record, read_records, write_records, write_table
from guardrail.report_map import embedding_map
from guardrail.report_scores import evaluate_sets
from guardrail.seeds import HELD_OUT, TRAIN, VALIDATION
from guardrail.text import joined
from guardrail.training import fine_tune
from guardrail.transforms import drawn
from jobs.loop_inputs import measured_on, seed_parts, texts_beside
from jobs.run import Run
from jobs.settings import LoopSettings

_HERE = Path(__file__).parent
#: Of the code when it was loaded: reports say whether two runs had the same.
_CODE = code_digest(*(_HERE.with_name(name) for name in ("guardrail", "actors", "cluster", "jobs")))[:12]


class Rounds:
    """The steps, bound to a run directory, its settings and the resources there are."""

    def __init__(self, run: Run, settings: LoopSettings, plan: ResourcePlan) -> None:
        self.run, self.settings, self.plan = run, settings, plan
        self.evaluation = measured_on(settings)
        self._adversary: Adversary | None = None

    # --- what the steps read -------------------------------------------------------------------------------------

    def split(self, name: str) -> list[Record]:
        """Return the seeds of a split: TRAIN, VALIDATION or HELD_OUT."""
        return read_records(self.run.directory / "seeds" / f"{name}.parquet")

    def guard_of(self, round_index: int) -> Path:
        """Return the guard that a round trained."""
        return self.run.round(round_index) / "guard"

    def metrics_of(self, round_index: int) -> dict[str, Any]:
        """Return what `evaluate` wrote of a round."""
        return json.loads((self.run.round(round_index) / "metrics.json").read_text())

    def guard_in_use(self, round_index: int) -> Path:
        """Return the guard that a round finds: the last one promoted before it.

        Not the link that `_promote` sets: that may point at the round's own guard when a killed phase starts over.
        """
        return self.guard_of(self._round_in_use(round_index))

    def _round_in_use(self, round_index: int) -> int:
        return max(i for i in range(round_index) if self.metrics_of(i)["promoted"])

    def attacks(self, round_index: int) -> pa.Table:
        """Return all attempts of a round, and the successes of iterations that never ended."""
        return pq.read_table(self.run.round(round_index) / "attacks.parquet")

    def stored_attacks(self, rounds: Iterable[int]) -> list[Record]:
        """Return the valid successes of rounds, each text once."""
        return stored_attacks(self.attacks(index) for index in rounds)

    # --- the steps ------------------------------------------------------------------------------------------------

    def seed(self) -> dict[str, Any]:
        """Split the seeds, so that nothing that grows from one is on two sides."""
        parts, measured = seed_parts(self.settings, self.evaluation)
        for name, part in parts.items():
            write_records(part, self.run.directory / "seeds" / f"{name}.parquet")
        return {**{name: len(part) for name, part in parts.items()}, "left_out": {"of an evaluation set": measured}}

    def synthesize(self) -> dict[str, Any]:
        """Grow the training seeds by the strategies that are asked for."""
        fates, tokens = synthesize(
            self._to_build_on(TRAIN),
            self.settings.synthesis,
            self.run.round(0) / "synthetic.parquet",
            seed=self.settings.seed,
            num_cpus=self.plan.env_runner_cpus,
            num_gpus=self.plan.env_runner_gpus,
        )
        count, dropped = totals(fates)
        return {"tokens": tokens, "records": count, "dropped": dropped}

    def _to_build_on(self, *parts: str) -> list[Record]:
        """Return the seeds of some parts of which curation would keep what is written from them."""
        seeds = [record for part in parts for record in self.split(part)]
        return without(self.settings.curation.excluded_categories, seeds)

    def curate(self, round_index: int) -> dict[str, Any]:
        """Curate what the round brought: seeds, synthetic records and texts in round 0, later what kept its label.

        Not the successes alone: hardly any of those is benign, and a style that a guard meets in unsafe texts only is
        what it takes for the harm.
        """
        folder = self.run.round(round_index)
        if round_index == 0:
            new = [self.run.directory / "seeds" / f"{TRAIN}.parquet", folder / "synthetic.parquet"]
            if texts := texts_beside(self.settings):
                write_records(texts, folder / "texts.parquet")
                new.append(folder / "texts.parquet")
        else:
            held_out = {record["id"] for record in self.split(HELD_OUT)}
            trainable = [r for r in kept_of(self.attacks(round_index)) if r["seed_id"] not in held_out]
            write_records(trainable, folder / "kept.parquet")
            new = [
                self.run.directory / "seeds" / f"{TRAIN}.parquet",
                folder / "kept.parquet",
                folder / "transformed.parquet",
            ]
        trusted = {*self.settings.curation.trusted_sources, *(record["source"] for record in self.split(TRAIN))}
        report = curate(
            new,
            folder / "curation",
            # The loop's seeds were labelled by hand, whatever their source is called.
            self.settings.curation.model_copy(update={"trusted_sources": tuple(sorted(trusted))}),
            evaluation=self._evaluation_texts(),
            num_cpus=self.plan.data_task_cpus,
        )
        kept = read_records(folder / "curation" / "kept.parquet")
        if round_index > 0:
            kept = [record for record in kept if record["method"] != "seed"]
        write_records(kept, folder / "curated.parquet")
        shutil.copyfile(folder / "curation" / "ledger.parquet", folder / ".ledger")
        os.replace(folder / ".ledger", folder / "ledger.parquet")
        return {"kept": len(kept), "dropped": report.dropped}

    def _evaluation_texts(self) -> dict[str, list[tuple[str, str]]]:
        """Return what training data must not hold: evaluation sets, validation and held-out seeds, as (id, text)."""
        texts = evaluation_texts(self.evaluation)
        for name in (VALIDATION, HELD_OUT):
            texts[name] = [(record["id"], joined(record["text"], record["response"])) for record in self.split(name)]
        return texts

    def attack(self, round_index: int) -> dict[str, Any]:
        """Attack the guard in use, with attackers that learn and with transforms that do not."""
        adversary = self._adversary_at(round_index)
        guard = self.guard_in_use(round_index)
        card = GuardCard.read(guard)
        with SummaryWriter(str(self.run.directory / "tensorboard")) as board:
            outcome = adversary.attack(
                round_index,
                self._to_build_on(TRAIN, HELD_OUT),
                str(guard),
                self._attacker(round_index),
                partial(self._show_iteration, round_index, board),
                guard_version=f"{card.version}@{card.digest}",
                earlier=self.stored_attacks(range(1, round_index)),
            )
        merge_attempts(outcome.directory, self.run.round(round_index) / "attacks.parquet")
        transforms = self._transform(round_index, guard)
        successes = read_successes(outcome.directory)
        summaries = [each.summary for each in outcome.iterations]
        if round_index > 2:  # a killed round starts from the one before it
            forget_checkpoints(self._attacker(round_index - 2))
        return {
            "tokens": sum(each.tokens for each in summaries),
            "attempts": sum(each.attempts for each in summaries),
            "goals_left_out": outcome.goals_left_out,
            "valid": sum(each.valid for each in summaries),
            "successes": successes.num_rows,
            "transforms": transforms,
            "parts": outcome.seconds(),
            "iterations": [each.as_json() for each in outcome.iterations],
            "archive": summaries[-1].archive,
            "coverage": summaries[-1].coverage,
            "diversity": diversity_of(successes),
        }

    def _transform(self, round_index: int, path: Path) -> dict[str, int]:
        """Have transforms write seeds of both labels, keep what the guard gets wrong, and return the counts."""
        seeds = generation_seeds(self._to_build_on(TRAIN))
        written = drawn(seeds, self.settings.transforms, self.settings.seed * 1000 + round_index)
        guard = Guard.from_pretrained(path)
        origin = {"round": round_index, "guard_version": f"{guard.card.version}@{guard.card.digest}"}
        missed = [{**record, **origin} for record in misjudged(guard, written)]
        write_records(missed, self.run.round(round_index) / "transformed.parquet")
        return {"tried": len(written), "misjudged": len(missed)}

    def _show_iteration(self, round_index: int, board: SummaryWriter, done: int, iteration: Iteration) -> None:
        """Show how an iteration went, to the person at the terminal and in Ray's metrics."""
        summary = iteration.summary
        reward = summary.parts["reward"]
        note = f"{summary.valid} of {summary.attempts} valid, {summary.successes} successes, mean reward {reward:.2f}"
        self.run.advance(done, self.settings.adversary.iterations, note)
        record("rayguard_attack_iteration", done, run=self.run.name)
        step = (round_index - 1) * self.settings.adversary.iterations + done
        record_iteration(self.run.name, iteration, step, board)

    def _attacker(self, round_index: int) -> Path:
        """Return what the attackers of a round leave: attempts by iteration, archive, checkpoint."""
        return self.run.directory / "attacker" / f"round-{round_index:02d}"

    def _adversary_at(self, round_index: int) -> Adversary:
        if self._adversary is None:
            self._adversary = Adversary(self.settings.adversary, self.plan, self.settings.seed)
            if round_index > 1:
                self._adversary.restore(self._attacker(round_index - 1))
        return self._adversary

    def train(self, round_index: int) -> dict[str, Any]:
        """Train a guard on all that was ever curated: in round 0 from the base, later as `retrain_from` has it."""
        folder = self.run.round(round_index)
        further = round_index > 0 and self.settings.training.retrain_from == "round0"
        records: dict[str, Record] = {}
        contradicted = set[str]()  # by another round, whose curation has not seen it
        for curated in (read_records(self.run.round(i) / "curated.parquet") for i in range(round_index + 1)):
            for each in curated:
                if records.setdefault(each["id"], each)["unsafe"] != each["unsafe"]:
                    contradicted.add(each["id"])
        write_records((r for r in records.values() if r["id"] not in contradicted), folder / "training.parquet")
        card = fine_tune(
            self.settings.training,
            data=folder / "training.parquet",
            validation=self.split(VALIDATION),
            output=self.guard_of(round_index),
            version=f"round-{round_index:02d}",
            seed=self.settings.seed + round_index,
            start=self.guard_of(0) if further else None,
            cpus_per_worker=self.plan.guard_worker_cpus,
            gpus_per_worker=self.plan.guard_worker_gpus,
            tell=lambda done, steps, loss: self.run.advance(done, steps, f"loss {loss:.3f}"),
            board=self.run.directory / "tensorboard" / f"guard-{round_index:02d}",
        )
        return {"tokens": card.training["tokens"], "records": card.training["records"], "guard": card.digest}

    def evaluate(self, round_index: int) -> dict[str, Any]:
        """Measure the round's guard, and promote it if it passes the gate."""
        candidate = Guard.from_pretrained(self.guard_of(round_index))
        attacks = self.stored_attacks(range(1, round_index + 1))
        evaluation, scores = evaluate_sets(candidate, self._evaluation_sets(), self.settings.seed)
        write_table(scores, self.run.round(round_index) / "scores.parquet")
        metrics: dict[str, Any] = {
            "guard": candidate.card.digest,
            "evaluation": evaluation,
            "attack_success_rate": success_rate(candidate, attacks),
        }
        metrics["promoted"], metrics["reason"] = self._gate(round_index, metrics, attacks)
        write_text(self.run.round(round_index) / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        if metrics["promoted"]:
            self._promote(round_index)
        else:  # it may yet be, by hand
            write_cards(self.guard_of(round_index), self._provenance(round_index))
        validation = metrics["evaluation"][VALIDATION]
        return {
            "promoted": metrics["promoted"],
            "reason": metrics["reason"],
            "validation_f1": validation["f1"],
            "validation_fpr": validation["fpr"],
        }

    def _evaluation_sets(self) -> dict[str, Sequence[EvaluationItem]]:
        return {
            **{name: [_as_item(r) for r in self.split(name)] for name in (VALIDATION, HELD_OUT) if self.split(name)},
            **self.evaluation,
        }

    def _gate(self, round_index: int, metrics: dict[str, Any], attacks: Sequence[Record]) -> tuple[bool, str]:
        """Whether the round's guard may replace the one in use, and why."""
        if round_index == 0:
            return True, "first guard"
        first = self.metrics_of(0)
        limits = self.settings.promotion
        # The threshold was set on the validation split: its false positives hardly move. Those on the held-out seeds,
        # which neither training nor threshold has seen, can; both together, for a rate of a hundred records is noise.
        then, now = (_unseen(each["evaluation"], "fpr") for each in (first, metrics))
        if now - then > limits.max_benign_fpr_rise:
            return False, f"false positives on benign seeds never trained on: {then:.3f} to {now:.3f}"
        # Not F1: where a threshold allows a handful of false positives, one benign record more or less moves it, and F1
        # by ten points. The ranking hardly moves.
        then, now = (_unseen(each["evaluation"], "auprc") for each in (first, metrics))
        if then - now > limits.max_auprc_drop:
            return False, f"AUPRC on seeds never trained on: {then:.3f} to {now:.3f}"
        if not attacks:
            return False, "no attack succeeded"
        in_use = success_rate(Guard.from_pretrained(self.guard_in_use(round_index)), attacks)
        if metrics["attack_success_rate"] >= in_use:
            return False, f"attacks succeed as often as before ({metrics['attack_success_rate']:.3f})"
        return True, f"attack success {in_use:.3f} to {metrics['attack_success_rate']:.3f}"

    def _promote(self, round_index: int) -> None:
        """Write the cards of the round's guard, and point `guard` at it, in one step."""
        write_cards(self.guard_of(round_index), self._provenance(round_index))
        promote(self.run.directory / "guard", self.guard_of(round_index))

    def _provenance(self, round_index: int) -> Provenance:
        """Return what the cards tell of the round's guard, once its metrics are written."""
        own, metrics = named_in_cards(self.run.directory), self.metrics_of(round_index)
        attacks = len(self.stored_attacks(range(1, round_index + 1)))
        return Provenance(
            records=read_records(self.run.round(round_index) / "training.parquet"),
            metrics=metrics["evaluation"],
            commands=[f"python jobs/adversarial_loop.py --config {own}/config.yaml --run-dir {own}-again"],
            config_digest=self.run.manifest.config_digest,
            ledgers=[self.run.round(i) / "ledger.parquet" for i in range(round_index + 1)],
            kept_out={name: len({item for item, _ in texts}) for name, texts in self._evaluation_texts().items()},
            attacks=(attacks, metrics["attack_success_rate"]) if attacks else None,
        )

    def harden(self, last_round: int) -> dict[str, Any]:
        """Measure every round's guard on the stored attacks of all rounds, and keep a map of the run's texts."""
        attacks = self.stored_attacks(range(1, last_round + 1))
        fooled = [
            {attack["id"] for attack in misjudged(Guard.from_pretrained(self.guard_of(index)), attacks)}
            for index in range(last_round + 1)
        ]
        found = hardening(
            attacks,
            fooled,
            [self.metrics_of(index)["evaluation"] for index in range(last_round + 1)],
            final=self._round_in_use(last_round + 1),
            held_out={record["id"] for record in self.split(HELD_OUT)},
        )
        write_text(self.run.round(last_round) / "map.json", json.dumps(self._map(last_round)) + "\n")
        shown = {key: value for key, value in found.items() if isinstance(value, int | float)}
        return {"hardening": found, "environment": _environment(self.run), **shown}

    def _map(self, last_round: int) -> dict[str, Any]:
        """Return a map of seeds, synthetic records and attacks that kept their label."""
        seeds = [self.run.directory / "seeds" / f"{name}.parquet" for name in (TRAIN, VALIDATION, HELD_OUT)]
        tables = {
            "seed": pa.concat_tables(pq.read_table(path) for path in seeds),
            "synthetic": pq.read_table(self.run.round(0) / "synthetic.parquet"),
        }
        if attempts := [self.attacks(index) for index in range(1, last_round + 1)]:
            tables["attack"] = pa.concat_tables(each.filter(each["valid"]) for each in attempts)
        encoder = shared_encoder(self.settings.adversary.embedder)
        return embedding_map(tables, encoder.encode, seed=self.settings.seed)

    def close(self) -> None:
        """Stop the attackers."""
        if self._adversary is not None:
            self._adversary.stop()
            self._adversary = None


def _unseen(evaluation: Mapping[str, Mapping[str, Any]], metric: str) -> float:
    """Return a metric over both splits that are never trained on: the mean, by the records that it is of."""
    sets = [evaluation[name] for name in (VALIDATION, HELD_OUT) if name in evaluation]
    counts = [
        (each["n"] - each["positives"] if metric == "fpr" else each["n"], each[metric])
        for each in sets
        if each[metric] is not None
    ]
    return sum(count * value for count, value in counts) / sum(count for count, _ in counts)


def _as_item(record: Record) -> EvaluationItem:
    return EvaluationItem(
        id=record["id"],
        text=record["text"],
        response=record["response"],
        unsafe=record["unsafe"],
        categories=record["categories"],
        tags=[record["source"]],
    )


def _environment(run: Run) -> dict[str, Any]:
    """Return when and with what a run ends; a report may be written on another machine."""
    return {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "code": _CODE,
        "versions": run.manifest.facts()["versions"],
    }
