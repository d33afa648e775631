"""The predictor. A predictor applies a classifier and its policy to any video file or folder of frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.build import choose_device
from adafocus_env.videos.decoding import Failure
from adafocus_env.videos.windows import WindowRequest
from agents.evaluation.conditional_exit import ExitThresholds
from agents.evaluation.inference import Inference, count_decisions, infer_batches
from agents.policies.networks import PolicyNetwork
from agents.prediction.checkpoints import load_checkpoints
from agents.prediction.clips import TIME_LIMIT, Clip, ClipOrigin, read_windows, request_for
from agents.prediction.result import Box, FramePrediction, Prediction, WindowPrediction, named
from agents.runs.threads import limit_threads
from classifiers.classifier import Classifier
from classifiers.errors import InputError, refuse_if
from classifiers.flops import VideoFlops, video_flops
from classifiers.optimize import optimized


@dataclass(frozen=True)
class Unreadable:
    """A video that has no prediction because it could not be read, and the reason."""

    file: str
    reason: str


Predictions = Generator[Prediction | Unreadable, None, None]
"""Yields the predictions for videos, in the order of completion."""


class Predictor:
    """Apply a classifier and its policy to any video::

        predictor = Predictor.load("runs/train_ppo-demo-0")
        result = predictor("video.mp4")
        print(result.classes[0], result.probabilities[0])
        result.save_video("annotated.mp4")

    Args:
        classifier: The frozen classifier.
        policy: A policy trained on the glance maps of this classifier. A model of an algorithm other than PPO must be wrapped in
            `agents.policies.model_on_glances.ModelOnGlances`.
        skipped: Input of the head for skipped frames, a name in `adafocus_env.classify.SKIPPED`.
        keep_threshold: Skip the frames whose P(skip) is at least this threshold; None: use the policy's threshold.
        classes: Names of the classes, in the order of the scores; None: use the classifier's names.
        exit: Thresholds of a conditional exit. The frames of a window after its exit are not processed. None: no exit.

    Raises:
        InputError: If the number of names differs from the number of classes.
    """

    def __init__(
        self,
        classifier: Classifier,
        policy: PolicyNetwork,
        *,
        skipped: str = "zeros",
        keep_threshold: float | None = None,
        classes: Sequence[str] | None = None,
        exit: ExitThresholds | None = None,
    ) -> None:
        self.classifier, self.policy, self.skipped, self.keep_threshold = optimized(classifier), policy, skipped, keep_threshold
        self.exit = exit
        self.classes = tuple(classifier.classes if classes is None else classes)
        refuse_if(
            len(self.classes) != len(classifier.classes),
            f"classes must have one name for each of the {len(classifier.classes)} classes of the classifier, got {len(self.classes)}; "
            "give them in the order that it was trained with",
        )
        limit_threads(classifier, classifier.classes, classifier.device)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        policy: Path | str | None = None,
        device: str = "auto",
        classes: Sequence[str] | None = None,
        exit: ExitThresholds | None = None,
    ) -> Predictor:
        """Load a predictor from a finished run, or from a classifier and a policy.

        Args:
            folder: The run folder, or the folder or bundled name of a classifier.
            policy: The folder of a policy; None: the policy of the run, or the policy in the classifier's folder.
            device: "auto", "cpu", "cuda" or "cuda:N".
            classes: Names of the classes; None: use the classifier's names.
            exit: Thresholds of a conditional exit; None: all frames are processed.

        Raises:
            InputError: If the run is not finished, or if a checkpoint is missing or cannot be read.
        """
        classifier, network, skipped = load_checkpoints(Path(folder), None if policy is None else Path(policy), choose_device(device))
        return cls(classifier, network, skipped=skipped, classes=classes, exit=exit)

    def __call__(self, video: Path | str, *, window: float | None = None, stride: float | None = None) -> Prediction:
        """Return the prediction for one video.

        Args:
            video: The file or folder of frames.
            window: Length of the windows in seconds; None: the whole video is one window. Each window of a long video is classified.
            stride: Seconds from the start of one window to the start of the next; None: the length of a window.

        Raises:
            InputError: If the video cannot be read, if a number is out of range, or for one of the reasons listed in `infer`.
        """
        [found] = self.predict_all([video], window=window, stride=stride, num_workers=1)
        if isinstance(found, Unreadable):
            raise InputError(named(found.file, found.reason))
        return found

    def predict_all(
        self,
        videos: Sequence[Path | str],
        *,
        window: float | None = None,
        stride: float | None = None,
        fps: float = WindowRequest.fps,
        num_workers: int = 2,
        batch_size: int = 8,
        time_limit: float = TIME_LIMIT,
    ) -> Predictions:
        """Yield the predictions for many videos, in the order of completion. Worker processes decode the next videos in the meantime.

        Args:
            videos: Files or folders of frames.
            window: See `__call__`.
            stride: See `__call__`.
            fps: Frame rate of folders of frames, in frames per second.
            num_workers: Number of decoding processes.
            batch_size: Number of windows per batch of the networks.
            time_limit: Seconds after which a decoding process is stopped and its video counts as unreadable.

        Raises:
            InputError: If a number is out of range, or for one of the reasons listed in `infer`.
        """
        refuse_if(batch_size < 1, f"batch_size must be at least 1, got {batch_size}")
        base = self.request(window=window, stride=stride, fps=fps)
        batches = _Batches([replace(base, path=Path(video)) for video in videos], self.classifier.architecture.size, batch_size)
        yield from self.collect(videos, self._classified(batches, self._infer(batches.read(num_workers, time_limit))))

    def request(self, *, window: float | None, stride: float | None, fps: float) -> WindowRequest:
        """Return the request that decodes a video for `collect`, without the path of the video. The arguments are those of `predict_all`.

        Raises:
            InputError: If a number is out of range.
        """
        for name, value in {"window": window, "stride": stride, "fps": fps}.items():
            refuse_if(value is not None and not value > 0, f"{name} must be above 0, got {value}")
        refuse_if(stride is not None and window is None, f"stride must be left out without window, got {stride}; set window, too")
        return replace(request_for(self.classifier, ""), window=window, stride=stride, fps=fps)

    def classify(self, clips: Sequence[Clip]) -> list[ClassifiedWindow]:
        """Return the results for some windows, which the networks process as one batch.

        Raises:
            InputError: For one of the reasons listed in `infer`.
        """
        [result] = self._infer([_stacked(clips)])
        return [self._window(result, row, clip.origin) for row, clip in enumerate(clips)]

    def collect(
        self, videos: Sequence[Path | str], results: Iterable[tuple[int, int, ClassifiedWindow | Failure]]
    ) -> Predictions:
        """Yield the prediction for each video as soon as the results for all of its windows are there.

        Args:
            videos: Files or folders of frames.
            results: The index of the video, the number of its windows, and the result for one window, for all windows in any order. If a
                video cannot be read, its last result is a `Failure`.
        """
        unfinished: dict[int, dict[tuple[float, float], ClassifiedWindow]] = {}
        for number, total, result in results:
            if isinstance(result, Failure):
                unfinished.pop(number, None)
                yield Unreadable(str(videos[number]), result.reason)
                continue
            windows = unfinished.setdefault(number, {})
            windows[result.origin.span] = result
            if len(windows) == total:
                yield self._prediction(str(videos[number]), [*unfinished.pop(number).values()])

    def _infer(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Inference]:
        return infer_batches(
            self.classifier, self.policy, batches, skipped=self.skipped, keep_threshold=self.keep_threshold, exit=self.exit
        )

    def _classified(self, batches: _Batches, results: Iterator[Inference]) -> Iterator[tuple[int, int, ClassifiedWindow | Failure]]:
        for result in results:
            for row, (number, origin, total) in enumerate(batches.waiting.popleft()):
                yield number, total, self._window(result, row, origin)
            while batches.failed:
                yield batches.failed.popleft()
        yield from batches.failed

    def _window(self, result: Inference, row: int, origin: ClipOrigin) -> ClassifiedWindow:
        boxes, mask = origin.boxes_in_video(result.boxes[row].cpu()), result.patch_mask[row].cpu().numpy()
        scores, processed = result.logits[row].float().softmax(-1).cpu().numpy(), result.processed[row].cpu().numpy()
        return ClassifiedWindow(origin, boxes, mask, scores, self._macs(mask, processed), processed)

    def _macs(self, mask: NDArray[np.bool_], processed: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the multiply-adds of each frame (T,). The cost of a decision is divided equally among its frames."""
        flops = self.flops()
        repeats = len(mask) // flops.num_steps
        steps = np.arange(flops.num_steps + 1)
        patches = np.concatenate([[0], mask[::repeats].cumsum()])
        cost = np.diff(flops.total(patches, steps)) * processed[::repeats]
        return np.diff(np.floor(np.concatenate([[0], np.repeat(cost / repeats, repeats).cumsum()]) + 1e-6)).astype(np.int64)

    def flops(self) -> VideoFlops:
        """Return the multiply-adds for one window."""
        num_frames = self.classifier.clip_format.num_frames
        num_glances = self.classifier.clip_format.glance_frames or num_frames
        steps = count_decisions(self.classifier, self.policy, num_frames, num_glances)
        return video_flops(self.classifier, num_frames, num_glances, steps, skipped=self.skipped, policy_step=self.policy.step_macs)

    def _prediction(self, file: str, windows: list[ClassifiedWindow]) -> Prediction:
        windows = sorted(windows, key=lambda window: window.origin.span)
        first, size = windows[0].origin, self.classifier.architecture.size
        classes, probabilities = self._ranked(np.mean([window.scores[-1] for window in windows], axis=0))
        return Prediction(
            file, first.duration, first.size, Box(*first.boxes_in_video(np.array([0, 0, size, size])).tolist()),
            self.classifier.architecture.patch_size, classes, probabilities,
            tuple(WindowPrediction(*each.origin.span, *self._ranked(each.scores[-1]), int(each.processed.sum())) for each in windows),
            tuple(frame for number, window in enumerate(windows) for frame in self._frames(number, window)),
            len(windows) * int(self.flops().total()),
        )  # fmt: skip

    def _frames(self, number: int, window: ClassifiedWindow) -> Iterator[FramePrediction]:
        best = window.scores.argmax(-1)
        for step in range(len(window.scores)):
            box = Box(*window.boxes[step].tolist()) if window.mask[step] else None
            yield FramePrediction(
                int(window.origin.indices[step]), float(window.origin.times[step]), number, box, self.classes[best[step]],
                float(window.scores[step, best[step]]), int(window.macs[step]), bool(window.processed[step]),
            )  # fmt: skip

    def _ranked(self, scores: NDArray[np.float32]) -> tuple[tuple[str, ...], tuple[float, ...]]:
        order = np.argsort(-scores, kind="stable")
        return tuple(self.classes[index] for index in order), tuple(scores[order].tolist())


