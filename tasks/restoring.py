"""Restoring a backup of ``tasks.backups``: into an empty folder, whole and verified, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from tasks import progress, sqlite_files
from tasks.backups import FORMAT, MANIFEST, Manifest, Member, sync_folder
from tasks.store import FORMAT as STORE_FORMAT
from tasks.store import RESULTS, open_store
from tasks.upkeep import earlier
from trading.errors import InvalidRequest, StoreError

_BLOCK: Final = 1 << 20
_LARGEST_MANIFEST: Final = 256 << 20
# where MLflow's database says that files are
_LOCATIONS: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
# results that name pages and pictures
_WITH_PATHS: Final = ("backtest", "monitor")


def restore(file: Path, home: Path) -> Manifest:
    """Make a home folder of a backup. Every digest is verified in a folder beside ``home``, which then takes its place.

    Args:
        home: a folder that is empty, or not there yet.

    Raises:
        InvalidRequest: ``home`` is not empty, ``file`` is no backup or one of a newer version, or there is no room.
        StoreError: something in the backup is not what was written, or is not listed; says which.
    """
    target = home.resolve()
    _require_empty(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = _manifest(archive, file)
            free = shutil.disk_usage(target.parent).free
            if manifest.size > free:
                raise InvalidRequest(f"the backup needs {manifest.size:,} bytes, and {target.parent} has {free:,} left")
            draft.mkdir(mode=0o700)
            for done, member in enumerate(manifest.members):
                progress.report("files", done, len(manifest.members))
                _extract(archive, member, draft)
            progress.report("files", len(manifest.members), len(manifest.members))
        _settle_in(draft, manifest, target)
        _require_empty(target)
        draft.rename(target)  # over an empty folder, or none
    except FileNotFoundError as error:
        if not file.exists():
            raise InvalidRequest(f"there is no file {file}") from error
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise StoreError(f"{file} is damaged, or no backup ({error}); use another one") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    sync_folder(target.parent)
    return manifest


def _require_empty(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidRequest(f"{target} is not an empty folder; restore into a new one, so that nothing is lost")


def _manifest(archive: zipfile.ZipFile, file: Path) -> Manifest:
    names = archive.namelist()
    if names.count(MANIFEST) != 1 or archive.getinfo(MANIFEST).file_size > _LARGEST_MANIFEST:
        raise InvalidRequest(f"{file} is no backup: it has no {MANIFEST}; make one with: tradeflows backup FILE")
    try:
        told = json.loads(archive.read(MANIFEST))
        versions = (int(told["format"]), int(told["store_format"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"the {MANIFEST} of {file} cannot be read ({error}); use another backup") from error
    if versions[0] > FORMAT or versions[1] > STORE_FORMAT:
        raise InvalidRequest(
            f"{file} is of format {versions[0]} with a store of format {versions[1]}, and this version reads up to "
            f"{FORMAT} and {STORE_FORMAT}; restore it with the version that wrote it, or a later one"
        )
    try:
        manifest = TypeAdapter(Manifest).validate_python(told)
    except ValidationError as error:
        raise StoreError(f"the {MANIFEST} of {file} cannot be read ({error.error_count()} faults)") from error
    listed = [member.path for member in manifest.members]
    if sorted([*listed, MANIFEST]) != sorted(names):
        odd = sorted(set(names) ^ {*listed, MANIFEST})[:3]
        raise StoreError(f"{file} does not hold what its {MANIFEST} lists ({odd or 'a file twice'}); use another one")
    for name in listed:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
            raise StoreError(f"{file} would write {name!r}, outside of the folder; do not trust it")
    return manifest


def _extract(archive: zipfile.ZipFile, member: Member, folder: Path) -> None:
    """Write one file; refuse it where it is not as listed."""
    path = folder / member.path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with (
        archive.open(member.path) as source,
        os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as into,
    ):
        # no more than listed, whatever it would unpack to
        while size <= member.size and (block := source.read(_BLOCK)):
            digest.update(block)
            into.write(block)
            size += len(block)
        into.flush()
        os.fsync(into.fileno())
    if size != member.size or digest.hexdigest() != member.sha256:
        raise StoreError(
            f"{member.path} in the backup has sha256 {digest.hexdigest()[:12]} and {size:,} bytes; written were "
            f"{member.sha256[:12]} and {member.size:,}: it is damaged, use another one"
        )


def _settle_in(folder: Path, manifest: Manifest, target: Path) -> None:
    """Let what the databases say about places be true of the new one, and forget who was at work."""
    for name in (sqlite_files.STORE, sqlite_files.TUNING, sqlite_files.MLFLOW, sqlite_files.PREFECT):
        if (folder / name).is_file():
            sqlite_files.check(folder / name)
    if (folder / sqlite_files.MLFLOW).is_file():
        _move_locations(folder / sqlite_files.MLFLOW, Path(manifest.resolved).as_uri() + "/", target.as_uri() + "/")
    moved = {f"{old}/": f"{target}/" for old in (manifest.resolved, manifest.home)}
    with open_store(folder) as store:
        for kind in _WITH_PATHS:
            for document in earlier(store, RESULTS, "created_at", None, {"kind": kind}):
                after = _renamed(document["result"], moved)
                if after != document["result"]:
                    store.documents.put(RESULTS, {**document, "result": after})
    with closing(sqlite3.connect(folder / sqlite_files.STORE)) as connection, connection:
        connection.execute("DELETE FROM leases")


def _move_locations(database: Path, old: str, new: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, column in _LOCATIONS:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608 - names are ours
                (new, len(old) + 1, len(old), old),
            )


def _renamed(value: Any, moved: Mapping[str, str]) -> Any:
    """The value with texts that begin with an old folder beginning with the new one."""
    if isinstance(value, str):
        return next((new + value[len(old) :] for old, new in moved.items() if value.startswith(old)), value)
    if isinstance(value, Mapping):
        return {name: _renamed(inner, moved) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_renamed(inner, moved) for inner in value]
    return value
