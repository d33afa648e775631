"""Write an HTML page about a finished run, which can be read offline: the gain, the patches and the cost of its policy.

    python -m agents.report run=DIR                      writes DIR/report.html
    python -m agents.report run='runs/sweep/seed=*'      runs that differ only in the seed: means with intervals over seeds
    python -m agents.report run=DIR out=page.html clips=6
"""

from agents.config.command import run_command
from agents.config.settings import Report


def main(config: Report) -> None:
    """Write the page."""
    from agents.page.page import write_page  # imported here, so that --help does not import PyTorch

    write_page(config)


if __name__ == "__main__":
    run_command(main, Report, "report")
