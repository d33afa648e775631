"""The implementation of `python -m agents.predict`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from adafocus_env.terminal import plain
from agents.config.settings import Predict
from agents.prediction.checkpoints import check_plugin
from agents.prediction.output import PREDICTIONS, OutputFolder
from agents.prediction.predictor import Predictor, Unreadable
from agents.prediction.result import TOP, Prediction, named
from agents.prediction.sources import Sources, find_sources
from agents.runs.progress import Display
from classifiers.classifier import hash_of
from classifiers.errors import InputError, count_of, refuse_if

SUFFIXES = {"sheet": ".png", "video": ".mp4"}
"""Maps each kind of picture to the suffix of its files."""


def predict(config: Predict) -> int:
    """Predict all videos of the source that have no prediction yet. Return the exit status, which is 1 if a video cannot be read, else 0.

    Raises:
        InputError: If the run, the source or the output cannot be used.
    """
    refuse_if(bool(config.run) == bool(config.classifier), "give run=DIR, or classifier=DIR with its policy=DIR")
    out = Path(config.out) if config.out else Path("predictions", _name_of(config.source))
    sources = find_sources(config.source, out)
    kinds: Sequence[str] = config.save if config.save is not None else list(SUFFIXES) if sources.single else []
    pictures = _pictures(sources, out, [kind for kind in SUFFIXES if kind in kinds])
    with Display() as display:
        predictor = load_predictor(config, display)
        try:
            with OutputFolder(out, _origin(config, predictor), force=config.force) as output:
                return _predict(config, predictor, sources, output, pictures, display)
        except KeyboardInterrupt:
            display.say("stopped; the same command resumes")
            raise


def load_predictor(config: Predict, display: Display) -> Predictor:
    """Load the predictor that the settings name.

    Raises:
        InputError: If a checkpoint, the list of classes or the budget cannot be used.
    """
    check_plugin(config.run, config.plugin)
    classes = _read_classes(config.classes) if config.classes else None
    predictor = Predictor.load(config.run or config.classifier, config.policy or None, config.device, classes)
    if config.budget is not None or config.keep is not None:
        from agents.prediction.thresholds import solve_budget

        display.say(solve_budget(predictor, config, display))
    if config.exit is not None:
        from agents.prediction.thresholds import find_exit

        predictor.exit = find_exit(predictor, config, display)
    return predictor


Pictures = dict[str, list[tuple[str, Path]]]
"""Maps every video to the pictures of it, each as its kind and its path."""


def _predict(config: Predict, predictor: Predictor, sources: Sources, output: OutputFolder, pictures: Pictures, display: Display) -> int:
    """Predict the remaining videos and write the results."""
    left = [file for file in sources.files if file not in output.done or not all(path.exists() for _, path in pictures[file])]
    if not left:
        display.say(f"{output.path} has all {count_of(len(sources.files), 'video')} already (force=true starts over)")
        return 0
    began, done, short = time.monotonic(), len(sources.files) - len(left), 0
    failed: list[Unreadable] = []
    last: Prediction | None = None
    if done:
        display.say(f"{done:,} of {count_of(len(sources.files), 'video')} were predicted before")
    bar = display.bar("predict", len(sources.files), done, unit="video")
    results = predictor.predict_all(
        left, window=config.window, stride=config.stride, fps=config.fps, num_workers=config.workers, batch_size=config.batch_size,
        time_limit=config.time_limit,
    )  # fmt: skip
    for number, result in enumerate(results, 1):
        try:
            if isinstance(result, Prediction):
                _save_pictures(result, pictures[result.file])
                if result.file not in output.done:  # otherwise, the prediction exists and only a picture was missing
                    output.add(result)
                short += config.window is not None and result.duration < config.window
                last = result
        except PictureError as problem:
            result = Unreadable(problem.file, str(problem))
        if isinstance(result, Unreadable):
            failed.append(result)
        bar.at(done + number, f"{number / max(time.monotonic() - began, 1e-9):.1f} videos/s")
    _say_what_was_made(display, output, pictures, last, len(left) - len(failed), sources.single)
    if short:
        display.say(f"{count_of(short, 'video')} shorter than window={config.window:g} s: one window each")
    _say_what_failed(display, failed)
    return 1 if failed else 0


class PictureError(InputError):
    """Raised if the pictures of a video cannot be drawn. The arguments of the exception are the file of the video and the reason."""

    @property
    def file(self) -> str:
        """The video."""
        return str(self.args[0])

    def __str__(self) -> str:
        return str(self.args[1])


def _save_pictures(prediction: Prediction, pictures: Iterable[tuple[str, Path]]) -> None:
    for kind, path in pictures:
        try:
            (prediction.save_sheet if kind == "sheet" else prediction.save_video)(path)
        except InputError as problem:
            raise PictureError(prediction.file, problem) from problem


def _pictures(sources: Sources, out: Path, kinds: Sequence[str]) -> Pictures:
    """Return the kind and the path of each picture of every video.

    Raises:
        InputError: If a picture would replace a video of the source.
    """
    names = sources.names() if kinds else dict.fromkeys(sources.files, "")
    pictures = {file: [(kind, out / f"{name}{SUFFIXES[kind]}") for kind in kinds] for file, name in names.items()}
    originals = {Path(file).resolve() for file in sources.files}
    for path in (path for each in pictures.values() for _, path in each):
        refuse_if(path.resolve() in originals, f"out={out}: {path.name} would replace the video itself; choose another folder")
    return pictures


def _say_what_was_made(
    display: Display, output: OutputFolder, pictures: Pictures, last: Prediction | None, count: int, single: bool
) -> None:
    if last is None:
        return
    if single:
        table = Table("class", "probability", title=plain(f"{last.file}: {last.macs / 1e9:.3g} GFLOPs"), title_justify="left")
        for name, probability in list(zip(last.classes, last.probabilities, strict=True))[:TOP]:
            table.add_row(plain(name), f"{probability:.1%}")
        display.console.print(table)
    made = [PREDICTIONS, *(path.name if single else f"*{SUFFIXES[kind]}" for kind, path in pictures[last.file])]
    display.say(f"saved to {output.folder}: {', '.join(made)}" + ("" if single else f"; {count_of(count, 'new prediction')}"))


def _say_what_failed(display: Display, failed: Sequence[Unreadable]) -> None:
    if failed:
        listed = "\n".join([f"{count_of(len(failed), 'video')} failed:", *(f"  {named(each.file, each.reason)}" for each in failed)])
        display.say(listed.encode(errors="backslashreplace").decode())  # file names may be invalid UTF-8


def _origin(config: Predict, predictor: Predictor) -> dict[str, Any]:
    """Return the values on which the predictions depend.

    The order of frames is omitted if it is `time`, because outputs of earlier versions do not have this entry.
    """
    clip_format = asdict(predictor.classifier.clip_format)
    if clip_format["order"] == "time":
        del clip_format["order"]
    return {
        "classifier": predictor.classifier.fingerprint(), "policy": hash_of(predictor.policy.state_dict()),
        "clip_format": clip_format, "skipped": predictor.skipped,
        "keep_threshold": getattr(predictor.policy, "keep_threshold", None) if predictor.policy.skips else None,
        "exit": None if predictor.exit is None else [predictor.exit.confidence, *predictor.exit.values[:-1].tolist()],
        "window": config.window, "stride": config.stride, "classes": list(predictor.classes), "fps": config.fps,
    }  # fmt: skip


def _read_classes(path: str) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"classes={path} cannot be read ({problem}); give a text file with one name per line") from problem


def _name_of(source: str) -> str:
    """Return the default name of the results folder for a source."""
    if source == "-":
        return "list"
    return re.sub(r"[^\w.,=+-]+", "_", Path(source).expanduser().resolve().stem).strip("_") or "videos"
