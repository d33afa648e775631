"""List run folders with their results.

    python -m agents.list_runs root=DIR sort=learned     the best first
    python -m agents.list_runs json=true                 for programs

Below the list, runs that differ only in the seed are summarized by their mean and its 95 % confidence interval.
"""

from agents.config.command import run_command
from agents.config.settings import ListRuns


def main(config: ListRuns) -> None:
    """Print the list."""
    from agents.runs.listing import print_runs  # imported here, so that --help is fast

    print_runs(config)


if __name__ == "__main__":
    run_command(main, ListRuns, "list_runs")
