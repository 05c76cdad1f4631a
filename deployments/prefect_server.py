"""``prefect`` whose server does not stand still on SQLite: ``python -m deployments.prefect_server server start``.

SQLAlchemy 2.0's adapter of aiosqlite leaves a cursor open whose statement failed, such as one that was told that the
database is locked. When the cursor is collected the event loop resets its statement, and for that waits for whatever
the connection's thread does: often it waits for another connection's write lock, which only the event loop can end. So
the server stood still for a minute (SQLite's patience), with four clients at once nearly every time; its supervisor
started it anew. Here the connection's own thread closes such a cursor.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Be Prefect's command line."""
    close_failed_cursors()
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


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


if __name__ == "__main__":
    main()
