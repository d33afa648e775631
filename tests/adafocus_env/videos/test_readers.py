import pickle
import struct
import zlib

import av
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from videos import cut_in_half, square_frames, turn, write_video

from adafocus_env.videos import frame_size, readers
from adafocus_env.videos.containers import stated_size
from adafocus_env.videos.readers import DecodeError, DecodeRequest, FolderReader, PyAVReader, decode_clip, open_reader
from classifiers.errors import InputError

FILE_READERS = [readers.DecordReader, PyAVReader] if readers.file_reader() == "decord" else [PyAVReader]


@pytest.fixture(params=FILE_READERS, ids=lambda reader: reader.__name__)
def reader_class(request):
    return request.param


@pytest.fixture
def only_reader(request, monkeypatch, reader_class):
    """Make `open_reader` use the given class for files."""
    monkeypatch.setattr(readers, "file_reader", lambda: "decord" if reader_class is not PyAVReader else "av")
    return reader_class


def write_images(folder, frames, suffix=".png"):
    folder.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"image_{t + 1:05d}{suffix}")
    return folder


def test_file_readers_give_the_frames_asked_for(tmp_path, reader_class):
    frames = square_frames(20)
    reader = reader_class(write_video(tmp_path / "a.mp4", frames, fps=10))
    assert (len(reader), reader.fps, reader.size) == (20, 10.0, (48, 64))
    read = reader.get_frames([7, 0, 19, 7])
    assert read.shape == (4, 48, 64, 3) and read.dtype == np.uint8
    assert np.abs(read.astype(int) - frames[[7, 0, 19, 7]]).mean() < 6
    assert (read[0] == read[3]).all()


X264 = {"codec": "libx264", "crf": "10", "g": "12"}  # with B frames, as for the others where bf is set
MPEG2 = {"codec": "mpeg2video", "b": "4000000", "bf": "2"}


@pytest.mark.parametrize(
    ("suffix", "settings"),
    [
        (".ts", X264), (".mts", X264), (".m2ts", X264 | {"x264-params": "tff=1"}), (".M2TS", MPEG2), (".vob", MPEG2), (".mpg", MPEG2),
        (".mpeg", MPEG2), (".avi", X264), (".avi", MPEG2 | {"codec": "mpeg4"}), (".flv", X264), (".wmv", {"codec": "wmv2", "b": "4000000"}),
        (".ogv", {"codec": "libvpx", "b": "4000000"}), (".gif", {"codec": "gif", "pix_fmt": "gray"}), (".mp4", X264), (".mkv", X264),
        (".webm", {"codec": "libvpx-vp9", "b": "4000000"}),
    ],
)  # fmt: skip
def test_every_container_gives_the_frames_asked_for(tmp_path, suffix, settings):
    frames = square_frames(40, colour=(220, 220, 220))
    path = write_video(tmp_path / f"a{suffix}", frames, **settings)
    reader = open_reader(path)
    assert (len(reader), reader.fps, reader.size) == (40, 25.0, (48, 64))
    for indices in ([2, 7, 12, 17, 22, 27, 32, 37], [39, 0, 19, 19, 5, 38], [25]):
        assert np.abs(reader.get_frames(indices).astype(int) - frames[indices]).mean((1, 2, 3)).max() < 4, "neighbours differ by 8"
    assert decode_clip(DecodeRequest(path, 4, short_side=24)).frames.shape == (4, 24, 32, 3)


