"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real candles and oracles that may stand beside the checkout; skips where it does not."""
    folder = Path(os.environ.get("TRADEFLOWS_SHARED", CHECKOUT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real candles and oracles are not here ({folder}); set TRADEFLOWS_SHARED to the folder")
    return folder
