"""The SQLite files of a home folder as files: where they are, a copy of one in use, one written anew."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from tasks.retention import LARGEST_VACUUM, worth_vacuum
from tasks.settings import Settings
from trading.errors import StoreUnavailable

STORE: Final = "store.db"
MLFLOW: Final = "mlflow/mlflow.db"
PREFECT: Final = "prefect/prefect.db"
# trials of trainings under way
TUNING: Final = "tuning.db"
_BUSY_SECONDS: Final = 5.0
_COPY_SECONDS: Final = 60.0


def databases(settings: Settings) -> dict[str, Path]:
    """The files that maintenance looks after and that are there, by name. Prefect's server keeps its own."""
    found = {} if settings.mongodb_url is not None else {"store": settings.home / STORE}
    found["MLflow"] = settings.home / MLFLOW
    return {name: path for name, path in found.items() if path.is_file()}


def vacuum(path: Path, *, seconds: float = _BUSY_SECONDS) -> str | None:
    """Write an SQLite file anew where that is worth it; why not, where it could not be.

    Readers go on, and writers wait for it, hence the limit on its size. One that is in use is left for another time.
    """
    with closing(sqlite3.connect(path, timeout=seconds, isolation_level=None)) as connection:
        pages, empty, size = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        if not worth_vacuum(pages, empty, size):
            return None
        if (pages - empty) * size > LARGEST_VACUUM:
            return f"{empty * size:,} bytes are empty; it is too large to write anew beside flows, and fills them first"
        try:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}:
                return f"not written anew ({error}); the next run tries again"
            raise StoreUnavailable(f"{path} cannot be written anew ({error}); restore it from a backup") from error
    return None


def snapshot(path: Path, to: Path) -> None:
    """Copy a database as it is at one moment, whoever writes it meanwhile, and check the copy.

    Raises:
        StoreUnavailable: it is damaged, or writers left no moment for it.
    """
    try:
        with (
            closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=_COPY_SECONDS)) as source,
            closing(sqlite3.connect(to)) as copy,
        ):
            # all pages in one step: in parts it would begin again with every write of others
            source.backup(copy)
            # one file, without a journal beside it
            copy.execute("PRAGMA journal_mode = DELETE")
        check(to)
    except sqlite3.Error as error:
        busy = getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
        remedy = "try again" if busy else "look at its disk"
        raise StoreUnavailable(f"{path} cannot be copied ({error}); {remedy}", transient=busy) from error


def check(path: Path) -> None:
    """Refuse a database whose pages do not fit together.

    Raises:
        StoreUnavailable: says which, and the first fault.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise StoreUnavailable(f"{path} is damaged ({found}); use an older backup")
