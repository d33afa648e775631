"""Export a classifier and its policy as a folder to share, or as ONNX files.

    python -m agents.export run=DIR                                  weights, policy and a Markdown card in exports/NAME-folder
    python -m agents.export run=DIR format=onnx                      four ONNX files and their metadata in exports/NAME-onnx
    python -m agents.export classifier=DIR policy=DIR out=FOLDER
    python -m agents.export classifier=demo policy=demo format=onnx

Every command accepts the exported folder as classifier=FOLDER policy=FOLDER. The ONNX files can be used without PyTorch;
examples/onnx_predict.py predicts a video with them. Before the ONNX files are written, their outputs are compared with PyTorch's.
"""

import sys

from agents.config.command import run_command
from agents.config.settings import Export


def main(config: Export) -> None:
    """Export the classifier and its policy, and print the folder."""
    from agents.exporting.export import export  # imported here, so that --help does not import PyTorch

    sys.stdout.write(f"saved to {export(config)}\n")


if __name__ == "__main__":
    run_command(main, Export, "export")
