"""A Python program whose every line is a JSON object: ``python -m deployments.json_process MODULE ARGUMENTS``.

What a program logs, its logging configuration makes JSON. What it prints besides (a banner, a warning of a library, a
traceback) would break the lines of those who read them: here each such line becomes an object, too. What is JSON
already, such as the lines of a flow run that a worker passes on, stays as it is.
"""

from __future__ import annotations

import io
import os
import runpy
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any, Final, TextIO

from tasks.log_lines import is_line, line, secrets_of

# a program that prints without a line break is told of all the same
LONGEST: Final = 64_000
# programs that run uvicorn with its own configuration; to import it takes 16 MB
_WITH_UVICORN: Final = frozenset(
    {("deployments.prefect_server", "server"), ("prefect", "server"), "deployments.sandbox"}
)
_PLACES: Final = ("default", "access")


class JsonStream(io.TextIOBase):
    """Text in, lines of JSON out. Threads may share it; a line that is not ended waits for its end."""

    def __init__(self, under: TextIO, level: str, logger: str, secrets: tuple[str, ...]) -> None:
        super().__init__()
        self._under, self._level, self._logger, self._secrets = under, level, logger, secrets
        self._lock = threading.RLock()
        self._rest = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream below."""
        return self._under.encoding

    def writable(self) -> bool:
        """It is."""
        return True

    def isatty(self) -> bool:
        """Colours would be text."""
        return False

    def fileno(self) -> int:
        """For programs that are started from here: they write past this stream."""
        return self._under.fileno()

    def write(self, text: str) -> int:
        """Write the lines that end in ``text``."""
        with self._lock:
            *whole, self._rest = (self._rest + text).split("\n")
            if len(self._rest) > LONGEST:
                whole, self._rest = [*whole, self._rest], ""
            for one in whole:
                self._put(one)
            if whole:
                self._under.flush()
        return len(text)

    def flush(self) -> None:
        """What is not a whole line stays."""
        with self._lock:
            self._under.flush()

    def finish(self) -> None:
        """Write what is left of the last line."""
        with self._lock:
            rest, self._rest = self._rest, ""
            self._put(rest)
            self._under.flush()

    def _put(self, text: str) -> None:
        # of a progress bar, its last state
        text = text.rstrip("\r").rpartition("\r")[2].rstrip()
        if text.strip():
            told = line(text, level=self._level, logger=self._logger, at=time.time(), secrets=self._secrets)
            self._under.write((text if is_line(text) else told) + "\n")


def main() -> None:
    """Run the module of the command line."""
    module, *arguments = sys.argv[1:]
    secrets = secrets_of(os.environ)
    out = JsonStream(sys.stdout, "info", module, secrets)
    err = JsonStream(sys.stderr, "warning", module, secrets)
    below = sys.stderr

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        whole = "".join(traceback.format_exception(kind, error, trace))
        said = line(
            f"{kind.__name__}: {error}", level="critical", logger=module, at=time.time(),
            fields={"exception": whole}, secrets=secrets,
        )  # fmt: skip
        err.finish()
        below.write(said + "\n")
        below.flush()

    sys.stdout, sys.stderr, sys.excepthook = out, err, told
    sys.argv = [module, *arguments]
    if module in _WITH_UVICORN or (module, *arguments[:1]) in _WITH_UVICORN:
        _uvicorn_in_json()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        out.finish()
        err.finish()


def _uvicorn_in_json() -> None:
    """Change the configuration that uvicorn takes where it is given none."""
    from uvicorn.config import LOGGING_CONFIG

    formatters: dict[str, Any] = LOGGING_CONFIG["formatters"]
    for name in _PLACES:
        formatters[name] = {"()": "tasks.log_lines.JsonLines"}


if __name__ == "__main__":
    main()
