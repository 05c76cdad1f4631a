"""What goes from the reports' folder and what stays, on real files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.report_garbage import Swept, sweep
from tasks.retention import Retention
from tasks.store import RESULTS, Store, open_store, put_result

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
KEEP = Retention(reports=60, most_reports=3)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def report(home: Path, name: str, days: float) -> Path:
    """A file of 100 bytes that was written so many days ago; what it lies in, too."""
    path = home / "reports" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 100)
    stamp = ago(days).timestamp()
    os.utime(path, (stamp, stamp))
    os.utime(path.parent, (stamp, stamp))
    return path


def swept(store: Store, home: Path, *, keep: Retention = KEEP, dry_run: bool = False) -> Swept:
    return sweep(store, home, keep, now=NOW, dry_run=dry_run, hold=lambda: None)


def names(home: Path) -> set[str]:
    folder = home / "reports"
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_too_old_or_one_too_many_goes_and_the_newest_of_each_kind_stays(store: Store, tmp_path: Path) -> None:
    for day, age in (("1", 300), ("2", 200), ("3", 100)):
        report(tmp_path, f"data/2024-01-0{day}.html", age)
    for number in range(5):
        report(tmp_path, f"settle/1h/{number}.png", 5 - number)
    report(tmp_path, "settle/4h/old.png", 500)
    for key, age in (("a", 90), ("b", 30), ("c", 10)):
        report(tmp_path, f"backtest/X-1h-{key}/X.png", age)
        report(tmp_path, f"backtest/X-1h-{key}/X-rsi.html", age)
    rehearsed = swept(store, tmp_path, dry_run=True)
    assert rehearsed == Swept(2 + 2 + 1, 600, 0)
    assert len(names(tmp_path)) == 15
    assert swept(store, tmp_path) == rehearsed
    assert names(tmp_path) == {
        "data/2024-01-03.html",
        "settle/1h/2.png", "settle/1h/3.png", "settle/1h/4.png", "settle/4h/old.png",
        "backtest/X-1h-b/X.png", "backtest/X-1h-b/X-rsi.html", "backtest/X-1h-c/X.png", "backtest/X-1h-c/X-rsi.html",
    }  # fmt: skip
    assert not (tmp_path / "reports" / "backtest" / "X-1h-a").exists()
    assert swept(store, tmp_path) == Swept(0, 0, 0)


def test_what_a_stored_answer_shows_again_stays_as_long_as_it(store: Store, tmp_path: Path) -> None:
    for key in "abcd":
        report(tmp_path, f"backtest/X-1h-{key}/X.png", 90 - ord(key) % 32)
    for key in "ef":
        report(tmp_path, f"monitor/{key}/drift.png", 90 - ord(key) % 32)
    # the home folder was elsewhere when they were stored
    shown = {"pages": ["/old/reports/home/reports/backtest/X-1h-a/X-rsi.html"], "pictures": [], "run_id": "r"}
    put_result(store, "a", "backtest", shown, ago(80))
    put_result(
        store, "b", "backtest", {"pages": [], "pictures": [".tradeflows/reports/backtest/X-1h-b/X.png"]}, ago(80)
    )
    put_result(store, "e", "monitor", {"picture": "home/reports/monitor/e/drift.png"}, ago(80))
    put_result(store, "f", "monitor", {"picture": None}, ago(80))
    keep = Retention(reports=60, most_reports=1)
    assert swept(store, tmp_path, keep=keep) == Swept(1, 100, 3)
    assert names(tmp_path) == {
        "backtest/X-1h-a/X.png", "backtest/X-1h-b/X.png", "backtest/X-1h-d/X.png",
        "monitor/e/drift.png", "monitor/f/drift.png",
    }  # fmt: skip
    store.documents.delete(RESULTS, "a")
    assert swept(store, tmp_path, keep=keep).removed == 1
    assert "backtest/X-1h-a/X.png" not in names(tmp_path)


def test_a_report_that_is_written_again_is_young_and_one_half_removed_goes(store: Store, tmp_path: Path) -> None:
    old = report(tmp_path, "backtest/X-1h-a/X.png", 90)
    report(tmp_path, "backtest/X-1h-b/X.png", 1)
    # the folder is old, a file in it is not
    report(tmp_path, "backtest/X-1h-a/new.html", 5)
    os.utime(old.parent, (0, 0))
    assert swept(store, tmp_path).removed == 0
    # made a moment ago, and nothing in it yet
    (tmp_path / "reports" / "backtest" / "X-1h-c").mkdir()
    assert swept(store, tmp_path).removed == 0
    cut_off = tmp_path / "reports" / "backtest" / ".gone-X-1h-z"
    cut_off.mkdir()
    (cut_off / "X.png").write_bytes(b"x")
    assert swept(store, tmp_path, dry_run=True).removed == 0
    assert cut_off.exists()
    swept(store, tmp_path)
    assert not cut_off.exists()


def test_links_are_not_followed(store: Store, tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"x" * 1_000)
    folder = home / "reports" / "backtest"
    folder.mkdir(parents=True)
    (folder / "X-1h-a").symlink_to(elsewhere)
    os.utime(folder / "X-1h-a", (0, 0), follow_symlinks=False)
    report(home, "backtest/X-1h-b/X.png", 1)
    (home / "reports" / "linked").symlink_to(elsewhere)
    assert swept(store, home).removed == 1
    assert (elsewhere / "precious").exists()
    assert not (folder / "X-1h-a").is_symlink()
    assert (home / "reports" / "linked").is_symlink()


def test_without_reports_there_is_nothing_to_do(store: Store, tmp_path: Path) -> None:
    assert swept(store, tmp_path / "nowhere") == Swept(0, 0, 0)
