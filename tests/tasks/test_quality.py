"""The page of the day."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks.quality import write_page
from tasks.store import Store, open_store

NOW = datetime(2019, 1, 1, 0, 2, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "home") as opened:
        yield opened


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_runs_of_the_same_moment_do_not_write_into_each_other_s_page(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, written = tmp_path / "data", []
    both, write = threading.Barrier(2, timeout=60), Path.write_text

    def at_once(path: Path, text: str, **how: str) -> int:
        count = write(path, text, **how)
        written.append(path)
        # each has written and neither has put its page in place
        both.wait()
        return count

    monkeypatch.setattr(Path, "write_text", at_once)
    with ThreadPoolExecutor(2) as pool:
        pages = list(pool.map(lambda _: write_page(store, folder, [], NOW, 0.0), range(2)))
    assert pages == [folder / "2019-01-01.html"] * 2
    assert len(set(written)) == len(written) == 4
    assert names(folder) == ["2019-01-01.html", "index.html"]
    assert pages[0].read_text().rstrip().endswith("</html>")
    assert "2019-01-01" in (folder / "index.html").read_text()


def test_a_page_that_could_not_be_written_leaves_the_old_one_and_nothing_else(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = tmp_path / "data", Path.write_text
    page = write_page(store, folder, [], NOW, 0.0)
    before = page.read_text()

    def full(path: Path, text: str, **how: str) -> int:
        write(path, text[:100], **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_page(store, folder, [], NOW, 0.0)
    assert page.read_text() == before
    assert names(folder) == ["2019-01-01.html", "index.html"]
