"""Signatures of model versions, with a key that MLflow never sees.

What is signed is the statement that a version of a registered model makes by its tags: the sha256 of
its manifest (and so every file of it), those of the files that MLflow put around it, and all the rest
that is read from them. The signature is HMAC-SHA256: whoever verifies here also signs, so that a pair
of keys would protect nothing more. It binds name, number and run, so that an old version's files and
tags cannot be passed off as another's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tasks.settings import Settings
from trading.errors import ConfigurationError, ModelRejected

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SIGNATURE: Final = "signature"
KEY_FILE: Final = "signing.key"
SHORTEST_KEY: Final = 16
# MLflow's own tags of a version; ours never begin like this
_FOREIGN: Final = "mlflow."


def signing_key(settings: Settings) -> bytes:
    """The configured key, or in development one of this home folder's own, made when first asked for.

    Raises:
        ConfigurationError: production without a key, a key too short to be one, or a key file that
            others can read or that is no file. No message holds the key.
    """
    if settings.signing_key is not None and settings.signing_key.get_secret_value():
        key = settings.signing_key.get_secret_value().encode()
        if len(key) < SHORTEST_KEY:
            raise ConfigurationError(
                f"TRADEFLOWS_SIGNING_KEY has {len(key)} bytes and needs at least {SHORTEST_KEY}; "
                "make one with: openssl rand -hex 32"
            )
        return key
    if settings.environment == "production":
        raise ConfigurationError("TRADEFLOWS_ENVIRONMENT is production, and TRADEFLOWS_SIGNING_KEY must be set")
    path = settings.home / KEY_FILE
    try:
        if not os.path.lexists(path):
            _make(path)
        return _read(path)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be made or read ({error.strerror}); set TRADEFLOWS_HOME to a folder you can write, "
            "or TRADEFLOWS_SIGNING_KEY"
        ) from error


def signature(key: bytes, *, name: str, version: str, run_id: str, tags: Mapping[str, str]) -> str:
    """HMAC-SHA256 over the version and its tags, as hexadecimal digits; the signature itself is no part of it."""
    signed = {tag: value for tag, value in tags.items() if tag != SIGNATURE and not tag.startswith(_FOREIGN)}
    statement = {"name": name, "version": version, "run_id": run_id, "tags": signed}
    text = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hmac.new(key, b"tradeflows model version 1\0" + text.encode(), hashlib.sha256).hexdigest()


def require_signature(key: bytes, version: ModelVersion) -> None:
    """Refuse a version whose tags are not those that were signed.

    Raises:
        ModelRejected: no signature, or one that does not fit.
    """
    found = version.tags.get(SIGNATURE)
    if not found:
        raise ModelRejected(f"{version.name} version {version.version} is not signed; train it again")
    wanted = signature(
        key,
        name=str(version.name),
        version=str(version.version),
        run_id=str(version.run_id),
        tags=version.tags,
    )
    if not hmac.compare_digest(wanted.encode(), str(found).encode()):
        raise ModelRejected(
            f"the signature of {version.name} version {version.version} does not fit: a tag was changed, added or "
            "removed, or it was signed with another key; fall back to the previous version"
        )


def _make(path: Path) -> None:
    """Write a new key; of several processes at once one wins, and a reader sees a whole key or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{KEY_FILE}.{secrets.token_hex(8)}")
    opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(opened, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return  # another process was first: its key it is
    finally:
        draft.unlink()


def _read(path: Path) -> bytes:
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(opened, "rb") as file:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.geteuid():
            raise ConfigurationError(
                f"{path} must be a file that only you can read (mode 0600), and has mode "
                f"{stat.S_IMODE(found.st_mode):04o}; others may know the key: remove it and train again, "
                "or set TRADEFLOWS_SIGNING_KEY"
            )
        key = file.read().strip()
    if len(key) < SHORTEST_KEY:
        raise ConfigurationError(f"{path} holds no key; remove it and train again, or set TRADEFLOWS_SIGNING_KEY")
    return key