@pytest.mark.parametrize("suffix", [".vob", ".gif"])
def test_a_file_that_pyav_alone_reads_names_it_where_it_fails(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("this is text\n" * 200)
    with pytest.raises(DecodeError, match=rf"a{suffix}: it is truncated or not a video \(PyAV cannot open it\)"):
        open_reader(path)


def test_colours_are_red_green_blue(tmp_path, reader_class):
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    frames[..., 0] = 200
    red, green, blue = reader_class(write_video(tmp_path / "a.mp4", frames)).get_frames([1])[0, 16, 16].astype(int)
    assert red > 150 and green < 60 and blue < 60


def test_shorter_side_is_resized_and_proportions_kept(tmp_path, reader_class):
    wide = reader_class(write_video(tmp_path / "wide.mp4", square_frames(4, 48, 64)))
    assert wide.get_frames([0, 1], short_side=24).shape == (2, 24, 32, 3)
    assert wide.get_frames([0], short_side=33).shape == (1, 33, 44, 3)
    assert wide.get_frames([0]).shape == (1, 48, 64, 3)
    tall = reader_class(write_video(tmp_path / "tall.mp4", square_frames(4, 100, 48)))
    assert tall.get_frames([0], short_side=30).shape == (1, 62, 30, 3)
    assert tall.size == (100, 48)


def test_resized_frames_show_the_same_picture(tmp_path, reader_class):
    reader = reader_class(write_video(tmp_path / "a.mp4", square_frames(8)))
    small = reader.get_frames([5], short_side=24)[0].astype(int)
    blocks = reader.get_frames([5])[0].reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(small - blocks).mean() < 6


@pytest.mark.parametrize(("matrix", "quarter_turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_videos_from_phones_are_turned_as_they_are_shown(tmp_path, matrix, quarter_turns):
    frames = square_frames(12)
    path = turn(write_video(tmp_path / "a.mp4", frames), matrix)
    reader = open_reader(path)
    expected = np.rot90(frames, quarter_turns, axes=(1, 2))
    assert reader.size == expected.shape[1:3]
    read = reader.get_frames([0, 3, 3])
    assert np.abs(read.astype(int) - expected[[0, 3, 3]]).mean() < 6
    assert min(reader.get_frames([1], short_side=24).shape[1:3]) == 24


def test_folder_reader_reads_images_in_the_order_of_their_names(tmp_path):
    frames = square_frames(5)
    folder = write_images(tmp_path / "video", frames[::-1])
    for t, file in enumerate(sorted(folder.iterdir(), reverse=True)):
        file.rename(folder / f"f{t}.PNG")
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".f9.png").write_text("hidden")
    reader = open_reader(folder)
    assert isinstance(reader, FolderReader)
    assert (len(reader), reader.fps, reader.size) == (5, None, (48, 64))
    assert (reader.get_frames([4, 0, 4]) == frames[[4, 0, 4]]).all()
    assert reader.get_frames([0], short_side=24).shape == (1, 24, 32, 3)


def test_grey_and_transparent_images_become_rgb(tmp_path):
    (tmp_path / "v").mkdir()
    Image.new("L", (8, 8), 77).save(tmp_path / "v" / "a.png")
    Image.new("RGBA", (8, 8), (77, 77, 77, 255)).save(tmp_path / "v" / "b.png")
    assert (open_reader(tmp_path / "v").get_frames([0, 1]) == 77).all()


def broken_file(path, kind):
    if kind == "missing":
        return path
    if kind == "zero bytes":
        path.touch()
    elif kind == "text":
        path.write_text("this is text\n" * 200)
    elif kind == "truncated":
        cut_in_half(write_video(path, square_frames(60)))
    elif kind == "truncated, index first":
        cut_in_half(write_video(path, square_frames(60), faststart=True))
    elif kind == "audio only":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            sound.rate = 8000
            container.mux(stream.encode(sound))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "there is no such file"),
        ("zero bytes", r"the file is empty \(zero bytes\)"),
        ("text", "truncated or not a video"),
        ("truncated", r"it is truncated: it has \d+ of \d+ bytes"),
        ("truncated, index first", r"it is truncated: it has \d+ of \d+ bytes"),
        ("audio only", "it has no video stream"),
    ],
)
def test_broken_files_are_named_with_the_reason(tmp_path, kind, reason, only_reader):
    path = broken_file(tmp_path / "broken.mp4", kind)
    with pytest.raises(DecodeError, match=f"cannot read the video .*broken.mp4: .*{reason}"):
        decode_clip(DecodeRequest(path, 8))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
