import pytest

from adafocus_env.videos.list_files import ListFormat, describe, read_class_names, read_list, shared_videos
from classifiers.errors import InputError

COMMAS, SPACES = ListFormat(",", max_labels=3), ListFormat()


def read(folder, text, form=COMMAS, num_classes=200, name="list.txt"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_list(folder / name, form, num_classes)


def entries(listed):
    return [(entry.path, entry.num_frames, entry.labels) for entry in listed.entries]


def test_labels_are_repeated_once_for_each_segment_in_published_lists(tmp_path):
    listed = read(tmp_path, "sJFgo9H6zNo,4165,57\nLAkaYds-8X0,2844,124,124,124,124,124\n\n18QVPZgjy8w,3969,104,1,104\n")
    assert entries(listed) == [("sJFgo9H6zNo", 4165, (57,)), ("LAkaYds-8X0", 2844, (124,)), ("18QVPZgjy8w", 3969, (104, 1))]
    assert [entry.line for entry in listed.entries] == [1, 2, 4] and not listed.faults


def test_minus_one_fills_up_the_labels(tmp_path):
    assert entries(read(tmp_path, "a,30,5,-1,-1\nb, 30, 7, -1, 9")) == [("a", 30, (5,)), ("b", 30, (7, 9))]


def test_names_hold_spaces_where_spaces_separate(tmp_path):
    listed = read(tmp_path, "images/val/air drumming/7LSJ2_000010 60 0\r\n78687 42  173\n", SPACES)
    assert entries(listed) == [("images/val/air drumming/7LSJ2_000010", 60, (0,)), ("78687", 42, (173,))]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    assert entries(read(tmp_path, b"\xef\xbb\xbfa,30,5\n")) == [("a", 30, (5,))]


def test_short_and_repeated_lines_are_dropped_and_counted(tmp_path):
    listed = read(tmp_path, "a,2,5\nb,3,5\nc,0,5\nb,3,5\n")
    assert (entries(listed), listed.too_short, listed.repeated) == ([("b", 3, (5,))], 2, 1)


@pytest.mark.parametrize(
    ("line", "form", "reason"),
    [
        ("video", COMMAS, r"1 of the 3 fields 'path,frames,label' in 'video'$"),
        ("video,30", COMMAS, r"2 of the 3 fields 'path,frames,label'"),
        ("a video 30 5", COMMAS, r"1 of the 3 fields 'path,frames,label' in 'a video 30 5'$"),
        ("air drumming/video,60,0", SPACES, r"2 of the 3 fields 'path frames label' in 'air drumming/video,60,0'$"),
        ("a b c,60,0", SPACES, r"the number of frames must be an integer of at least 0, got 'b' in 'a b c,60,0'"),
        ("video,30.5,5", COMMAS, r"the number of frames must be an integer of at least 0, got '30.5' in 'video,30.5,5'"),
        ("video,-30,5", COMMAS, r"the number of frames must be an integer of at least 0, got '-30'"),
        ("video,30,archery", COMMAS, r"the label must be an integer, got 'archery'"),
        ("video,30,", COMMAS, r"the label must be an integer, got ''"),
        ("video,30,-1", COMMAS, r"the label -1 is negative; labels begin at 0"),
        ("video,30,5,-2", COMMAS, r"the label -2 is negative"),
        ("video 30 -1", SPACES, r"the label -1 is negative"),
        ("video,30,200", COMMAS, r"the label 200 is beyond the 200 classes of the class file"),
        ("video,30,1,2,3,4", COMMAS, r"4 different labels, where a video has at most 3"),
        (",30,5", COMMAS, r"the path must lie below the folder of videos or frames, got ''"),
        ("/videos/a,30,5", COMMAS, r"the path must lie below the folder of videos or frames, got '/videos/a'"),
        ("a/../../b 30 5", SPACES, r"the path must lie below the folder of videos or frames, got 'a/../../b'"),
    ],
)
def test_malformed_lines_are_reported_with_file_and_line(tmp_path, line, form, reason):
    good = form.separator.join(["good", "30", "5"])
    listed = read(tmp_path, f"{good}\n{line}\n", form)
    assert entries(listed) == [("good", 30, (5,))]
    with pytest.raises(InputError, match=rf"list.txt has 1 line that cannot be used:\n  line 2: .*{reason}"):
        raise InputError(describe(listed.faults))


def test_a_name_that_is_not_utf8_and_other_labels_for_one_video(tmp_path):
    listed = read(tmp_path, b"a,30,5\n\xe9t\xe9,30,5\na,30,6\n")
    assert [str(fault) for fault in listed.faults] == [
        "line 2: it is not valid UTF-8; save the list as UTF-8",
        "line 3: a has other labels than in line 1",
    ]
    assert [fault.mislabelled for fault in listed.faults] == [False, True]


def test_many_faults_are_listed_together_up_to_twenty(tmp_path):
    described = describe(read(tmp_path, "x\n" * 25).faults)
    assert "list.txt has 25 lines that cannot be used:" in described and described.endswith("and 5 more")
    assert described.count("\n") == 21 and "line 20:" in described and "line 21:" not in described


def test_videos_in_both_lists(tmp_path):
    train, test = read(tmp_path, "a,30,5\nb,30,5\n", name="train.txt"), read(tmp_path, "c,30,5\nb,30,5\n", name="val.txt")
    described = describe(shared_videos(train, test))
    assert described.endswith("val.txt has 1 line that cannot be used:\n  line 2: b is also in train.txt (line 2); remove one of them")


def test_a_list_that_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"the list .*no.txt cannot be read \(No such file or directory\)"):
        read_list(tmp_path / "no.txt", COMMAS, 5)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("archery\nhurling (sport)\n", ("archery", "hurling (sport)")),
        ("0,Archery\n1,Putting something, something and something\n", ("Archery", "Putting something, something and something")),
        ("1 Archery\n2 BMX\n", ("Archery", "BMX")),
        ("0\tArchery\n1\tBMX\n", ("Archery", "BMX")),
        ("0\n1\n2\n", ("0", "1", "2")),
        ("2 wheels\nbowling\n", ("2 wheels", "bowling")),
        ("\ufeffé\nb\n\n", ("é", "b")),
    ],
)
def test_class_names_with_and_without_numbers(tmp_path, text, names):
    (tmp_path / "classInd.txt").write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / "classInd.txt") == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\n\nb\n", "line 2 is empty; give one name per line"),
        (b"0,a\n1,b\n2,a\n", r"line 3 names 'a' again \(first in line 1\)"),
        (b"0,a\n2,b\n1,c\n", "line 2 must have the number 1, got 2; sort the list by its numbers, which begin at 0 or 1$"),
        (b"5 a\n6 b\n", "line 1 must have the number 1, got 5"),
        (b"a\n\xff\n\xfe\n", r"cannot be read \(line 2 is not valid UTF-8; line 3 is not valid UTF-8\); give a UTF-8 text file"),
    ],
)
def test_malformed_class_files(tmp_path, text, message):
    (tmp_path / "classInd.txt").write_bytes(text)
    with pytest.raises(InputError, match=rf"^classes=.*classInd.txt.*{message}"):
        read_class_names(tmp_path / "classInd.txt")
