"""The reward worker: takes rollouts from the runners, scores, gates and rewards them, and makes the learners' batches.

The driver hands it references and gets summaries of a fixed size: rollouts go from runner to worker, batches from
worker to learner. Every attempt is on disk before the learners see it.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.policy.sample_batch import MultiAgentBatch

from actors import rewards
from actors.archive import Archive, Find, category_of
from actors.config import AdversaryConfig
from actors.env_runner import Rollout, Task
from actors.gate import MALFORMED, Attempt, rejection
from actors.judges import Vote, label_kept
from actors.loss import Group, group_advantages, imitation_advantages, train_batches
from actors.scorer import Scorer, Scores
from actors.styles import STYLE, chosen, cleaned
from guardrail.records import SCHEMA, Record, record_id, to_table, write_table
from guardrail.seeds import may_sexualise_minors

#: What an attempt is beside a record: see `RewardWorker.finish`.
ATTEMPT_COLUMNS = pa.schema(
    [
        ("style", pa.string()),
        ("action", pa.string()),
        ("iteration", pa.int32()),
        ("valid", pa.bool_()),
        ("success", pa.bool_()),
        ("rejected", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
)
ATTEMPTS = pa.schema([*SCHEMA, *ATTEMPT_COLUMNS])


@dataclasses.dataclass(frozen=True)
class RoundSetup:
    """What a round is about; whoever restarts a worker gives it this again.

    Attributes:
        index: of the round.
        goals: records to attack with.
        target: guard directory or moderation URL.
        target_version: name that records of attempts give it.
        directory: where attempts and archive are written.
        earlier: (category, style, id, text) of successes of earlier rounds.
        done: iterations of the round that have ended.
    """

    index: int
    goals: Sequence[Record]
    target: str
    target_version: str
    attacker_version: str
    directory: str
    earlier: Sequence[tuple[str, str, str, str]]
    done: int = 0


@dataclasses.dataclass(frozen=True)
class Summary:
    """An iteration in numbers; its size hangs on the catalogue of styles alone, not on how much was attempted.

    Attributes:
        attempts, valid, successes: counts.
        tokens: generated.
        rejected: count by reason.
        cells: (category, style) to (attempts, successes).
        parts: mean of each part of the reward, and of the reward.
        archive: finds in it.
        coverage: share of its cells that hold one.
        staleness: how many updates older than the learner's the sampling weights were, on average.
        learnable: whether there is a batch to learn from.
    """

    attempts: int
    valid: int
    successes: int
    tokens: int
    rejected: dict[str, int]
    cells: dict[tuple[str, str], tuple[int, int]]
    parts: dict[str, float]
    archive: int
    coverage: float
    staleness: float
    learnable: bool


@dataclasses.dataclass(frozen=True)
class _Scored:
    """A group's rollouts, its goal, and the rows that come of it; arrays are [group size]."""

    task: Task
    rollouts: Sequence[Rollout]
    rows: list[dict[str, Any]]
    reward: np.ndarray
    kept: np.ndarray
    embeddings: np.ndarray
    parts: rewards.RewardParts


