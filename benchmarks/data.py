"""Compare the speed of decoding with that of the decoder alone, transforms with a copy of the pixels, and bank filling with the bare
networks."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adafocus_env.clips.store import ClipSpec, ClipStore
from adafocus_env.clips.transforms import Crop, apply_crop
from adafocus_env.features.live import Indices
from adafocus_env.features.memory_bank import MemoryBank
from benchmarks import workload
from benchmarks.command import Settings, main
from benchmarks.results import Act, Aim, Section, Time, Times, compare, interleaved, repeated, timed
from classifiers.crop import crop_patches

WORKERS = 2
STEPS, FRAMES = 2, 16  # lengths of the clips for filling focus vectors and glances

_DECODER = """
import sys
import decord
side, out, *videos = sys.argv[1:]
file = open(out, "ab") if out else None
for video in videos:
    path, _, numbers = video.rpartition(":")
    height, width = decord.VideoReader(path, num_threads=1)[0].shape[:2]
    scale = int(side) / min(height, width)
    reader = decord.VideoReader(path, width=round(width * scale), height=round(height * scale), num_threads=1)
    frames = reader.get_batch([int(number) for number in numbers.split(",")]).asnumpy()
    if file:
        file.write(frames.data)
"""


def measure(settings: Settings) -> Iterator[Section]:
    """Yield all sections."""
    yield _decoding(settings)
    yield _transforms(settings)
    yield _bank_filling(settings)


def _decoding(settings: Settings) -> Section:
    count, frames = (4, 4) if settings.quick else (64, 16)
    size = workload.architecture(settings).size
    videos, spec = workload.make_videos(settings, count), ClipSpec(frames, size, round(size * 256 / 224), train=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = ClipStore(videos, spec, folder=folder / "first", num_workers=WORKERS)
        requests = [f"{video.path}:{','.join(map(str, store.indices(number)))}" for number, video in enumerate(videos)]
        pixels = np.zeros((count, frames, 3, size, size), np.uint8)
        acts: dict[str, Act] = {
            "store": partial(ClipStore, videos, spec, folder=folder / "store", num_workers=WORKERS),
            "decord": partial(_decord, spec, requests),
            "decord and a file": partial(_decord, spec, requests, folder),
            "crop from the store": lambda: [store.frames(clip) for clip in range(count)],
            "copy": pixels.copy,
        }
        times: Times = {name: [] for name in acts}
        for _ in range(settings.rounds):
            for name, act in acts.items():
                wall = timed(act).wall
                times[name].append(Time(wall, wall))  # processor time does not include child processes
            shutil.rmtree(folder / "store")
            for file in folder.glob("*.raw"):
                file.unlink()
    note = "Processes start in both; the children's time is not in the processor time."
    section = Section(f"Decode {count} videos, {frames} frames of each, {WORKERS} workers", note, times)
    section.ratio("decord", "store", name="videos/s to the store over decord alone", aim=Aim("≥", 0.9))
    section.ratio("decord and a file", "store", name="videos/s to the store over decord that writes the bytes to a file")
    return section.ratio("crop from the store", "copy", name="reading all clips back, cropped, over a copy of as many bytes")


def _decord(spec: ClipSpec, requests: list[str], folder: Path | None = None) -> None:
    """Decode frames in `WORKERS` processes. If ``folder`` is set, each process writes its frames to a file in this folder."""
    files = ["" if folder is None else str(folder / f"{worker}.raw") for worker in range(WORKERS)]
    command = [sys.executable, "-c", _DECODER, str(spec.short_side)]
    running = [
        subprocess.Popen([*command, file, *requests[worker::WORKERS]])  # noqa: S603  # this Python, with the code above
        for worker, file in enumerate(files)
    ]
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise RuntimeError("a process that decodes with decord failed; its message is above")


def _transforms(settings: Settings) -> Section:
    """Measure the transforms of pixels between the store and the networks, for one clip or its patches."""
    network, length, repeats = workload.classifier(settings), 4 if settings.quick else 16, 1 if settings.quick else 10
    size, patch_size = network.architecture.size, network.architecture.patch_size
    stored = torch.randint(256, (length, 3, size + 32, size + 64), dtype=torch.uint8)
    frames = stored[..., :size, :size].contiguous()
    normalised, source = network.normalise(frames), torch.arange(length)
    corners = torch.from_numpy(np.random.default_rng(0).integers(size - patch_size + 1, size=(length, 2)))
    patches = crop_patches(frames, source, corners, patch_size)
    acts: dict[str, tuple[Act, torch.Tensor]] = {
        "crop": (partial(apply_crop, stored, Crop(7, 9, size, size), size), frames),
        "crop and flip": (partial(apply_crop, stored, Crop(7, 9, size, size, flip=True), size), frames),
        "crop and resize": (partial(apply_crop, stored, Crop(3, 5, round(0.875 * size), size), size), frames),
        "normalise": (partial(network.normalise, frames), normalised),
        "patches of bytes": (partial(crop_patches, frames, source, corners, patch_size), patches),
        "patches of floats": (partial(crop_patches, normalised, source, corners, patch_size), patches.float()),
    }
    pairs = {
        (name, f"{name}: copy"): (repeated(repeats, act), repeated(repeats, result.clone), None) for name, (act, result) in acts.items()
    }
    return compare("Transforms", f"{length} frames; each time is that of {repeats}.", pairs, settings.rounds)


def _bank_filling(settings: Settings) -> Section:
    """Measure how fast a bank is filled: with the glances of some clips, and with the focus vectors of all cells in every step of one
    clip."""
    networks = workload.plain_and_fastest(settings)
    short, long = workload.clips(settings, 8, STEPS), workload.clips(settings, 8, FRAMES)
    every, steps, action = np.arange(8)[:, None], np.arange(STEPS)[None], workload.grid_action(networks["float32"])
    acts: dict[str, Act] = {}
    for name, network in networks.items():
        focusing, glancing = (iter([MemoryBank(network, some, action) for _ in range(settings.rounds + 1)]) for some in (short, long))
        acts[f"focus vectors, {name}"] = partial(_fill_focus_vectors, focusing, every[:1], steps)
        acts[f"focuser, {name}"] = workload.bare_backbone(network, "focuser", STEPS * workload.GRID**2)
        acts[f"glances, {name}"] = partial(_fill_glances, glancing, every, steps[:, :1])
        acts[f"glancer, {name}"] = workload.bare_backbone(network, "glancer", FRAMES * len(every))
    note = f"All {workload.GRID**2} cells of {STEPS} frames, and the glances of 8 clips of {FRAMES}; every bank is new."
    section = Section("Bank filling", note, interleaved(acts, settings.rounds))
    for name in networks:
        filled = f"focus vectors, {name}"
        section.ratio(f"focuser, {name}", filled, name=f"{filled}: frames/s over the bare focuser's", aim=Aim("≥", 0.95))
        section.ratio(f"glancer, {name}", f"glances, {name}", name=f"glances, {name}: frames/s over the bare glancer's")
    return section


def _fill_focus_vectors(banks: Iterator[MemoryBank], clips: Indices, steps: Indices) -> None:
    next(banks).focus_vectors(clips, steps, np.zeros(steps.shape, np.int64))  # a bank fills all cells of a step together


def _fill_glances(banks: Iterator[MemoryBank], clips: Indices, steps: Indices) -> None:
    next(banks).glance_vectors(clips, steps)


if __name__ == "__main__":
    main("data")
