from pathlib import Path

from adafocus_env.clips.store import Unreadable


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def test_one_warning_names_the_first_videos_and_the_number_of_the_others(caplog):
    with Unreadable() as unreadable:
        unreadable.add([(f"a/{i}.mp4", "it is cut") for i in range(8)], Path("/cache/train"))
        unreadable.add([])
        unreadable.add([(f"b/{i}.mp4", "it is empty") for i in range(4)], Path("/cache/test"))
        assert not caplog.records
    (message,) = messages(caplog)
    assert message.startswith("12 videos cannot be read and are left out:\n  a/0.mp4: it is cut\n")
    assert "\n  b/1.mp4: it is empty\n" in message and "b/2.mp4" not in message
    assert "\n  and 2 more; python -m agents.check_dataset names all of them\n" in message
    assert message.endswith("\nto try them again, change them or remove /cache/train, /cache/test")


def test_each_video_is_named_once(caplog):
    unreadable = Unreadable()
    unreadable.add([("a.mp4", "it is cut")])
    unreadable.warn()
    unreadable.warn()
    assert messages(caplog) == ["1 video cannot be read and is left out:\n  a.mp4: it is cut"]


def test_of_several_processes_the_main_one_warns(caplog, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with Unreadable() as unreadable:
        unreadable.add([("a.mp4", "it is cut")])
    assert not caplog.records
