"""Run the stages of a training in order. Each stage runs only once, and starts from the best checkpoint of the stage before.

When a stage is finished, a file `DONE` is written to its folder. The file contains the fingerprint of the classifier from which the stage
started. The fingerprint shows whether this classifier's checkpoint was changed later. An interrupted stage resumes from its last
checkpoint. The metrics of an interrupted run equal those of an uninterrupted run.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.table import Column, Table
from stable_baselines3.common.utils import set_random_seed

from adafocus_env import distributed
from adafocus_env.clips.store import ClipSource
from adafocus_env.terminal import plain
from agents.config.settings import EnvConfig, PPOConfig, SupervisedConfig, TrainStages
from agents.evaluation.evaluate import batches, evaluate_policy
from agents.pipeline.builders import Clips, features_of
from agents.pipeline.epochs import resumable, with_progress
from agents.pipeline.stages import Milestone, Score, StageDir, StageSpec, joint_round, single_pass
from agents.pipeline.training_run import TrainingRun
from agents.policies.baselines import RandomPatch
from agents.policies.networks import PolicyNetwork, load_policy, save_policy
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.stages import BackboneName, finetune, frame_scores, train_on_random_patches, warm_up
from classifiers import checkpoint
from classifiers.atomic_files import write_text
from classifiers.backbones.imagenet import new_classifier
from classifiers.classifier import Architecture, Classifier
from classifiers.errors import InputError, count_of, refuse_if

BEST, LAST, DONE, GIVEN = "best", "last", "done.json", "given"
COMMAND = "python -m agents.train_stages"
CLIPS_AT_ONCE = 16


class StageDriver:
    """Run all unfinished stages of a training.

    Args:
        run: The training run, with its directory, display and classifier or architecture.
        clips: The clips of all splits. Without a validation split, the result of a stage is the model after its last epoch.
        config: The stages and their settings.
        reseed: Whether to seed the global random states, which dropout uses, before every stage. If False, each stage continues with the
            random states at the end of the previous stage.

    Attributes:
        classifier: The classifier after the last finished stage, always the same object, so that banks detect changed weights.
        policy: The policy after the last finished stage. Before stage 2, this is the policy that was given, or None.
        milestones: The model after each stage.

    Raises:
        InputError: If the first stage needs a classifier or a policy that is not given.
    """

    def __init__(self, run: TrainingRun, clips: Clips, config: TrainStages, *, reseed: bool = True) -> None:
        self._run, self._clips, self._config, self._reseed = run, clips, config, reseed
        self._stages = [single_pass(config), *(joint_round(config, number) for number in range(1, config.rounds + 1))]
        self.milestones: list[Milestone] = []
        self._lines = 0
        self.classifier = self._first_classifier()
        self.classifier.clip_format = clips.format
        if distributed.is_main() and any(spec.stage == 2 for spec in self._stages[0]):
            run.features(self.classifier, clips.train)  # fails early if anything does not match
        starts_from_policy = config.policy and config.last >= 2
        self.policy = run.given_policy(run.features(self.classifier, clips.train)) if starts_from_policy else None
        self._classifier_dir, self._policy_dir = self._save_given()
        self._fingerprint = None if self._classifier_dir is None else self.classifier.fingerprint()

    def run(self) -> Milestone | None:
        """Run the single pass and the joint rounds; load and return the milestone with the best score on the validation split.

        Only the milestones at the end of the single pass and of each round are compared. The result is None if there are no stages.
        """
        best, rounds_without_gain = None, 0
        for number, stages in enumerate(self._stages):
            for spec in stages:
                self._run_stage(spec)
            if not self.milestones:
                continue
            reached = self.milestones[-1]
            gain = best is None or reached.score is None or not is_at_least(best.score, reached.score)
            rounds_without_gain = 0 if gain else rounds_without_gain + 1
            if best is None or is_at_least(reached.score, best.score):
                best = reached
            if rounds_without_gain == self._config.joint.patience:
                self._run.display.say(f"round {number} did not improve on {best.spec.title} on the validation split: no more rounds")
                break
        if best is not None:
            self._load(best.classifier, best.policy)
        return best

    def _first_classifier(self) -> Classifier:
        """Return the given classifier. If only an architecture is given, return a new classifier with this architecture."""
        given, config = self._run.classifier_or_architecture, self._config
        if isinstance(given, Architecture):
            refuse_if(
                config.first > 0,
                f"first={config.first} needs a trained classifier: classifier=DIR, for example RUN/checkpoints/classifier of {COMMAND} "
                f"last={config.first - 1}, or first=0 to train one",
            )
            set_random_seed(config.seed)
            return new_classifier(given, self._clips.data.classes).to(self._run.device).freeze()
        refuse_if(
            config.first == 0,
            f"classifier={config.classifier} is trained already: add first=1, 2 or 3 to continue with it, or start from an "
            "architecture (small, efficientnet_lite, paper or paper_tsm)",
        )
        return given

    def _save_given(self) -> tuple[Path | None, Path | None]:
        """Save copies of the given classifier and policy, so that the run directory has everything that its result depends on."""
        folder = self._run.directory.checkpoints / GIVEN
        if isinstance(self._run.classifier_or_architecture, Architecture):
            return None, None
        if distributed.is_main():
            checkpoint.save(self.classifier, folder / "classifier", data=self._clips.data.name)
            if self.policy is not None:
                save_policy(self.policy, folder / "policy", {"classifier": self.classifier.fingerprint()})
        return folder / "classifier", None if self.policy is None else folder / "policy"

    def _run_stage(self, spec: StageSpec) -> None:
        """Run a stage, unless it is finished, and load its best checkpoint."""
        directory = StageDir(self._run.directory, spec, self._lines)
        done, best = directory.checkpoints / DONE, directory.checkpoints / BEST
        if not distributed.broadcast_object(done.is_file()):
            self._train(spec, directory)
        elif not self._reseed:  # restore the random states at the end of the stage
            deque(self._epochs(spec, EpochCheckpoint(directory.checkpoints / LAST, lambda: 0)), maxlen=0)
        fingerprint, score, self._lines = _read_done(done)
        refuse_if(
            fingerprint != self._fingerprint,
            f"{directory.checkpoints} started from another classifier than the result of the stage before; force=true starts over",
        )
        self._load(*((self._classifier_dir, best) if spec.stage == 2 else (best, self._policy_dir)))
        self.milestones.append(Milestone(spec, cast(Path, self._classifier_dir), self._policy_dir, score))

    def _load(self, classifier: Path | None, policy: Path | None) -> None:
        """Load checkpoints into `classifier` and `policy`."""
        device = self._run.device
        with torch.random.fork_rng(devices=[]):  # a new network is initialised with random numbers, before its weights are loaded
            if classifier is not None:
                self.classifier.load_state_dict(checkpoint.load(classifier, device).state_dict())
                self._fingerprint = self.classifier.fingerprint()
            if policy != self._policy_dir:
                self.policy = None if policy is None else load_policy(policy, device)
        self._classifier_dir, self._policy_dir = classifier, policy

    def _train(self, spec: StageSpec, directory: StageDir) -> None:
        """Train to the end of a stage and mark the stage as done."""
        main = distributed.is_main()
        if self._reseed:
            set_random_seed(self._seed(spec))
        if spec.stage != 2:
            score = self._train_supervised(spec, directory)
        elif main:
            policy = self._run.train_policy(
                self.classifier, self._clips, directory=directory, ppo=cast(PPOConfig, spec.settings), seed=self._seed(spec),
                start=self.policy,
            )  # fmt: skip
            score = self._patch_score(cast(PolicyNetwork, policy))  # stages learn by PPO
        if main:
            done = {"began": self._fingerprint, "score": score, "lines": self._lines + len(directory.metrics())}
            write_text(directory.checkpoints / DONE, json.dumps(done) + "\n")
        distributed.barrier()  # the other processes load the files of the main process

    def _train_supervised(self, spec: StageSpec, directory: StageDir) -> Score | None:
        """Run the remaining epochs of stage 0, 1 or 3; the main process saves the best classifier and returns its score."""
        with resumable(directory, directory.checkpoints / LAST, self._run.display) as checkpoints:
            epochs = self._epochs(spec, checkpoints)
            if not distributed.is_main():
                deque(epochs, maxlen=0)
                return None
            if spec.stage == 3 and "best" not in checkpoints.extra:
                self._save_best(self._patch_score(self.policy), checkpoints, directory)  # finetuning may not help
            total, done, clips = spec.settings.epochs or 0, len(directory.metrics()), self._clips.train.epoch_size
            for epoch, metrics in with_progress(
                epochs, checkpoints, self._run.display, spec.title, total=total, done=done, clips=clips
            ):  # fmt: skip
                score = self._score(spec)
                metrics |= score_metrics(score)
                directory.log({"stage": spec.stage, "part": spec.trains, "epoch": epoch, **metrics})
                if is_at_least(score, checkpoints.extra.get("best")):
                    self._save_best(score, checkpoints, directory)
        self._say_chosen(spec, directory, checkpoints.extra["best"])
        return checkpoints.extra["best"]

    def _say_chosen(self, spec: StageSpec, directory: StageDir, best: Score | None) -> None:
        """Print which epoch of a stage was selected, and its validation score."""
        if best is not None and self._clips.val is not None:
            epochs = [line["epoch"] for line in directory.metrics() if [line.get(name) for name in score_metrics(best)] == [*best]]
            which = f"epoch {epochs[-1]} of {spec.settings.epochs}" if epochs else "the one before its first epoch"
            count = count_of(len(self._clips.val), "validation clip")
            self._run.display.say(f"{spec.title}: the best is {which}, with {best[0]:.1%} of {count} right")

    def _epochs(self, spec: StageSpec, checkpoints: EpochCheckpoint) -> Iterator[dict[str, float]]:
        settings, env, clips, seed = cast(SupervisedConfig, spec.settings), self._config.env, self._clips.train, self._seed(spec)
        if spec.stage == 0:
            return warm_up(self.classifier, cast(BackboneName, spec.trains), clips, settings, seed=seed, checkpoints=checkpoints)
        if spec.stage == 1:
            return train_on_random_patches(self.classifier, clips, settings, seed=seed, video_div=env.video_div, checkpoints=checkpoints)
        return finetune(
            self.classifier, cast(PolicyNetwork, self.policy), clips, settings, seed=seed, skipped=env.skipped, checkpoints=checkpoints
        )

    def _seed(self, spec: StageSpec) -> int:
        """Return the seed of a stage. Every joint round has a different seed."""
        seed = self._config.seed
        return int(np.random.SeedSequence((seed, spec.round)).generate_state(1)[0]) if spec.round else seed

    def _score(self, spec: StageSpec) -> Score | None:
        """Return the validation score that the stage optimizes; None without a validation split."""
        if spec.stage == 0 and self._clips.val is not None:
            return frame_score(self.classifier, cast(BackboneName, spec.trains), self._clips.val)
        return self._patch_score(self.policy if spec.stage == 3 else None)

    def _patch_score(self, policy: PolicyNetwork | None) -> Score | None:
        val, config = self._clips.val, self._config
        return None if val is None else patch_score(self.classifier, policy, val, config.env, config.seed)

    def _save_best(self, score: Score | None, checkpoints: EpochCheckpoint, directory: StageDir) -> None:
        checkpoint.save(
            self.classifier, directory.checkpoints / BEST, data=self._clips.data.name, metrics=score_metrics(score),
            parent=self._fingerprint, command=COMMAND,
        )  # fmt: skip
        checkpoints.extra["best"] = score


def _read_done(file: Path) -> tuple[str | None, Score | None, int]:
    """Return the content of a stage's file `DONE`.

    The content is the fingerprint of the classifier from which the stage started, the score of the stage, and the number of lines of
    metrics at the end of the stage.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return values["began"], values["score"] and (values["score"][0], values["score"][1]), int(values["lines"])
    except (ValueError, KeyError, TypeError, IndexError) as problem:
        raise InputError(f"{file} cannot be read ({problem!r}); force=true starts the run over") from problem


