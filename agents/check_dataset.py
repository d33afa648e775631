"""Check a data set before training: open every video and decode the frames of its test clip.

    python -m agents.check_dataset data=actnet data.root=DIR [data.source=frames] [workers=8] [out=report.json] [shard=1/4]

The report lists videos that are missing, that cannot be read, whose label differs from the class folder in their path, or that have fewer
than T frames. The report also lists faulty lines of list files, the frame rates, the sizes of frames and, with data=folder, unused files
and folders.

With ``shard=I/N``, one of N jobs checks the I-th of N shards of the videos. Its report is ``report-I-of-N.json``. Findings on the lists as
a whole are in the report of the first shard only.

Exit status: 0 if every video can be used as listed, 1 if a video cannot be used, 2 if an argument is wrong or a file cannot be read. The
status depends neither on unused files nor on short videos. (The last frame of a short video is repeated.)
"""

from agents.config.command import run_command
from agents.config.settings import CheckDataset


def main(config: CheckDataset) -> int:
    """Print the report, write it to ``out`` if set, and return the exit status."""
    from adafocus_env.validate_data import validate_data  # imported here, so that --help is fast

    return validate_data(config.data, config.workers, config.out, config.shard)


if __name__ == "__main__":
    run_command(main, CheckDataset, "check_dataset")
