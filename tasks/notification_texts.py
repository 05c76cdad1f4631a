"""What notifications say: plain text, whatever the words in it come from.

A title is one line, a text has no control characters, and nothing in either mentions a group, makes a link of
another text, or opens a tag where the receiver reads markdown or HTML.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

TITLE: Final = 120
TEXT: Final = 3000
_CUT: Final = " …"
# stands between what would be read as one: receivers show nothing of it
_APART: Final = "\u2060"
# not those of e-mail addresses
_MENTION: Final = re.compile(r"(?<![\w*])@(?=\w)")
_TAG: Final = re.compile(r"<(?=[\w!@#/?:])")
_LABEL: Final = re.compile(r"\](?=[(\[])")
_FENCE: Final = re.compile(r"`{2,}")


class Severity(StrEnum):
    """How much a message matters; ``critical`` passes quiet hours."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0, 1 or 2."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Message:
    """Something to tell. ``key`` names what it is about: the same key is not told again within the window."""

    severity: Severity
    title: str
    text: str
    key: str

    @property
    def id(self) -> str:
        """Of its record: what becomes worse is told again."""
        return hashlib.sha256(f"{self.severity}|{self.key}".encode()).hexdigest()[:32]


def plain(text: str, longest: int = TEXT, *, one_line: bool = False) -> str:
    """The text without anything that a receiver could take for more than text; cut to ``longest`` characters."""
    kept = "".join(sign for sign in text if sign in "\n\t" or unicodedata.category(sign) not in {"Cc", "Cf", "Cs"})
    if one_line:
        kept = " ".join(kept.split())
    kept = _MENTION.sub("@" + _APART, kept)
    kept = _TAG.sub("<" + _APART, kept)
    kept = _LABEL.sub("]" + _APART, kept)
    kept = _FENCE.sub("`", kept).strip()
    return kept if len(kept) <= longest else kept[: longest - len(_CUT)] + _CUT


def of_run(kind: str, severity: Severity, flow: str, name: str, said: str, link: str, at: datetime | None) -> Message:
    """A flow run that failed, crashed, is late, or ended partly or degraded.

    Args:
        said: its state's message.
        at: when it was due, UTC.
    """
    how = {
        "failed": "failed", "crashed": "crashed", "late": "is late", "partly": "did only a part of its work",
        "degraded": "is degraded",
    }[kind]  # fmt: skip
    due = [f"It was due at {at:%Y-%m-%d %H:%M} UTC."] if at is not None else []
    hint = ["No worker has taken it; look whether one runs."] if kind == "late" else []
    lines = [f"Flow run {name} {how}.", *due, *hint, *([said] if said else []), link]
    return Message(severity, f"{flow} {how}", "\n".join(lines), f"run|{flow}|{kind}")


def of_disabled(strategy: str, reasons: Sequence[str], until: datetime) -> Message:
    """A strategy that was disabled by a hard threshold."""
    lines = [
        f"The strategy {strategy} does not speak until {until:%Y-%m-%d %H:%M} UTC:",
        *(f"- {reason}" for reason in reasons),
        f"To lift it: tradeflows review lift {strategy} --reason ...",
    ]
    return Message(Severity.CRITICAL, f"Strategy {strategy} disabled", "\n".join(lines), f"disabled|{strategy}|{until}")


def of_review(reasons: Sequence[str], now: datetime) -> Message:
    """What a review proposes."""
    lines = [*(f"- {reason}" for reason in reasons), "To decide: tradeflows review list"]
    title = f"Review: {len(reasons)} proposals to decide about"
    return Message(Severity.INFO, title, "\n".join(lines), f"review|{now:%Y-%m-%d}")


def of_held(titles: Sequence[tuple[str, int]], severity: Severity, key: str) -> Message:
    """Messages that were held back in quiet hours, by title and how often each came."""
    lines = [f"- {title}" + (f" ({count} times)" if count > 1 else "") for title, count in titles]
    return Message(severity, f"{len(lines)} messages of the quiet hours", "\n".join(lines), f"held|{key}")


def of_test(now: datetime) -> Message:
    """What ``tradeflows notify test`` sends; each is told, whenever it is sent."""
    text = "If you read this, notifications of tradeflows reach you."
    return Message(Severity.CRITICAL, "Test of notifications", text, f"test|{now.isoformat()}")
