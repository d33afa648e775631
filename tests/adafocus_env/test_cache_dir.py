import logging
import os
import stat
from pathlib import Path

import pytest

from adafocus_env import cache_dir
from adafocus_env.cache_dir import cache_folder


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def open_umask():
    cache_dir._warn_of.cache_clear()
    before = os.umask(0o002)
    yield
    os.umask(before)


def test_folders_that_are_created_are_private(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path / "a" / "cache"))
    assert mode(cache_folder()) == mode(cache_folder("clips")) == 0o700
    assert not caplog.text


def test_the_default_folder_of_an_earlier_version_becomes_private(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("ADAFOCUS_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    (tmp_path / "adafocus-env").mkdir(0o777)
    (tmp_path / "adafocus-env" / "clips").mkdir()
    assert cache_folder("clips") == tmp_path / "adafocus-env" / "clips"
    assert mode(cache_folder()) == 0o700 and not caplog.text


def test_a_folder_that_a_group_shares_on_purpose_stays_as_it_is(tmp_path, monkeypatch, caplog):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o770)
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "adafocus_env"):
            assert (mode(cache_folder()), mode(cache_folder("clips"))) == (0o770, 0o775)
    (record,) = caplog.records
    assert f"the cache folder {tmp_path / 'cache'} can be written by other users (mode 770). They can change" in record.getMessage()
    assert "chmod 700" in record.getMessage()


def test_a_folder_that_others_can_only_read_gets_private_subfolders_without_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o755)
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path / "cache"))
    assert (mode(cache_folder("clips")), mode(cache_folder()), caplog.text) == (0o700, 0o755, "")


def test_a_folder_of_another_user_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "cache"
    folder.mkdir(0o700)
    monkeypatch.setenv("ADAFOCUS_CACHE", str(folder))
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    own = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **options: owned_by(own(path, **options), owner or 7))
    with caplog.at_level(logging.WARNING, "adafocus_env"):
        cache_folder()
    assert f"belongs to another user (id {owner or 7})" in caplog.text


def owned_by(about, owner):
    return os.stat_result([*about[:4], owner, *about[5:]])
