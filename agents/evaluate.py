"""Evaluate a policy and every baseline on the test clips: accuracy against cost.

    python -m agents.evaluate run=DIR                            a finished run
    python -m agents.evaluate run=DIR further=true               on further demo clips that no run has read
    python -m agents.evaluate run=DIR keep=0.47                  a skipping policy with patches in 47 % of the frames
    python -m agents.evaluate run=DIR exit=1                     with a conditional exit, and accuracy against its cost
    python -m agents.evaluate run=DIR data=folder data.root=DIR  its classifier and policy on other videos
    python -m agents.evaluate classifier=DIR policy=DIR data=demo
"""

from agents.config.command import run_command
from agents.config.settings import Evaluate


def main(config: Evaluate) -> None:
    """Print the table of results for a finished run, or for a classifier and a policy. The videos may differ from those of the run."""
    from agents.pipeline.evaluate_saved import evaluate_saved

    evaluate_saved(config)


if __name__ == "__main__":
    run_command(main, Evaluate, "evaluate")
