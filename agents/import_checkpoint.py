"""Makes a classifier, and a policy if the file has one, from a checkpoint that the authors' code saved.

    python -m agents.import_checkpoint file=FILE out=DIR [patch_size=P] [classes=FILE] [family=NAME]

Published patch sizes are 96, 128, 160 and 192 for ActivityNet, 144, 160 and 176 for Something-Something; of AdaFocusV2 96, 128 and 160
for ActivityNet, 128, 144, 160 and 176 for Something-Something, and the name of a file says which. The file with the names of the
classes has one per line, numbered or not (classInd.txt of the data set), in the order of the scores; without it they are 0, 1, 2, …
"""

import sys

from agents.config.command import run_command
from agents.config.settings import ImportCheckpoint


def main(config: ImportCheckpoint) -> None:
    """Import the file, and print what it holds."""
    from agents.released.checkpoint import import_released  # here, so that --help answers without PyTorch

    sys.stdout.write(f"{import_released(config)}\n")


if __name__ == "__main__":
    run_command(main, ImportCheckpoint, "import_checkpoint")
