"""``prefect`` whose server gets on with SQLite: ``python -m deployments.prefect_server server start``.

Two things of Prefect 3.8 on SQLite are mended, neither of which concerns PostgreSQL:

- SQLAlchemy 2.0's adapter of aiosqlite leaves a cursor open whose statement failed. When it is collected the event loop
  resets the statement, and for that waits for whatever the connection's thread does: often it waits for another
  connection's write lock, which only the event loop can end. So the server stood still for a minute, which is SQLite's
  patience, with four clients at once nearly every time. Here the connection's own thread closes such a cursor.
- Most transactions take the write lock when they first write. One that has read before is refused then, at once, if
  another has written meanwhile: clients are told to come again (503), and an event that triggers are evaluated for is
  tried four times and then dropped, with the automation that it should have started. Here they take the lock when they
  begin, and wait for it.
"""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Final

_ON_DEMAND: Final = "from deployments.prefect_server import mend; mend(); from uvicorn.main import main; main()"


def main() -> None:
    """Be Prefect's command line."""
    mend()
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def mend() -> None:
    """Mend the server that this process is about to be."""
    close_failed_cursors()
    lock_at_once()


def close_failed_cursors() -> None:
    """Have every cursor of aiosqlite closed in its connection's thread when what it was to do fails, or is given up."""
    from aiosqlite import Cursor

    usual: Callable[..., Any] = Cursor._execute

    async def execute(self: Cursor, fn: Callable[..., Any], *args: Any, **more: Any) -> Any:
        try:
            return await usual(self, fn, *args, **more)
        except BaseException:
            # after what is under way; nobody waits for it
            self._conn._tx.put_nowait((None, self._cursor.close))
            raise

    Cursor._execute = execute  # type: ignore[method-assign]


def lock_at_once() -> None:
    """Have transactions take SQLite's write lock when they begin, but for those inside another, which may hold it."""
    from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration

    usual = AioSqliteConfiguration.begin_transaction

    @asynccontextmanager
    async def begin(self: AioSqliteConfiguration, session: Any, with_for_update: bool = False) -> AsyncIterator[Any]:
        outermost = SQLITE_BEGIN_MODE.get() is None
        async with usual(self, session, with_for_update or outermost) as transaction:
            yield transaction

    AioSqliteConfiguration.begin_transaction = begin  # type: ignore[method-assign]


def mend_on_demand() -> None:
    """Have those servers mended, too, that Prefect starts for flows of this process where there is none."""
    from prefect.server.api import server

    def popen(args: Sequence[str], **more: Any) -> subprocess.Popen[Any]:
        [python, *words] = args
        if words[:2] == ["-m", "uvicorn"]:
            words = ["-c", _ON_DEMAND, *words[2:]]
        return subprocess.Popen([python, *words], **more)

    vars(server)["subprocess"] = SimpleNamespace(**{**vars(subprocess), "Popen": popen})


if __name__ == "__main__":
    main()
