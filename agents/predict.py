"""Predictions of a trained run for any video: classes, where it looked, and an annotated video.

    python -m agents.predict run=DIR source=video.mp4                  JSON, a contact sheet and an annotated MP4
    python -m agents.predict run=DIR source=FOLDER                     one JSON line for each video in it; the same command resumes
    python -m agents.predict run=DIR source='videos/*.mp4' save=json,video
    python -m agents.predict run=DIR source=long.mp4 window=10 stride=5
    python -m agents.predict run=DIR source=FOLDER exit=1              each video ends where the head is confident enough
    find . -name '*.mp4' | python -m agents.predict run=DIR source=-   a list of paths on standard input
    python -m agents.predict classifier=DIR policy=DIR source=video.mp4

Exit status: 0 where every video has a prediction, 1 where one cannot be read (they are listed at the end), 2 for a mistake in the
arguments.
"""

from agents.config.command import run_command
from agents.config.settings import Predict


def main(config: Predict) -> int:
    """Predict the videos; return the exit status."""
    from agents.prediction.run import predict  # here, so that --help answers without PyTorch

    return predict(config)


if __name__ == "__main__":
    run_command(main, Predict, "predict")