def test_files_cut_anywhere_are_told_from_whole_ones(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", square_frames(10))
    data = path.read_bytes()
    assert stated_size(path) == len(data)
    for length in (len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DecodeError, match=rf"it is truncated: it has {length} of \d+ bytes"):
            open_reader(path)


@example(b"\x01" + b"\xff" * 6 + b"\xfe", b"\x1a\x45\xdf\xa3")
@given(st.binary(max_size=64), st.sampled_from([b"", b"RIFF", b"\x1a\x45\xdf\xa3", b"\0\0\0\x10mdat", b"\0\0\0\1mdat"]))
def test_any_bytes_state_a_size_or_none(tmp_path_factory, data, start):
    path = tmp_path_factory.mktemp("bytes") / "a.bin"
    path.write_bytes(start + data)
    assert stated_size(path) is None or stated_size(path) > 0


def test_broken_folders_are_named_with_the_reason(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DecodeError, match=r"empty: the folder holds no image"):
        open_reader(tmp_path / "empty")
    folder = write_images(tmp_path / "sizes", square_frames(3))
    Image.new("RGB", (10, 10)).save(folder / "image_00003.png")
    with pytest.raises(DecodeError, match=r"images differ in size: image_00001.png and image_00003.png"):
        open_reader(folder).get_frames([0, 1, 2])
    (folder / "image_00002.png").write_bytes(b"not a png")
    with pytest.raises(DecodeError, match=r"its image image_00002.png cannot be read"):
        open_reader(folder).get_frames([0, 1])
    cut_in_half(folder / "image_00001.png")
    with pytest.raises(DecodeError, match=r"its image image_00001.png cannot be read"):
        open_reader(folder)


def with_stated_size(png, height, width):
    """Change the size in the header of a PNG file."""
    data = bytearray(png.read_bytes())
    data[16:24] = struct.pack(">2I", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    png.write_bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("height", "width"), [(30_000, 30_000), (10_000, 13_500)])  # PIL refuses only the first
def test_an_image_that_states_a_huge_size_is_refused_before_it_is_read(tmp_path, height, width):
    folder = write_images(tmp_path / "video", square_frames(1))
    with_stated_size(folder / "image_00001.png", height, width)
    with pytest.raises(DecodeError, match=r"must have at most 134,217,728 pixels, got 10,000 × 13,500|decompression bomb"):
        open_reader(folder)


def test_a_video_of_huge_frames_is_refused(tmp_path, monkeypatch, only_reader):
    monkeypatch.setattr(frame_size, "MAX_PIXELS", 48 * 64 - 1)
    for suffix in (".mp4", ".avi"):
        path = write_video(tmp_path / f"a{suffix}", square_frames(4))
        with pytest.raises(DecodeError, match=r"its frames must have at most 3,071 pixels, got 48 × 64; convert it to a smaller size"):
            open_reader(path)


def test_a_thin_video_cannot_become_huge_by_resizing(tmp_path, only_reader):
    folder = write_images(tmp_path / "video", np.zeros((1, 1, 4000, 3), np.uint8))
    with pytest.raises(DecodeError, match=r"at most 134,217,728 pixels, got 256 × 1,024,000"):
        open_reader(folder).get_frames([0], short_side=256)


def test_too_many_bytes_of_frames_are_refused(tmp_path, monkeypatch, only_reader):
    monkeypatch.setattr(frame_size, "MAX_BYTES", 3 * 48 * 64 * 3)
    for path in (write_video(tmp_path / "a.mp4", square_frames(8)), write_images(tmp_path / "video", square_frames(8))):
        reader = open_reader(path)
        assert reader.get_frames([0, 1, 2]).shape == (3, 48, 64, 3)
        with pytest.raises(DecodeError, match=r"4 frames of 48 × 64 pixels take more than \d GiB; read fewer"):
            reader.get_frames([0, 1, 2, 3])


def test_decode_errors_are_input_errors_and_can_be_pickled(tmp_path):
    error = pickle.loads(pickle.dumps(DecodeError(tmp_path / "a.mp4", "because")))
    assert isinstance(error, InputError)
    assert str(error) == f"cannot read the video {tmp_path / 'a.mp4'}: because"


def test_a_clip_is_decoded_from_a_request(tmp_path, only_reader):
    path = write_video(tmp_path / "a.mp4", square_frames(20))
    middle = decode_clip(DecodeRequest(path, 4, short_side=24))
    assert middle.indices.tolist() == [2, 7, 12, 17]
    assert middle.frames.shape == (4, 24, 32, 3)
    assert (middle.num_frames, middle.fps, middle.size) == (20, 25.0, (48, 64))
    first, again, other = (decode_clip(DecodeRequest(path, 4, seed=seed)) for seed in [(0, 1), (0, 1), (0, 2)])
    assert (first.frames == again.frames).all()
    assert first.indices.tolist() != other.indices.tolist()


def test_the_frames_of_the_glancer_follow_and_are_drawn_by_themselves(tmp_path, only_reader):
    frames = square_frames(60)
    path = write_video(tmp_path / "a.mp4", frames)
    middle = decode_clip(DecodeRequest(path, 12, glance_frames=8))
    assert middle.indices.tolist() == [2, 7, 12, 17, 22, 27, 32, 37, 42, 47, 52, 57, 3, 11, 18, 26, 33, 41, 48, 56]
    assert np.abs(middle.frames.astype(int) - frames[middle.indices]).mean() < 6
    same, alone, other = (
        decode_clip(DecodeRequest(path, 6, seed=seed, glance_frames=count)).indices.tolist()
        for seed, count in [((0, 1), 6), ((0, 1), 0), ((0, 2), 6)]
    )
    assert same[:6] == alone, "the focuser's frames do not depend on the glancer's"
    assert same[6:] not in (same[:6], other[6:])
    assert all(10 * x <= frame < 10 * (x + 1) for x, frame in enumerate(same[6:]))


def test_frames_come_in_the_order_asked_for(tmp_path):
    path = write_video(tmp_path / "a.mp4", square_frames(60))
    middle, other = (decode_clip(DecodeRequest(path, 4, glance_frames=3, order=order)) for order in ("time", "coarse_to_fine"))
    assert middle.indices.tolist() == [7, 22, 37, 52, 10, 30, 50]
    assert other.indices.tolist() == [22, 7, 52, 37, 30, 10, 50]
    assert (other.frames == middle.frames[[1, 0, 3, 2, 5, 4, 6]]).all()


def test_frames_can_be_drawn_as_the_released_code_does(tmp_path):
    path = write_video(tmp_path / "a.mp4", square_frames(31))
    clip = decode_clip(DecodeRequest(path, 16, seed=(0,), glance_frames=8, sampling="released"))
    assert clip.indices[:16].tolist() == list(range(16))
    assert all(3 * x <= frame < 3 * (x + 1) for x, frame in enumerate(clip.indices[16:].tolist()))


@pytest.mark.skipif(readers.file_reader() != "decord", reason="decord is not installed here")
@pytest.mark.parametrize(("own", "short_side"), [((48, 64), 36), ((48, 64), 54), ((48, 64), 18), ((100, 48), None), ((54, 72), None)])
def test_widths_that_decord_cannot_decode_are_read_all_the_same(tmp_path, own, short_side):
    frames = square_frames(12, *own)
    path = write_video(tmp_path / "a.mp4", frames)
    height, width = readers.resized(*own, short_side)
    import decord

    with pytest.raises(decord.DECORDError, match="The size must exactly match"):
        decord.VideoReader(str(path), width=width, height=height).get_batch([0]).asnumpy()
    clip = decode_clip(DecodeRequest(path, 4, short_side))
    assert clip.frames.shape == (4, height, width, 3)
    expected = np.stack([Image.fromarray(frames[i]).resize((width, height), Image.Resampling.BILINEAR) for i in clip.indices])
    assert np.abs(clip.frames.astype(int) - expected).mean() < 6


def test_fewer_frames_than_segments_are_padded_by_the_last_one(tmp_path, only_reader):
    clip = decode_clip(DecodeRequest(write_video(tmp_path / "a.mp4", square_frames(3)), 6))
    assert clip.indices.tolist() == [0, 1, 2, 2, 2, 2]
    assert (clip.frames[3:] == clip.frames[2]).all()
