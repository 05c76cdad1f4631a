"""Backups of a store in use, and what a restore refuses."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tasks.backups import MANIFEST, backup
from tasks.documents import Document
from tasks.restoring import restore
from tasks.settings import Settings
from tasks.signing import KEY_FILE, signing_key
from tasks.store import LLM_CALLS, RESULTS, open_store, put_result
from tasks.upkeep import LEASE, LEASE_NAME
from trading.errors import ConfigurationError, InvalidRequest, RevisionConflict, StoreError

NOW = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a home folder with a store, a page that a result names, and a key."""
    home = tmp_path / "home"
    page = home / "reports" / "monitor" / "drift.png"
    page.parent.mkdir(parents=True)
    page.write_bytes(b"a picture")
    found = Settings(home=home).model_copy(
        update={"mongodb_url": None, "mlflow_tracking_uri": None, "signing_key": None}
    )
    signing_key(found)
    with open_store(home) as store:
        put_result(store, "m", "monitor", {"picture": str(page), "pages": [str(page)], "model": "A-1h"}, NOW)
        assert store.documents.acquire("of a run", "somebody", LEASE, datetime.now(UTC))
    return found


def changed(file: Path, name: str, change: Callable[[bytes], bytes | None]) -> None:
    """Write the backup again with one file changed, or without it."""
    with zipfile.ZipFile(file) as archive:
        contents = {one: archive.read(one) for one in archive.namelist()}
    after = change(contents.pop(name, b""))
    with zipfile.ZipFile(file, "w") as archive:
        for one, body in contents.items():
            archive.writestr(one, body)
        if after is not None:
            archive.writestr(name, after)


def of_manifest(**values: Any) -> Callable[[bytes], bytes]:
    return lambda body: json.dumps({**json.loads(body), **values}).encode()


def test_there_and_back(settings: Settings, tmp_path: Path) -> None:
    file, target = tmp_path / "backup.zip", tmp_path / "restored"
    made = backup(settings, file)
    assert [member.path for member in made.members] == ["store.db", "reports/monitor/drift.png"]
    assert file.stat().st_mode & 0o777 == 0o600
    target.mkdir()  # an empty one will do
    assert restore(file, target) == made
    assert not (target / KEY_FILE).exists()
    with open_store(target) as store:
        result = store.documents.get(RESULTS, "m")
        assert result is not None
        # what results name is in the new folder, and nobody is at work there
        assert result["result"]["picture"] == str(target / "reports" / "monitor" / "drift.png")
        assert Path(result["result"]["pages"][0]).read_bytes() == b"a picture"
        assert result["result"]["model"] == "A-1h"
        assert store.documents.acquire("of a run", "another", LEASE, datetime.now(UTC))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.zip", "home", "restored"]


def test_the_key_only_on_demand(settings: Settings, tmp_path: Path) -> None:
    backup(settings, tmp_path / "with.zip", with_key=True)
    restore(tmp_path / "with.zip", tmp_path / "restored")
    moved = settings.model_copy(update={"home": tmp_path / "restored"})
    assert signing_key(moved) == signing_key(settings)
    (settings.home / KEY_FILE).unlink()
    with pytest.raises(InvalidRequest, match="TRADEFLOWS_SIGNING_KEY"):
        backup(settings, tmp_path / "without.zip", with_key=True)


