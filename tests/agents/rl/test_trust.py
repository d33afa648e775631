"""The key that signs a user's files: nobody else can read it, whenever."""

import os
import shutil
from pathlib import Path

import pytest

from agents.rl import trust
from agents.rl.training_state import check_signed
from agents.rl.trust import KEY, PRIVATE, sign, signed_here
from classifiers.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder, and a umask under which files are open to everybody."""
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path / "cache"))
    before = os.umask(0)
    yield tmp_path / "cache"
    os.umask(before)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.zip"
    path.write_bytes(b"weights")
    return path


def mode(path):
    return path.stat().st_mode & 0o777


def test_a_new_key_is_private_from_its_first_byte_on(folder, file, monkeypatch):
    modes, write, replace = [], Path.write_bytes, Path.replace

    def watched(act):
        def acting(path, *arguments):
            result = act(path, *arguments)
            modes.extend(mode(entry) for entry in folder.iterdir() if KEY in entry.name)
            return result

        return acting

    monkeypatch.setattr(Path, "write_bytes", watched(write))
    monkeypatch.setattr(Path, "replace", watched(replace))
    signature = sign(file)
    assert modes == [PRIVATE, PRIVATE] and mode(folder / KEY) == PRIVATE
    assert signed_here(file, signature) and not signed_here(file, signature[::-1])


def test_a_key_that_others_could_read_is_made_private_and_stays_the_key(folder, file):
    signature = sign(file)
    (folder / KEY).chmod(0o644)
    assert signed_here(file, signature) and mode(folder / KEY) == PRIVATE


def test_the_key_of_another_user_names_the_variable(folder, file, monkeypatch):
    sign(file)
    (folder / KEY).chmod(0o644)

    def refused(path, mode):
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refused)
    with pytest.raises(InputError, match=f"cannot write to the cache folder {folder}: Operation not permitted; .*ADAFOCUS_CACHE"):
        sign(file)


def test_without_the_key_a_file_that_was_signed_with_it_is_refused(folder, file):
    signature = sign(file)
    check_signed(file, signature, trust=False)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"the cache folder was removed, which holds the key that it is signed with.*: trust=true loads"):
        check_signed(file, signature, trust=False)


def test_a_key_that_is_removed_at_this_moment_is_named(folder, file, monkeypatch):
    sign(file)
    monkeypatch.setattr(trust.stat, "S_IMODE", lambda mode: (folder / KEY).unlink() or PRIVATE)
    with pytest.raises(InputError, match=f"{KEY} was removed while this command was using it; start the same command again"):
        sign(file)
