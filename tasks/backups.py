"""A backup: one zip file with the embedded stores, and a manifest with size and sha256 of everything in it.

Each database is copied as it is at one moment, so flows may go on writing. The store is copied before MLflow's
database, and that before the files that it names: what is written first is copied last, so that nothing in the
backup names what is not in it. ``tasks.restoring`` reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

from tasks import progress, sqlite_files
from tasks.run_garbage import LOOPBACK
from tasks.settings import Settings
from tasks.signing import KEY_FILE
from tasks.store import FORMAT as STORE_FORMAT
from tasks.store import open_store
from tasks.upkeep import alone
from trading.errors import ConfigurationError, InvalidRequest

FORMAT: Final = 1  # raise it whenever an older version could not restore what this one writes
MANIFEST: Final = "manifest.json"
# beside the databases: MLflow's files, and the pages and pictures that stored results name
FOLDERS: Final = ("mlflow/artifacts", "reports")
_BLOCK: Final = 1 << 20
# what is compressed already
_DENSE: Final = frozenset({".png", ".parquet", ".gz", ".zip"})


@dataclass(frozen=True)
class Member:
    """A file in a backup: its path below the home folder, bytes, sha256 in hexadecimal digits."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is in a backup.

    Attributes:
        format: of the backup; ``store_format`` of the store's documents.
        made_at: ISO 8601, UTC, when it began.
        home: the home folder as the settings named it; ``resolved`` its whole path.
    """

    format: int
    store_format: int
    made_at: str
    home: str
    resolved: str
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(member.size for member in self.members)


def backup(
    settings: Settings, file: Path, *, with_key: bool = False, with_prefect: bool = False, patience: float = 30.0
) -> Manifest:
    """Write the embedded stores of the home folder into ``file``, which is there whole or not at all.

    Only its owner can read it.

    Args:
        with_key: take the file of the signing key along; whoever has the backup can then sign models.
        with_prefect: take Prefect's database along: the history of runs, large, and with secrets in its blocks.
        patience: seconds to wait for a maintenance or another backup.

    Raises:
        ConfigurationError: the store, or MLflow, is on another server.
        InvalidRequest: ``file`` is there already, lies in the home folder, or there is nothing to back up.
        RevisionConflict: a maintenance or another backup is at work.
        StoreUnavailable: a database cannot be copied.
    """
    home = settings.home.resolve()
    _require_embedded(settings)
    _require_place(settings, home, file, with_key)
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    with open_store(settings.home) as store, alone(store, "the backup", patience=patience) as hold:
        try:
            # beside the target: a temporary folder may have no room for a database
            with (
                tempfile.TemporaryDirectory(prefix=".tradeflows-", dir=file.parent) as temporary,
                os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as out,
            ):
                with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                    members = tuple(_write(archive, home, Path(temporary), with_key, with_prefect, hold))
                    manifest = Manifest(FORMAT, STORE_FORMAT, made_at, str(settings.home), str(home), members)
                    archive.writestr(MANIFEST, json.dumps(asdict(manifest), indent=1))
                out.flush()
                os.fsync(out.fileno())
            _require_place(settings, home, file, with_key)  # somebody may have been faster
            draft.rename(file)
        finally:
            draft.unlink(missing_ok=True)
    sync_folder(file.parent)
    return manifest


def _write(
    archive: zipfile.ZipFile, home: Path, temporary: Path, with_key: bool, with_prefect: bool, hold: Callable[[], None]
) -> Iterator[Member]:
    names = [sqlite_files.STORE, sqlite_files.TUNING, sqlite_files.MLFLOW]
    for name in [*names, *([sqlite_files.PREFECT] if with_prefect else [])]:
        hold()
        if not (home / name).is_file():
            continue
        copy = temporary / "copy.db"
        sqlite_files.snapshot(home / name, copy)
        yield _add(archive, copy, name, hold)
        copy.unlink()
    if with_key and (home / KEY_FILE).is_file():
        yield _add(archive, home / KEY_FILE, KEY_FILE, hold)
    files = [path for folder in FOLDERS for path in sorted((home / folder).rglob("*"))]
    for done, path in enumerate(files):
        progress.report("files", done, len(files))
        if path.is_symlink() or not path.is_file():
            continue
        try:
            yield _add(archive, path, path.relative_to(home).as_posix(), hold)
        except FileNotFoundError:
            continue  # a running flow removed it: what is registered, nobody removes while the lease is held
    progress.report("files", len(files), len(files))


def _add(archive: zipfile.ZipFile, path: Path, name: str, hold: Callable[[], None]) -> Member:
    """One file into the archive, counted and digested as it is read."""
    info = zipfile.ZipInfo(name, date_time=datetime.now(UTC).timetuple()[:6])
    info.compress_type = zipfile.ZIP_STORED if path.suffix in _DENSE else zipfile.ZIP_DEFLATED
    info.external_attr = 0o600 << 16
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as into:
        while block := source.read(_BLOCK):
            hold()
            digest.update(block)
            into.write(block)
            size += len(block)
    return Member(name, size, digest.hexdigest())


def _require_embedded(settings: Settings) -> None:
    if settings.mongodb_url is not None:
        raise ConfigurationError(
            "MONGODB_URL is set: the store is on a MongoDB server, which this cannot back up; use mongodump (and "
            "mongorestore) on that server's database"
        )
    told: Any = urlparse(settings.mlflow_tracking_uri or "")
    if told.scheme and told.hostname not in LOOPBACK:
        raise ConfigurationError(
            f"MLFLOW_TRACKING_URI names {told.hostname or told.scheme}: models lie there and not in the home folder; "
            "back up that server's database and its artifacts by their own means, and unset the variable for the rest"
        )


def _require_place(settings: Settings, home: Path, file: Path, with_key: bool) -> None:
    if not (home / sqlite_files.STORE).is_file():
        raise InvalidRequest(f"there is no store in {settings.home}; name the folder with --home")
    if file.exists():
        raise InvalidRequest(f"{file} is there already; name another file")
    if not file.parent.is_dir():
        raise InvalidRequest(f"{file.parent} is not a folder; make it first")
    if file.resolve().is_relative_to(home):
        raise InvalidRequest(f"{file} lies in the home folder, and would be lost with it; name a file elsewhere")
    if with_key and not (home / KEY_FILE).is_file():
        raise InvalidRequest(
            f"there is no {KEY_FILE} in {settings.home}: the key is in TRADEFLOWS_SIGNING_KEY, so keep that, or no "
            "model was signed yet; leave out --with-key"
        )


def sync_folder(folder: Path) -> None:
    """A new name is on the disk only once its folder is."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