class RewardWorker:
    """The actor; see the module."""

    def __init__(self, config: AdversaryConfig, setup: RoundSetup, judges: Sequence[Any] = ()) -> None:
        self.config = config
        self.judges = judges  # actor handles of `Judge`
        self.scorer = Scorer(config.embedder, config.model, config.gate.intent_model, setup.target)
        self._begin(setup)

    def __repr__(self) -> str:
        return "scorer"

    def start_round(self, setup: RoundSetup) -> None:
        """Turn to another round: another guard, other goals."""
        self.scorer.set_target(setup.target)
        self._begin(setup)

    def _begin(self, setup: RoundSetup) -> None:
        self.setup = setup
        self.directory = Path(setup.directory)
        self.archive = Archive(self.config.archive_per_cell)
        saved = self._archive_after(setup.done)
        if saved.exists():
            self.archive = Archive.load(saved, self.config.archive_per_cell)
        elif setup.earlier:
            embeddings = self.scorer.embedder.encode([text for *_, text in setup.earlier])
            self.archive.add(
                Find(id_, category, style, text, embedding)
                for (category, style, id_, text), embedding in zip(setup.earlier, embeddings, strict=True)
            )
        self.categories = sorted({category_of(goal) for goal in setup.goals})
        self._scored: list[_Scored] = []

    def _archive_after(self, iterations: int) -> Path:
        return self.directory / f"archive-{iterations:04d}.parquet"

    def discard(self) -> None:
        """Forget what was scored since the last `finish`."""
        self._scored = []

    def score(self, tasks: Sequence[Task], rollouts: Sequence[Rollout]) -> int:
        """Score and reward the rollouts of some tasks, those of a task in a row; return how many tasks there were."""
        size = self.config.group_size
        styles = [STYLE[task.style] for task in tasks for _ in range(size)]
        goals = [self.setup.goals[task.goal] for task in tasks for _ in range(size)]
        texts = [goal["text"] for goal in goals]
        said = [cleaned(r.completion.text) for r in rollouts]
        attacks = [s.attack(t, r.completion.text) for s, t, r in zip(styles, texts, rollouts, strict=True)]
        withheld = [may_sexualise_minors(attack) for attack in attacks]
        attacks = ["" if hidden else attack for attack, hidden in zip(attacks, withheld, strict=True)]
        scores = self.scorer.score(texts, attacks)
        gate, model = self.config.gate, self.scorer.intent
        min_intent = model.threshold if gate.min_intent is None else gate.min_intent
        min_similarity = model.min_similarity if gate.min_similarity is None else gate.min_similarity
        reasons = [
            "withheld"
            if withheld[i]
            else rejection(
                Attempt(
                    style=styles[i],
                    goal=texts[i],
                    said=said[i],
                    attack=attacks[i],
                    finished=rollout.completion.finished,
                    similarity=float(scores.similarity[i]),
                    intent=float(scores.intent[i]),
                    fluency=float(scores.fluency[i]),
                ),
                gate,
                min_intent,
                min_similarity,
            )
            for i, rollout in enumerate(rollouts)
        ]
        unsafe = np.array([goal["unsafe"] for goal in goals])
        reasons = self._judged(reasons, attacks, unsafe)
        parts = self._parts(scores, unsafe, reasons, [style.action for style in styles], size)
        reward = rewards.combined(parts, self.config.reward)
        success = parts.kept & (scores.flagged != unsafe)
        for group, task in enumerate(tasks):
            places = range(group * size, (group + 1) * size)
            rows = [
                self._row(goals[i], attacks[i], task.style, reasons[i], bool(success[i]))
                | {
                    "scores": {
                        "guard": float(scores.unsafe[i]),
                        "similarity": float(scores.similarity[i]),
                        "intent": float(scores.intent[i]),
                        "fluency": float(max(scores.fluency[i], -1e3)),
                        "novelty": float(parts.novelty[i]),
                        "evasion": float(parts.evasion[i]),
                        "reward": float(reward[i]),
                    }
                }
                for i in places
            ]
            at = np.s_[group * size : (group + 1) * size]
            of_group = rewards.RewardParts(parts.kept[at], parts.evasion[at], parts.intent[at], parts.novelty[at])
            self._scored.append(
                _Scored(task, rollouts[at], rows, reward[at], parts.kept[at], scores.embeddings[at], of_group)
            )
        return len(tasks)

    def _judged(self, reasons: list[str | None], attacks: Sequence[str], unsafe: np.ndarray) -> list[str | None]:
        """Return the reasons, with "judges" for what the gate let through and the vote of the judges did not."""
        passed = [i for i, reason in enumerate(reasons) if reason is None]
        if not self.judges or not passed:
            return reasons
        by_judge: list[list[Vote]] = ray.get([j.votes.remote([attacks[i] for i in passed]) for j in self.judges])
        for place, i in enumerate(passed):
            if not label_kept([votes[place] for votes in by_judge], bool(unsafe[i])):
                reasons[i] = "judges"
        return reasons

    def _parts(
        self,
        scores: Scores,
        unsafe: np.ndarray,
        reasons: Sequence[str | None],
        actions: Sequence[str],
        size: int,
    ) -> rewards.RewardParts:
        malformed = np.array([reason in MALFORMED for reason in reasons])
        # A frame that is no attack still holds its goal: what it lacks is not meaning.
        intent = np.where(malformed, 0.0, np.where(np.array(actions) == "frame", 0.5, scores.intent))
        return rewards.RewardParts(
            kept=np.array([reason is None for reason in reasons]),
            evasion=rewards.evasion(scores.unsafe, unsafe, self.scorer.threshold),
            intent=intent,
            novelty=rewards.novelty(
                scores.embeddings, self.archive.embeddings(), np.repeat(np.arange(len(reasons) // size), size)
            ),
        )

    def _row(self, goal: Record, text: str, style: str, reason: str | None, success: bool) -> dict[str, Any]:
        """Return an attempt as a record that leads back to its goal, with the columns of an attempt."""
        return {
            **goal,
            "id": record_id(text),
            "text": text,
            "parent_id": goal["id"],
            "method": "rl",
            "round": self.setup.index,
            "attacker_version": self.setup.attacker_version,
            "guard_version": self.setup.target_version,
            "style": style,
            "action": STYLE[style].action,
            "valid": reason is None,
            "success": success,
            "rejected": reason,
        }

    def finish(self, iteration: int, learners: int, weights_version: int) -> Any:
        """End an iteration: write attempts and archive, and return a summary and a batch for each learner.

        Args:
            iteration: within the round.
            learners: how many batches are wanted.
            weights_version: the learner's, that the samplers' are compared with.
        """
        scored = sorted(self._scored, key=lambda each: each.task.group)
        self._write(iteration, scored)
        self.archive.add(
            Find(row["id"], category_of(self.setup.goals[each.task.goal]), row["style"], row["text"], embedding)
            for each in scored
            for row, embedding in zip(each.rows, each.embeddings, strict=True)
            if row["success"]
        )
        self.archive.save(self._archive_after(iteration + 1))
        # A round that is killed before this iteration's checkpoint goes on with the archive before it.
        self._archive_after(iteration - 1).unlink(missing_ok=True)
        batches = self._batches(iteration, scored, learners)
        summary = self._summary(scored, weights_version, learnable=batches is not None)
        self.discard()
        return (summary, *([None] * learners if batches is None else batches))

    def _write(self, iteration: int, scored: Sequence[_Scored]) -> None:
        rows = [row for each in scored for row in each.rows]
        extra = [
            {**{key: row[key] for key in ATTEMPT_COLUMNS.names[:2]}, "iteration": iteration}
            | {key: row[key] for key in ("valid", "success", "rejected")}
            | {"embedding": embedding.tolist()}
            for each in scored
            for row, embedding in zip(each.rows, each.embeddings, strict=True)
        ]
        table = to_table({key: row[key] for key in SCHEMA.names} for row in rows)
        columns = pa.Table.from_pylist(extra, schema=ATTEMPT_COLUMNS)
        for name in ATTEMPT_COLUMNS.names:
            table = table.append_column(name, columns[name])
        write_table(table, self.directory / f"iteration-{iteration:04d}.parquet")

    def _batches(self, iteration: int, scored: Sequence[_Scored], learners: int) -> list[MultiAgentBatch] | None:
        reward = np.stack([each.reward for each in scored])
        if self.setup.index <= 1 and iteration < self.config.warm_start:
            advantages = imitation_advantages(reward, np.stack([each.kept for each in scored]))
        else:
            advantages = group_advantages(reward, self.config.objective.advantage)
        groups = [
            Group(
                prompt_ids=each.rollouts[0].prompt_ids,
                completions=[r.completion.token_ids for r in each.rollouts],
                logprobs=[r.completion.logprobs for r in each.rollouts],
                advantages=of_group,
            )
            for each, of_group in zip(scored, advantages, strict=True)
        ]
        batches = train_batches(groups, learners=learners, multiple=self.config.minibatch * self.config.accumulate)
        return batches and [MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=len(batch)) for batch in batches]

    def _summary(self, scored: Sequence[_Scored], weights_version: int, *, learnable: bool) -> Summary:
        rows = [row for each in scored for row in each.rows]
        cells: dict[tuple[str, str], tuple[int, int]] = {}
        for each in scored:
            cell = (category_of(self.setup.goals[each.task.goal]), each.task.style)
            attempts, successes = cells.get(cell, (0, 0))
            cells[cell] = (attempts + len(each.rows), successes + sum(row["success"] for row in each.rows))
        means = {
            name: float(np.mean(np.concatenate([getattr(each.parts, name) for each in scored])))
            for name in ("kept", "evasion", "intent", "novelty")
        }
        return Summary(
            attempts=len(rows),
            valid=sum(row["valid"] for row in rows),
            successes=sum(row["success"] for row in rows),
            tokens=sum(len(r.completion.token_ids) for each in scored for r in each.rollouts),
            rejected=dict(Counter(row["rejected"] for row in rows if row["rejected"])),
            cells=cells,
            parts=means | {"reward": float(np.mean(np.concatenate([each.reward for each in scored])))},
            archive=len(self.archive),
            coverage=self.archive.coverage(self.categories, [style.name for style in chosen(self.config.styles)]),
            staleness=float(np.mean([weights_version - r.weights_version for each in scored for r in each.rollouts])),
            learnable=learnable,
        )
