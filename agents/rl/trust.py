"""Marks files that were written on this machine: Stable-Baselines3's zip is unpickled, so one from elsewhere is refused."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import stat
from pathlib import Path

from adafocus_env.cache_dir import cache_folder, exclusive, writing_to
from classifiers.atomic_files import replacing

KEY = "machine.key"
PRIVATE = 0o600  # readable and writable by the user alone


def sign(path: Path) -> str:
    """A signature of the file's content that only this user's cache folder can make."""
    return hmac.new(_key(), path.read_bytes(), hashlib.sha256).hexdigest()


def signed_here(path: Path, signature: str) -> bool:
    """Whether `sign` gave this signature for the file as it is now."""
    return hmac.compare_digest(sign(path).encode(), str(signature).encode())


def _key() -> bytes:
    """The key of this user and machine, made when it is first needed; never readable by anybody else.

    Raises:
        InputError: the key belongs to another user, or was removed meanwhile.
    """
    path = cache_folder() / KEY
    if not path.exists():
        with exclusive(path.with_suffix(".lock"), f"the key {path}"):
            if not path.exists():  # another process may have made it while this one waited
                with replacing(path, private=True) as temporary:
                    temporary.write_bytes(secrets.token_bytes(32))
    with writing_to(path.parent):
        if stat.S_IMODE(path.stat().st_mode) != PRIVATE:  # of an earlier version, or copied
            path.chmod(PRIVATE)
        return path.read_bytes()
