"""Lists run folders with their results.

    python -m agents.list_runs root=DIR sort=learned     the best first
    python -m agents.list_runs json=true                 for programs

Runs that differ in the seed alone are summed up below: their mean and its 95 % confidence interval.
"""

from agents.config.command import run_command
from agents.config.settings import ListRuns


def main(config: ListRuns) -> None:
    """Print the list."""
    from agents.runs.listing import print_runs  # here, so that --help answers at once

    print_runs(config)


if __name__ == "__main__":
    run_command(main, ListRuns, "list_runs")