@dataclass(frozen=True)
class ClassifiedWindow:
    """The results for one window of T frames.

    The results are the boxes (T, 4), the mask of frames with a patch (T,), the softmax scores (T, K), the multiply-adds (T,), and the mask
    of processed frames (T,).
    """

    origin: ClipOrigin
    boxes: NDArray[np.float64]
    mask: NDArray[np.bool_]
    scores: NDArray[np.float32]
    macs: NDArray[np.int64]
    processed: NDArray[np.bool_]


class _Batches:
    """Batches of windows for the networks, which a thread reads in advance.

    Attributes:
        waiting: One list for each batch that was read. The list has one entry for each window in the batch. An entry consists of the index
            of the video, the origin of the clip, and the number of windows of the video.
        failed: For every video that cannot be read, its index, 0, and the `Failure`.
    """

    def __init__(self, requests: Sequence[WindowRequest], size: int, batch_size: int) -> None:
        self._requests, self._size, self._batch_size = requests, size, batch_size
        self.waiting: deque[list[tuple[int, ClipOrigin, int]]] = deque()
        self.failed: deque[tuple[int, int, Failure]] = deque()

    def read(self, num_workers: int, time_limit: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of the focuser's and the glancer's frames, in the format that `infer_batches` expects."""
        batch: list[tuple[int, Clip, int]] = []
        for number, total, found in read_windows(self._requests, self._size, num_workers=num_workers, time_limit=time_limit):
            if isinstance(found, Failure):
                self.failed.append((number, total, found))
                continue
            batch.append((number, found, total))
            if len(batch) == self._batch_size:
                yield self._next(batch)
                batch = []
        if batch:
            yield self._next(batch)

    def _next(self, batch: list[tuple[int, Clip, int]]) -> tuple[Tensor, Tensor]:
        self.waiting.append([(number, clip.origin, total) for number, clip, total in batch])
        return _stacked([clip for _, clip, _ in batch])


def _stacked(clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
    """Stack the focuser's and the glancer's frames of clips, in the format that `infer_batches` expects."""
    frames = torch.stack([clip.frames for clip in clips])
    separate = clips[0].glance_frames is not clips[0].frames
    return frames, torch.stack([clip.glance_frames for clip in clips]) if separate else frames
