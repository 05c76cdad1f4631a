"""What a check of the doctor saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What one check saw. ``advice`` says what to do; empty where nothing is to be done."""

    level: Level
    check: str
    seen: str
    advice: str = ""
