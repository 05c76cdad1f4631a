"""Artifacts of a run: pictures inside them, and those that are elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import reports


def test_a_picture_is_inside_its_artifact_and_one_that_is_elsewhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, str] = {}
    monkeypatch.setattr(reports, "markdown", lambda key, text, _: written.update({key: text}))
    path = tmp_path / "a.png"
    path.write_bytes(b"PNG")
    reports.picture("there", path, "Equity")
    assert written["there"] == "![Equity](data:image/png;base64,UE5H)"
    path.write_bytes(bytes(reports.PICTURE_LIMIT + 1))
    reports.picture("large", path, "Equity")
    assert written["large"] == f"Equity: {path} (400001 bytes, too large to show here)"
    path.unlink()
    reports.picture("gone", path, "Equity")
    assert written["gone"] == f"Equity: the picture {path} is not on this machine; its MLflow run has it"
