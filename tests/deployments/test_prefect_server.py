"""Prefect's server on SQLite: an event loop that goes on while a connection waits for another's lock."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import time
from pathlib import Path

import aiosqlite
import pytest

from deployments.prefect_server import close_failed_cursors, lock_at_once

PATIENCE = 4.0
LONG = 1.0


async def stood_still(file: Path) -> float:
    """Seconds that the event loop takes to collect a cursor whose statement failed, while its connection waits."""
    async with (
        aiosqlite.connect(file, isolation_level=None, timeout=0) as waiting,
        aiosqlite.connect(file, isolation_level=None) as holding,
    ):
        await waiting.execute("PRAGMA journal_mode = WAL")
        await waiting.execute("CREATE TABLE things (name)")
        await holding.execute("BEGIN IMMEDIATE")
        cursor = await waiting.cursor()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await cursor.execute("INSERT INTO things VALUES (1)")
        await waiting.execute(f"PRAGMA busy_timeout = {int(PATIENCE * 1000)}")
        # the error holds the cursor, too, in a circle with its own traceback, which the thread has let go of by now
        gc.collect()
        begun = asyncio.create_task(waiting.execute("BEGIN IMMEDIATE"))
        # as soon as its thread is at it
        while waiting._tx.qsize():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        started = time.monotonic()
        # the last that holds it
        cursor._cursor = None  # type: ignore[assignment]
        took = time.monotonic() - started
        await holding.commit()
        await asyncio.gather(begun, return_exceptions=True)
        return took


def test_a_cursor_that_failed_does_not_hold_up_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # put back afterwards
    monkeypatch.setattr(aiosqlite.Cursor, "_execute", aiosqlite.Cursor._execute)
    close_failed_cursors()
    assert asyncio.run(stood_still(tmp_path / "a.db")) < LONG


def test_it_does_as_they_come(tmp_path: Path) -> None:
    """Where this fails, the libraries have mended it, and ours can go."""
    assert asyncio.run(stood_still(tmp_path / "a.db")) > LONG


def test_what_fails_is_told_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiosqlite.Cursor, "_execute", aiosqlite.Cursor._execute)
    close_failed_cursors()

    async def tried() -> list[tuple[int]]:
        async with aiosqlite.connect(tmp_path / "a.db") as connection:
            with pytest.raises(sqlite3.OperationalError, match="no such table: absent"):
                await connection.execute("SELECT * FROM absent")
            async with connection.execute("SELECT 1 UNION SELECT 2") as cursor:
                return [(row[0],) async for row in cursor]

    assert asyncio.run(tried()) == [(1,), (2,)]


def test_a_transaction_takes_the_lock_when_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that read and then write are one after the other; one inside another does not wait for that one."""
    from prefect.server.database.configurations import AioSqliteConfiguration
    from sqlalchemy import text

    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", AioSqliteConfiguration.begin_transaction)
    lock_at_once()
    database = AioSqliteConfiguration(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")

    async def add(barrier: asyncio.Event) -> None:
        async with (
            await database.session(await database.engine()) as session,
            database.begin_transaction(session),
        ):
            [(count,)] = (await session.execute(text("SELECT count(*) FROM things"))).all()
            barrier.set()
            async with (
                await database.session(await database.engine()) as inner,
                database.begin_transaction(inner),
            ):
                assert (await inner.execute(text("SELECT count(*) FROM things"))).all() == [(count,)]
            await session.execute(text("INSERT INTO things VALUES (:count)"), {"count": count})

    async def both() -> list[int]:
        async with (await database.engine()).begin() as connection:
            await connection.execute(text("CREATE TABLE things (number)"))
        barrier = asyncio.Event()
        first = asyncio.create_task(add(barrier))
        await barrier.wait()
        await asyncio.gather(first, *(add(barrier) for _ in range(4)))
        async with (await database.engine()).connect() as connection:
            found = (await connection.execute(text("SELECT number FROM things"))).all()
        await (await database.engine()).dispose()
        return sorted(number for (number,) in found)

    assert asyncio.run(both()) == [0, 1, 2, 3, 4]
