"""Tests marked ``scale`` start some twenty processes and take minutes: they run where ``-m scale`` asks for them."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave them out of every run that does not name the marker."""
    if "scale" in str(config.option.markexpr):
        return
    wide = [item for item in items if item.get_closest_marker("scale")]
    if wide:
        items[:] = [item for item in items if item not in wide]
        config.hook.pytest_deselected(items=wide)
