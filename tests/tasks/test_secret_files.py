"""Secrets from files: every secret setting can be one, what cannot be is refused, and nothing of a secret is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from tasks.secret_files import SUFFIX, secret_fields
from tasks.settings import Settings, load_settings, secret_variables
from trading.errors import ConfigurationError

SECRET = "mongodb://u:Kq7-wholly-secret-31@db.test/x"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {name for name in os.environ if name.startswith("TRADEFLOWS_")} | secret_variables():
        monkeypatch.delenv(name, raising=False)


def test_every_secret_setting_is_known_as_one() -> None:
    fields = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert set(secret_fields(Settings)) == fields >= {"mongodb_url", "signing_key", "openai_api_key", "password"}


@pytest.mark.parametrize(
    ("field", "variable"), [(field, name) for field, names in secret_fields(Settings).items() for name in names]
)
def test_each_is_read_from_a_file_under_each_of_its_names(
    field: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv(variable + SUFFIX, str(tmp_path / "secret"))
    # as compose files leave what is not set
    monkeypatch.setenv(variable, "")
    found = getattr(load_settings(), field)
    assert isinstance(found, SecretStr)
    assert found.get_secret_value() == SECRET
    assert "wholly" not in repr(load_settings())


def test_both_ways_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv("MONGODB_URL_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("TRADEFLOWS_MONGODB_URL", "mongodb://other")
    with pytest.raises(ConfigurationError, match="MONGODB_URL_FILE and TRADEFLOWS_MONGODB_URL are both set"):
        load_settings()


def test_a_file_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 8)
    (tmp_path / "large").write_text("x" * 70_000)
    for path, why in {
        "relative": "whole path",
        str(tmp_path / "none"): "No such file",
        str(tmp_path): "Is a directory",
        str(tmp_path / "empty"): "is empty",
        str(tmp_path / "binary"): "no UTF-8 text",
        str(tmp_path / "large"): "too large",
    }.items():
        monkeypatch.setenv("TRADEFLOWS_SIGNING_KEY_FILE", path)
        with pytest.raises(ConfigurationError, match=f"TRADEFLOWS_SIGNING_KEY_FILE .*{why}"):
            load_settings()


def test_a_file_of_what_is_no_secret_is_an_unknown_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_HOME_FILE", "/x")
    with pytest.raises(ConfigurationError, match="TRADEFLOWS_HOME_FILE is not a setting"):
        load_settings()
