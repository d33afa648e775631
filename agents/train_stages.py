"""Train a model from random weights: stages 0, 1, 2 and 3, then joint rounds of stages 2 and 3.

    python -m agents.train_stages
    python -m agents.train_stages rounds=2                              alternate finetuning of policy and classifier
    python -m agents.train_stages algo=expected_pg                      train the policy by a subclass of PPO
    python -m agents.train_stages first=3 classifier=DIR policy=DIR     start from a trained model

Stage 0 trains glancer and focuser on whole frames. Stage 1 trains focuser and head on random patches. Stage 2 trains the policy by PPO.
Stage 3 trains the head on the policy's patches, and also the focuser if stages.finetune.learning_rate is above 0. Each stage starts from
the best checkpoint of the stage before. After Ctrl-C, a kill or a crash, the same command resumes.

    torchrun --nproc_per_node=8 -m agents.train_stages …                on eight GPUs, which share the clips of each step
"""

import time
from typing import TYPE_CHECKING

from agents.config.command import run_command
from agents.config.settings import TrainStages
from agents.train import without_effect

if TYPE_CHECKING:
    from agents.pipeline.training_run import TrainingRun


def main(config: TrainStages) -> None:
    """Run the unfinished stages, and evaluate the model on the test clips."""
    from agents.pipeline.stages import check_stages
    from agents.pipeline.training_run import TrainingRun

    check_stages(config)
    with TrainingRun.open(config.run or f"runs/train_stages-{config.data.label}-{config.seed}", config) as run:
        if not run.show_if_finished():
            _train(run, config)


def _train(run: "TrainingRun", config: TrainStages) -> None:
    from adafocus_env import distributed
    from agents.pipeline.driver import BEST, COMMAND, StageDriver, ablation, ablation_table
    from agents.pipeline.stages import check_learning
    from agents.policies.networks import save_policy
    from agents.rl.saved_model import selection_of
    from agents.runs.report import split_title
    from classifiers import checkpoint

    check_learning(config, run.device)
    clips, start = run.clips(for_policy=config.first <= 2 <= config.last), time.perf_counter()
    driver = StageDriver(run, clips, config)
    best = driver.run()
    if best is None or not distributed.is_main():
        return
    if driver.policy is not None:
        about = {"classifier": driver.classifier.fingerprint(), **({} if best.policy is None else selection_of(best.policy))}
        about |= {"skipped": config.env.skipped} if driver.policy.skips else {}
        save_policy(driver.policy, run.directory.checkpoints / BEST, about)
    rows = ablation(driver.milestones, best, clips.test, config, run.device)
    run.display.console.print(ablation_table(rows, split_title(config.data.title, "test", len(clips.test))))
    parent = checkpoint.read_card(best.classifier).parent
    run.finish(driver.classifier, driver.policy, clips, start, {"ablation": rows}, parent=parent, command=COMMAND)


if __name__ == "__main__":
    run_command(main, TrainStages, "train_stages", without_effect=without_effect)
