"""What ``tradeflows logs`` shows of lines that were written as JSON: text."""

from __future__ import annotations

import io
from typing import TextIO, cast

from tasks.log_lines import readable


def people(under: TextIO) -> TextIO:
    """A stream that writes lines of JSON as text into the one below."""
    return cast(TextIO, Readable(under))


class Readable(io.TextIOBase):
    """Whole lines in, the same lines out, those of JSON as text."""

    def __init__(self, under: TextIO) -> None:
        super().__init__()
        self._under = under

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Write one or several whole lines."""
        self._under.write("".join(f"{readable(one)}\n" for one in text.removesuffix("\n").split("\n")))
        return len(text)

    def flush(self) -> None:
        """Flush what is below."""
        self._under.flush()