@pytest.mark.integration
def test_a_backup_of_a_store_in_use_is_of_one_moment(settings: Settings, tmp_path: Path) -> None:
    """Writers write pairs, the second after the first: no backup has a second without its first, nor half a write."""
    done = threading.Event()
    written = []

    def write() -> None:
        with open_store(settings.home) as store:
            number = 0
            while not done.wait(0.001):  # as fast as it can it would keep others from writing
                for half in ("a", "b"):
                    body: Document = {"_id": f"{number:05}{half}", "day": "d", "at": NOW, "text": "x" * 500}
                    store.documents.put(LLM_CALLS, body)
                number += 1
                written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            before = len(written)
            backup(settings, tmp_path / f"{number}.zip")
            while len(written) == before:  # the writer is not held up
                assert writer.is_alive()
    finally:
        done.set()
        writer.join()
    for number in range(3):
        restore(tmp_path / f"{number}.zip", tmp_path / f"restored {number}")
        with open_store(tmp_path / f"restored {number}") as store:
            found = {one["_id"] for one in store.documents.find(LLM_CALLS)}
        firsts = {one[:-1] for one in found if one.endswith("a")}
        seconds = {one[:-1] for one in found if one.endswith("b")}
        assert seconds <= firsts
        assert len(firsts) - len(seconds) <= 1
        assert firsts == {f"{at:05}" for at in range(len(firsts))}


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("reports/monitor/drift.png", lambda body: body[:-1] + b"E", StoreError, "drift.png in the backup has sha256"),
        ("reports/monitor/drift.png", lambda body: body + b"!", StoreError, "it is damaged"),
        ("reports/monitor/drift.png", lambda _: None, StoreError, "does not hold what"),
        ("reports/added.html", lambda _: b"<script>", StoreError, "does not hold what"),
        (MANIFEST, lambda _: None, InvalidRequest, "it has no manifest.json"),
        (MANIFEST, lambda _: b"[]", StoreError, "cannot be read"),
        (MANIFEST, of_manifest(members=[{"path": 1}]), StoreError, "cannot be read"),
        (MANIFEST, of_manifest(format=2), InvalidRequest, "is of format 2 .* a later one"),
        (MANIFEST, of_manifest(store_format=99), InvalidRequest, "store of format 99"),
    ],
)
def test_what_is_not_as_it_was_written_is_refused_and_leaves_nothing(
    settings: Settings,
    tmp_path: Path,
    name: str,
    change: Callable[[bytes], bytes | None],
    error: type[Exception],
    words: str,
) -> None:
    file = tmp_path / "backup.zip"
    backup(settings, file)
    changed(file, name, change)
    with pytest.raises(error, match=words):
        restore(file, tmp_path / "restored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.zip", "home"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "reports/../../outside", "a\\b"])
def test_nothing_is_written_outside_of_the_folder(settings: Settings, tmp_path: Path, name: str) -> None:
    file = tmp_path / "backup.zip"
    made = backup(settings, file)
    listed = [*[vars(member) for member in made.members], {"path": name, "size": 1, "sha256": "0"}]
    changed(file, MANIFEST, of_manifest(members=listed))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(StoreError, match="outside of the folder"):
        restore(file, tmp_path / "deep" / "restored")
    assert not list(tmp_path.rglob("outside"))


def test_a_file_cut_short_or_of_another_kind_is_refused(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "backup.zip"
    backup(settings, file)
    body = file.read_bytes()
    for size in (0, 10, len(body) // 2, len(body) - 1):
        file.write_bytes(body[:size])
        with pytest.raises(StoreError, match="damaged, or no backup"):
            restore(file, tmp_path / "restored")
    with pytest.raises(InvalidRequest, match="there is no file"):
        restore(tmp_path / "nowhere.zip", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_nothing_is_overwritten(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "backup.zip"
    backup(settings, file)
    body = file.read_bytes()
    with pytest.raises(InvalidRequest, match="is there already"):
        backup(settings, file)
    assert file.read_bytes() == body
    with pytest.raises(InvalidRequest, match="not an empty folder"):
        restore(file, settings.home)
    with pytest.raises(InvalidRequest, match="lies in the home folder"):
        backup(settings, settings.home / "backup.zip")
    with pytest.raises(InvalidRequest, match="there is no store"):
        backup(settings.model_copy(update={"home": tmp_path / "empty"}), tmp_path / "other.zip")


def test_stores_elsewhere_are_refused_with_what_to_do(settings: Settings, tmp_path: Path) -> None:
    mongo = settings.model_copy(update={"mongodb_url": SecretStr("mongodb://somebody:s3cret@db/x")})
    with pytest.raises(ConfigurationError, match="mongodump") as said:
        backup(mongo, tmp_path / "backup.zip")
    assert "s3cret" not in str(said.value)
    far = settings.model_copy(update={"mlflow_tracking_uri": "https://u:s3cret@mlflow.example.com"})
    with pytest.raises(ConfigurationError, match=r"mlflow\.example\.com") as said:
        backup(far, tmp_path / "backup.zip")
    assert "s3cret" not in str(said.value)


def test_not_beside_a_maintenance(settings: Settings, tmp_path: Path) -> None:
    with open_store(settings.home) as store:
        assert store.documents.acquire(LEASE_NAME, "maintenance", LEASE, datetime.now(UTC))
    with pytest.raises(RevisionConflict, match="would disturb"):
        backup(settings, tmp_path / "backup.zip", patience=0)
    assert not (tmp_path / "backup.zip").exists()