def patch_score(classifier: Classifier, policy: PolicyNetwork | None, clips: ClipSource, env: EnvConfig, seed: int) -> Score:
    """Return the score after the last step, with the patches that the policy selects.

    If ``policy`` is None, patches are random and fixed by ``seed``.
    """
    features = features_of(classifier, clips, replace(env, bank=False))
    played = evaluate_policy(features, policy or RandomPatch(features.action, seed), skipped=env.skipped)
    return float(played.correct.mean()), float(played.confidence.mean())


@torch.no_grad()
def frame_score(classifier: Classifier, name: BackboneName, clips: ClipSource) -> Score:
    """Return the score of the frame classifier of one backbone. The class scores are averaged over all frames of a clip."""
    read = clips.glancer_frames if name == "glancer" else clips.frames
    correct, confidence = 0, 0.0
    for batch in batches(np.arange(len(clips)), CLIPS_AT_ONCE):
        frames = torch.stack([read(int(clip)) for clip in batch]).to(classifier.device)
        labels = torch.from_numpy(clips.labels[batch]).to(classifier.device)
        scores = frame_scores(classifier, name, frames)
        correct += int((scores.argmax(-1) == labels).sum())
        confidence += float(scores.softmax(-1)[torch.arange(len(labels)), labels].sum())
    return correct / len(clips), confidence / len(clips)


