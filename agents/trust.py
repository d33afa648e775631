"""Marks files that were written on this machine: Stable-Baselines3's zip is unpickled, so one from elsewhere is refused."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from adafocus_env.cache import cache_folder, exclusive
from classifiers.files import replacing

KEY = "machine.key"


def sign(path: Path) -> str:
    """A signature of the file's content that only this user's cache folder can make."""
    return hmac.new(_key(), path.read_bytes(), hashlib.sha256).hexdigest()


def signed_here(path: Path, signature: str) -> bool:
    """Whether `sign` gave this signature for the file as it is now."""
    return hmac.compare_digest(sign(path).encode(), str(signature).encode())


def _key() -> bytes:
    path = cache_folder() / KEY
    if not path.exists():
        with exclusive(path.with_suffix(".lock"), f"the key {path}"):
            if not path.exists():  # another process may have made it while this one waited
                with replacing(path) as temporary:
                    temporary.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()
