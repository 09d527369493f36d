"""Reward workers: they take rollouts from the runners, score, gate and reward them, and make the learners' batches.

The driver hands them references and gets summaries of a fixed size: rollouts go from runner to worker, batches from
worker to learner. A worker keeps nothing that it cannot read again: Ray restarts one that dies and calls it again.
Every attempt is on disk before the learners see it.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.policy.sample_batch import MultiAgentBatch

from actors import rewards
from actors.archive import BENIGN, Archive, Find, category_of, finds_of
from actors.attempts import (
    REFUSED,
    UNANSWERED,
    attempts_table,
    diversity_of,
    float_lists,
    left_successes,
    read_successes,
    write_attempts,
)
from actors.config import AdversaryConfig
from actors.env_runner import Rollout, Share, StaleWeightsError, Task
from actors.errors import DEATHS
from actors.gate import MALFORMED, Attempt, harm_of_frames, limits, rejection
from actors.judges import label_kept
from actors.loss import Row, group_advantages, imitation_advantages, train_batches
from actors.scorer import Meaning, Scorer
from actors.styles import STYLE, chosen
from actors.summary import PARTS, Summary, Tally
from guardrail.deobfuscation import plain
from guardrail.few_shot import cleaned
from guardrail.generable import may_sexualise_minors
from guardrail.judge_formats import Vote
from guardrail.kept_verdicts import VERDICTS
from guardrail.records import Record, record_id, to_table
from guardrail.remote import TargetError

logger = logging.getLogger(__name__)

_COMPARED = 512  # clusters cost the square of what is compared
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class RoundSetup:
    """What a round is about.

    Attributes:
        index: of the round.
        goals: records to attack with.
        target: guard directory or URL.
        target_version, attacker_version: names that records of attempts give guard and attacker.
        directory: where attempts, archive and a service's verdicts are written.
        earlier: (category, style, id, text) of successes of earlier rounds.
    """

    index: int
    goals: Sequence[Record]
    target: str
    target_version: str
    attacker_version: str
    directory: str
    earlier: Sequence[tuple[str, str, str, str]]


@dataclasses.dataclass(frozen=True)
class Scored:
    """A part of an iteration: for the learners and for the archive, both by group, and in numbers."""

    rows: dict[int, Row]
    finds: dict[int, list[Find]]
    tally: Tally


class RewardWorker:
    """The actor; see the module.

    Args:
        config: the adversary's settings.
        judges: actor handles of `Judge`.
    """

    def __init__(self, config: AdversaryConfig, judges: Sequence[Any] = ()) -> None:
        self.config = config
        self.judges = judges
        self.scorer = Scorer(config.embedder, config.model, config.gate.intent_model)
        self._setup: tuple[ray.ObjectRef, RoundSetup] | None = None
        self._archive: tuple[tuple[str, int], Archive] | None = None
        if ray.get_runtime_context().was_current_actor_reconstructed:
            logger.warning("a scorer died and was restarted; what it was scoring is scored again")

    def __repr__(self) -> str:
        return "scorer"

    def _round(self, setup: Sequence[ray.ObjectRef]) -> RoundSetup:
        """Return a round's setup, and have the scorer attack its target."""
        (ref,) = setup  # in a list, so that Ray does not copy the goals for every call
        if self._setup is None or self._setup[0] != ref:
            self._setup = ref, ray.get(ref)
            self._goals = to_table(self._setup[1].goals)
            self.scorer.set_target(self._setup[1].target, Path(self._setup[1].directory) / VERDICTS)
        return self._setup[1]

    def archived(self, setup: Sequence[ray.ObjectRef], iterations: int) -> np.ndarray:
        """Return the embeddings of the archive after some iterations of the round, [n, d]; [0, 0] of none."""
        return self._archive_after(self._round(setup), iterations).embeddings()

    def _archive_after(self, setup: RoundSetup, iterations: int) -> Archive:
        if self._archive and self._archive[0] == (setup.directory, iterations):
            return self._archive[1]
        saved = _archive_file(setup, iterations)
        if saved.exists():
            return Archive.load(saved, self.config.archive_per_cell)
        archive = Archive(self.config.archive_per_cell)
        if setup.earlier:
            # What a text says, as of attempts: a disguise alone is nothing new.
            embeddings = self.scorer.embedder.encode([plain(text) for *_, text in setup.earlier])
            archive.add(
                Find(id_, category, style, text, embedding)
                for (category, style, id_, text), embedding in zip(setup.earlier, embeddings, strict=True)
            )
        return archive

    def score(
        self,
        setup: Sequence[ray.ObjectRef],
        iteration: int,
        shares: Sequence[tuple[int, ray.ObjectRef]],
        archived: np.ndarray,
    ) -> tuple[list[int], Scored]:
        """Score, reward and write down the rollouts of some runners; return who died, and what the rest needs of them.

        Who died and came back without the weights counts as dead.

        What costs most comes last, and only for what has passed so far: fluency, judges, the target itself.

        Args:
            setup: the round's, as a reference in a list.
            iteration: within the round.
            shares: for each runner which of the iteration's shares it has, and a reference of it.
            archived: embeddings of earlier successes, for novelty.

        Raises:
            TargetError: the target failed; what it said before is written down.
        """
        made: list[tuple[int, Share]] = []
        dead = []
        for index, (place, share) in enumerate(shares):
            try:
                made.append((place, self._read(share)))
            except (*DEATHS, StaleWeightsError):
                dead.append(index)
        return dead, self._score(self._round(setup), iteration, made, archived) if made else Scored({}, {}, Tally())

    def _read(self, share: ray.ObjectRef) -> Share:
        return ray.get(share)

    def _score(
        self,
        round_: RoundSetup,
        iteration: int,
        shares: Sequence[tuple[int, Share]],
        archived: np.ndarray,
    ) -> Scored:
        size = self.config.group_size
        tasks = [task for _, (of_share, _) in shares for task in of_share]
        rollouts = [rollout for _, (_, of_share) in shares for rollout in of_share]
        styles = [STYLE[task.style] for task in tasks for _ in range(size)]
        goals = [round_.goals[task.goal] for task in tasks for _ in range(size)]
        texts = [goal["text"] for goal in goals]
        unsafe = np.array([goal["unsafe"] for goal in goals])
        attacks = [s.attack(t, r.completion.text) for s, t, r in zip(styles, texts, rollouts, strict=True)]
        with ThreadPoolExecutor(1) as beside:  # the models may compute elsewhere, the rules cannot
            read = beside.submit(lambda: [may_sexualise_minors(attack) for attack in attacks])
            meaning = self.scorer.meaning(texts, attacks)
        withheld = read.result()
        attacks = ["" if hidden else attack for attack, hidden in zip(attacks, withheld, strict=True)]
        for each in (meaning.intent, meaning.similarity, meaning.embeddings):
            each[withheld] = 0.0
        said = [cleaned(rollout.completion.text) for rollout in rollouts]
        harm = harm_of_frames(self.scorer.intent, styles, unsafe.tolist(), said)
        attempts = [
            Attempt(
                style=style,
                goal=goal,
                said=of_model,
                attack=attack,
                finished=rollout.completion.finished,
                similarity=float(similarity),
                intent=float(intent),
                harm=float(of_frame),
            )
            for style, goal, rollout, of_model, attack, similarity, intent, of_frame in zip(
                styles, texts, rollouts, said, attacks, meaning.similarity, meaning.intent, harm, strict=True
            )
        ]
        reasons = self._gated(attempts, withheld)
        fluency = self._fluency(reasons, attacks)
        reasons = self._judged(reasons, attacks, unsafe)
        # Gate, judges and fluency are about what is said, the guard is shown how it is written.
        attacks = [style.disguised(attack) for style, attack in zip(styles, attacks, strict=True)]
        probability, flagged, failure = self._verdicts(reasons, attacks)
        parts = self._parts(meaning, probability, flagged, unsafe, reasons, attempts, archived)
        reward = rewards.combined(parts, self.config.reward)
        success = parts.kept & (flagged != unsafe)
        measured = {
            "guard": probability,
            "similarity": meaning.similarity,
            "intent": meaning.intent,
            "fluency": fluency,
            "novelty": parts.novelty,
            "evasion": parts.evasion,
            "reward": reward,
        }
        ids = [record_id(attack) for attack in attacks]
        columns = {
            "id": ids,
            "text": attacks,
            "parent_id": [goal["id"] for goal in goals],
            "method": [f"rl:{style.name}" if style.transforms else "rl" for style in styles],
            "round": round_.index,
            "attacker_version": round_.attacker_version,
            "guard_version": round_.target_version,
            "style": [style.name for style in styles],
            "action": [style.action for style in styles],
            "iteration": iteration,
            "valid": parts.kept.tolist(),
            "success": success.tolist(),
            "rejected": reasons,
            "embedding": float_lists(meaning.embeddings),
        }
        places = [task.goal for task in tasks for _ in range(size)]
        table = attempts_table(self._goals, places, columns, measured)
        first = 0
        for place, (_, of_share) in shares:
            write_attempts(table.slice(first, len(of_share)), Path(round_.directory), iteration, place)
            first += len(of_share)
        if failure:  # what the target has conceded is on disk
            raise failure
        groups = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
        advantages = self._advantages(round_.index, iteration, reward.reshape(-1, size), parts.kept.reshape(-1, size))
        rows = {
            task.group: Row.of(
                group[0].prompt_ids,
                [rollout.completion.token_ids for rollout in group],
                [rollout.completion.logprobs for rollout in group],
                of_group,
            )
            for task, group, of_group in zip(tasks, groups, advantages, strict=True)
        }
        finds: dict[int, list[Find]] = {}
        for i in np.flatnonzero(success):
            found = Find(ids[i], category_of(goals[i]), styles[i].name, attacks[i], meaning.embeddings[i])
            finds.setdefault(tasks[i // size].group, []).append(found)
        return Scored(rows, finds, _tally(tasks, goals, rollouts, reasons, parts, fluency, reward, success))

    def _gated(self, attempts: Sequence[Attempt], withheld: Sequence[bool]) -> list[str | None]:
        gate = self.config.gate
        bounds = limits(gate, self.scorer.intent.limits)
        return [
            "withheld" if hidden else rejection(attempt, gate, bounds)
            for attempt, hidden in zip(attempts, withheld, strict=True)
        ]

    def _fluency(self, reasons: list[str | None], attacks: Sequence[str]) -> np.ndarray:
        """Return the fluency of what passed, NaN of the rest; what has too little gets the reason "gibberish"."""
        passed = _passed(reasons)
        result = np.full(len(attacks), np.nan)
        result[passed] = self.scorer.fluency([attacks[i] for i in passed])
        for i in passed:
            if result[i] < self.config.gate.min_fluency:
                reasons[i] = "gibberish"
        return result

    def _judged(self, reasons: list[str | None], attacks: Sequence[str], unsafe: np.ndarray) -> list[str | None]:
        """Return the reasons, with two of what the gate let through: "judges" voted otherwise, gave "no verdict"."""
        passed = _passed(reasons)
        if not self.judges or not passed:
            return reasons
        by_judge: list[list[Vote]] = ray.get([j.votes.remote([attacks[i] for i in passed]) for j in self.judges])
        for place, i in enumerate(passed):
            kept = label_kept([votes[place] for votes in by_judge], bool(unsafe[i]))
            if not kept:
                reasons[i] = "no verdict" if kept is None else "judges"
        return reasons

    def _verdicts(
        self, reasons: list[str | None], attacks: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, TargetError | None]:
        """Return the target's probability of "unsafe" and its decision for what passed; NaN and False for the rest.

        What the target refuses to judge gets the reason `REFUSED`. If it fails, that is returned, too, and what it has
        not answered before gets the reason `UNANSWERED`.
        """
        failure: TargetError | None = None
        unjudged = REFUSED
        passed = _passed(reasons)
        probability, flagged = np.full(len(attacks), np.nan), np.zeros(len(attacks), dtype=bool)
        if passed:
            texts = [attacks[i] for i in passed]
            try:
                probability[passed], flagged[passed] = self.scorer.verdicts(texts)
            except TargetError as error:
                failure, unjudged = error, UNANSWERED
                probability[passed], flagged[passed] = self.scorer.known(texts)
        for i in passed:
            if np.isnan(probability[i]):
                reasons[i] = unjudged
        return probability, flagged, failure

    def _parts(
        self,
        meaning: Meaning,
        probability: np.ndarray,
        flagged: np.ndarray,
        unsafe: np.ndarray,
        reasons: Sequence[str | None],
        attempts: Sequence[Attempt],
        archived: np.ndarray,
    ) -> rewards.RewardParts:
        kept = np.array([reason is None for reason in reasons])
        malformed = np.array([reason in MALFORMED for reason in reasons])
        frames = np.array([attempt.style.action == "frame" for attempt in attempts])
        return rewards.RewardParts(
            kept=kept,
            evasion=np.where(kept, rewards.evasion(probability, flagged, unsafe, self.scorer.threshold), 0.0),
            # A frame that is no attack still holds its goal: what it lacks is not meaning.
            intent=np.where(malformed, 0.0, np.where(frames, 0.5, meaning.intent)),
            similarity=np.where(malformed, 0.0, np.where(frames, 0.5, meaning.similarity.clip(0.0, 1.0))),
            novelty=rewards.novelty(meaning.embeddings, archived, kept, self.config.group_size),
        )

    def _advantages(self, round_index: int, iteration: int, reward: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Return advantages, [groups, size] as what they are of."""
        if self._imitates(round_index, iteration):
            return imitation_advantages(reward, kept)
        return group_advantages(reward, self.config.objective.advantage)

    def _imitates(self, round_index: int, iteration: int) -> bool:
        """Whether an iteration is of the warm start."""
        return round_index <= 1 and iteration < self.config.warm_start

    def finish(
        self, setup: Sequence[ray.ObjectRef], iteration: int, learners: int, weights_version: int, *parts: Scored
    ) -> Any:
        """End an iteration: write the archive, and return a summary, `archived` and a batch for each learner.

        Args:
            setup: the round's, as a reference in a list.
            iteration: within the round.
            learners: how many batches are wanted; each is None where there is nothing to learn from.
            weights_version: the learner's, that the samplers' are compared with.
            parts: of the iteration, in any order.
        """
        round_ = self._round(setup)
        archive = self._archive_after(round_, iteration)
        finds = _by_group(part.finds for part in parts)
        # Not before: where it finds the same again, that is as novel as it was when the iteration was killed.
        left = finds_of(left_successes(Path(round_.directory), iteration))
        archive.add(chain(*finds, left))
        archive.save(_archive_file(round_, iteration + 1))
        self._archive = (round_.directory, iteration + 1), archive
        # A round that is killed before this iteration's checkpoint goes on with the archive before it.
        _archive_file(round_, iteration - 1).unlink(missing_ok=True)
        batches = train_batches(
            _by_group(part.rows for part in parts),
            learners=learners,
            multiple=self.config.minibatch // learners,
            every=self.config.objective.hold == "balance" and not self._imitates(round_.index, iteration),
        )
        categories = {category_of(goal) for goal in round_.goals}
        if not self.config.benign_share:
            categories.discard(BENIGN)  # none is drawn
        summary = Summary.of(
            [part.tally for part in parts],
            archive=len(archive),
            coverage=archive.coverage(sorted(categories), [style.name for style in chosen(self.config.styles)]),
            weights_version=weights_version,
            learnable=batches is not None,
        )
        for_learners = [
            MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=len(batch)) for batch in batches or []
        ] or [None] * learners
        return (summary, archive.embeddings(), *for_learners)

    def diversity(self, setup: Sequence[ray.ObjectRef], iteration: int) -> dict[str, Any]:
        """Return how different the successes of an iteration, at most `_COMPARED` of them, are from each other."""
        successes = read_successes(Path(self._round(setup).directory), iteration)
        step = max(1, -(-len(successes) // _COMPARED))
        return diversity_of(successes.filter(np.arange(len(successes)) % step == 0))


def _archive_file(setup: RoundSetup, iterations: int) -> Path:
    return Path(setup.directory) / f"archive-{iterations:04d}.parquet"


def _by_group(parts: Iterable[Mapping[int, _T]]) -> list[_T]:
    """Return what parts of an iteration have of its groups in the groups' order, however they were dealt out."""
    together = {group: value for part in parts for group, value in part.items()}
    return [together[group] for group in sorted(together)]


def _passed(reasons: Sequence[str | None]) -> list[int]:
    return [i for i, reason in enumerate(reasons) if reason is None]


def _tally(
    tasks: Sequence[Task],
    goals: Sequence[Record],
    rollouts: Sequence[Rollout],
    reasons: Sequence[str | None],
    parts: rewards.RewardParts,
    fluency: np.ndarray,
    reward: np.ndarray,
    success: np.ndarray,
) -> Tally:
    tally = Tally(
        attempts=len(rollouts),
        valid=int(parts.kept.sum()),
        successes=int(success.sum()),
        read=int(np.isfinite(fluency).sum()),
        tokens=sum(len(rollout.completion.token_ids) for rollout in rollouts),
        rejected=Counter(reason for reason in reasons if reason),
        versions=sum(rollout.weights_version for rollout in rollouts),
    )
    size = len(rollouts) // len(tasks)
    of_groups = (each.reshape(-1, size).sum(axis=1) for each in (parts.kept, success))
    for task, goal, valid, succeeded in zip(tasks, goals[::size], *of_groups, strict=True):
        tally.add_to_cell((category_of(goal), task.style), size, int(valid), int(succeeded))
    measured = {"fluency": np.nan_to_num(fluency, nan=0.0, neginf=0.0), "reward": reward}
    for name in PARTS:
        values = measured[name] if name in measured else getattr(parts, name)
        tally.sums[name] = float(values.sum())
    return tally
