"""Predict any video with a trained run: classes, selected patches, and an annotated video.

    python -m agents.predict run=DIR source=video.mp4                  JSON, a contact sheet and an annotated MP4
    python -m agents.predict run=DIR source=FOLDER                     one JSON line per video; the same command resumes
    python -m agents.predict run=DIR source='videos/*.mp4' save=json,video
    python -m agents.predict run=DIR source=long.mp4 window=10 stride=5
    python -m agents.predict run=DIR source=FOLDER exit=1              stop each video when the head is confident enough
    find . -name '*.mp4' | python -m agents.predict run=DIR source=-   a list of paths on standard input
    python -m agents.predict classifier=DIR policy=DIR source=video.mp4

Exit status: 0 if every video has a prediction, 1 if a video cannot be read (these are listed at the end), 2 if an argument is wrong.
"""

from agents.config.command import run_command
from agents.config.settings import Predict


def main(config: Predict) -> int:
    """Predict the videos; return the exit status."""
    from agents.prediction.run import predict  # imported here, so that --help does not import PyTorch

    return predict(config)


if __name__ == "__main__":
    run_command(main, Predict, "predict")