def score_metrics(score: Score | None) -> dict[str, float]:
    """Return the score as entries for a line of metrics. Without a validation split, there is no score, and the result is empty."""
    return {} if score is None else dict(zip(("val_top1", "val_confidence"), score, strict=True))


def is_at_least(score: Score | None, other: Score | None) -> bool:
    """Return True if ``score`` is at least as good as ``other``.

    Without a validation split, at least one of the two scores is None, and the result is True.
    """
    return score is None or other is None or tuple(score) >= tuple(other)


def ablation(
    milestones: Sequence[Milestone], chosen: Milestone, clips: ClipSource, config: TrainStages, device: torch.device
) -> list[dict[str, Any]]:
    """Evaluate the model after every stage from stage 1 on.

    Args:
        milestones: The milestones in the order of training.
        chosen: The result of the training.
        clips: The test clips.
        config: Settings of the training.
        device: Device of the networks.

    Returns:
        One row per milestone. Each row has the entries `after` (the last stage), `round`, `patches` (random, or selected by the policy),
        `top1` and `confidence` after the last step, `val_top1` if there is a validation split, and `chosen`.
    """
    rows: list[dict[str, Any]] = []
    for milestone in milestones:
        if milestone.spec.stage == 0:
            continue
        classifier = checkpoint.load(milestone.classifier, device)
        policy = None if milestone.policy is None else load_policy(milestone.policy, device)
        if policy is not None and not rows:  # the given classifier, evaluated without a policy
            top1, confidence = patch_score(classifier, None, clips, config.env, config.seed)
            rows.append({"after": "(given)", "round": 0, "patches": "random", "top1": top1, "confidence": confidence, "chosen": False})
        top1, confidence = patch_score(classifier, policy, clips, config.env, config.seed)
        row = {"after": milestone.spec.title, "round": milestone.spec.round, "patches": "random" if policy is None else "policy"}
        row |= {"top1": top1, "confidence": confidence, "chosen": milestone is chosen}
        rows.append(row if milestone.score is None else {**row, "val_top1": milestone.score[0]})
    return rows


def ablation_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Return a table of the rows, in 80 columns; ``title`` names the clips."""
    numbers = [Column(name, justify="right") for name in ("top-1", "confidence", "validation")]
    table = Table(Column("after", no_wrap=True), Column("patches"), *numbers, title=plain(f"what each stage adds: {title}"))
    for row in rows:
        name = f"{row['after']} ◂" if row["chosen"] else row["after"]
        val = f"{row['val_top1']:.1%}" if "val_top1" in row else "–"
        table.add_row(name, row["patches"], f"{row['top1']:.1%}", f"{row['confidence']:.3f}", val)
    return table
