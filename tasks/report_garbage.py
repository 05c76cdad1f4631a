"""Reports on the disk: pages and pictures of ``<home>/reports`` that are too old or too many go, folder by folder.

A report is what one run left: the folder of a backtest or of a monitor's verdict, the page of a day, the picture of a
settlement. They are sorted by kind, the folder that they lie in. What a stored answer shows again stays as long as the
answer does, and of each kind the newest stays.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Final

from tasks.retention import Retention, Stamped, surplus
from tasks.store import RESULTS, Store
from tasks.upkeep import earlier

FOLDER: Final = "reports"
# kinds whose reports lie one folder deeper: settle/1h/20240501T0000.png
_DEEPER: Final = frozenset({"settle"})
# answers that show files again, and where those are named
_SHOWN: Final = {"backtest": ("pages", "pictures"), "monitor": ("picture",)}
# what is being removed, so that nobody finds half of a report
_GOING: Final = ".gone-"


@dataclass(frozen=True)
class Swept:
    """How many reports went, their bytes, and how many stay though they are too old or too many."""

    removed: int
    bytes: int
    kept: int


def sweep(
    store: Store, home: Path, retention: Retention, *, now: datetime, dry_run: bool, hold: Callable[[], None]
) -> Swept:
    """Remove reports that are too old at ``now``, or too many of their kind.

    Args:
        hold: called between steps, to keep a lease.
    """
    folder = home / FOLDER
    shown = _shown(store)
    removed = size = kept = 0
    for kind, found in _by_kind(folder).items():
        for report in surplus(found, retention.most_reports, retention.before("reports", now)):
            hold()
            if (kind, report.name) in shown:
                kept += 1
                continue
            path = folder / kind / report.name
            # somebody may be writing it again
            if _changed(path) != report.at:
                continue
            removed, size = removed + 1, size + sum(file.lstat().st_size for file in _files(path))
            if not dry_run:
                _remove(path)
    if not dry_run:
        _finish(folder)
    return Swept(removed, size, kept)


def _by_kind(folder: Path) -> Mapping[str, Sequence[Stamped]]:
    found: dict[str, list[Stamped]] = defaultdict(list)
    for kind in _folders(folder):
        for place in _folders(kind) if kind.name in _DEEPER else [kind]:
            name = place.relative_to(folder).as_posix()
            found[name] = [Stamped(path.name, _changed(path)) for path in place.iterdir() if not _going(path)]
    return found


def _shown(store: Store) -> set[tuple[str, str]]:
    """Kind and name of each report that a stored answer shows again."""
    found = set()
    for kind, fields in _SHOWN.items():
        for one in earlier(store, RESULTS, "created_at", None, {"kind": kind}):
            found |= {place for field in fields for text in _texts(one["result"].get(field)) for place in _place(text)}
    return found


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value or ()]


def _place(text: str) -> Iterator[tuple[str, str]]:
    """Kind and name by a file's path, wherever the home folder was when it was written."""
    parts = PurePath(text).parts
    if FOLDER not in parts:
        return
    inside = parts[len(parts) - parts[::-1].index(FOLDER) :]
    depth = 2 if inside and inside[0] in _DEEPER else 1
    if len(inside) > depth:
        yield "/".join(inside[:depth]), inside[depth]


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink() and not _going(path))


def _files(path: Path) -> Iterator[Path]:
    """The report itself, or the files in it; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        yield from (file for file in path.rglob("*") if file.is_symlink() or not file.is_dir())
    elif path.is_symlink() or path.exists():
        yield path


def _changed(path: Path) -> datetime:
    """When it, or the newest of its files, was written, UTC."""
    stamps = [file.lstat().st_mtime for file in (path, *_files(path))]
    return datetime.fromtimestamp(max(stamps), tz=UTC)


def _going(path: Path) -> bool:
    return path.name.startswith(_GOING)


def _remove(path: Path) -> None:
    """Under another name first: whoever looks meanwhile finds all of it or nothing."""
    going = path.with_name(f"{_GOING}{path.name}")
    path.rename(going)
    _delete(going)


def _finish(folder: Path) -> None:
    """What an earlier run was cut off at."""
    for path in list(folder.rglob(f"{_GOING}*")):
        if path.is_symlink() or path.exists():
            _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
