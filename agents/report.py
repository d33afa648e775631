"""One HTML page about a finished run that opens offline: what the policy gains, where it looks, and what it cost.

    python -m agents.report run=DIR                      writes DIR/report.html
    python -m agents.report run='runs/sweep/seed=*'      several runs that differ in the seed: means with intervals over seeds
    python -m agents.report run=DIR out=page.html clips=6
"""

from agents.config.command import run_command
from agents.config.settings import Report


def main(config: Report) -> None:
    """Write the page."""
    from agents.page.page import write_page  # here, so that --help answers without PyTorch

    write_page(config)


if __name__ == "__main__":
    run_command(main, Report, "report")
