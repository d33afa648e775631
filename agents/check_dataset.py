"""Checks a data set before a training: every video is opened, and the frames of its test clip are decoded.

    python -m agents.check_dataset data=actnet data.root=DIR [data.source=frames] [workers=8] [out=report.json]

It reports videos that are missing, cannot be read, are labelled otherwise than the class folder in their path, or have fewer than T
frames; faulty lines of lists; frame rates and sizes; with data=folder also the files and folders that are not used.

Exit status: 0 where every video can be used as it is listed, 1 where one cannot, 2 for a mistake in the arguments or a file that cannot be
read. Short videos (their last frame is repeated) and files that are not used do not count.
"""

from agents.config.command import run_command
from agents.config.settings import CheckDataset


def main(config: CheckDataset) -> int:
    """Print the report, and write it where asked; return the exit status."""
    from adafocus_env.validate_data import validate_data  # here, so that --help answers at once

    return validate_data(config.data, config.workers, config.out)


if __name__ == "__main__":
    run_command(main, CheckDataset, "check_dataset")
