"""Import a checkpoint of the authors' code: write its classifier and, if the file has one, its policy.

    python -m agents.import_checkpoint file=FILE out=DIR [patch_size=P] [classes=FILE] [family=NAME]

The published patch sizes of AdaFocus are 96, 128, 160 and 192 for ActivityNet and 144, 160 and 176 for Something-Something. The published
patch sizes of AdaFocusV2 are 96, 128 and 160 for ActivityNet and 128, 144, 160 and 176 for Something-Something. The names of the checkpoint
files contain the patch size. The file of classes=FILE has one class name per line, with or without a number, in the order of the scores
(such as classInd.txt of the data set). By default, the classes are named 0, 1, 2, …
"""

import sys

from agents.config.command import run_command
from agents.config.settings import ImportCheckpoint


def main(config: ImportCheckpoint) -> None:
    """Import the file, and print a summary."""
    from agents.released.checkpoint import import_released  # imported here, so that --help does not import PyTorch

    sys.stdout.write(f"{import_released(config)}\n")


if __name__ == "__main__":
    run_command(main, ImportCheckpoint, "import_checkpoint")
