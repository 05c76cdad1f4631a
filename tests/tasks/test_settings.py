"""Settings: unknown names, bad values and an unprotected production are refused, secrets stay secret."""

from __future__ import annotations

import pytest

from tasks.settings import Settings, load_settings
from trading.errors import ConfigurationError


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("TRADEFLOWS_") or name in {"MONGODB_URL", "ENGINE_URL", "MLFLOW_TRACKING_URI"}:
            monkeypatch.delenv(name)


def test_defaults_need_no_environment() -> None:
    assert load_settings() == Settings()


def test_an_unknown_name_is_refused_with_the_nearest_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_EXCHANGE_ULR", "http://x")
    with pytest.raises(
        ConfigurationError, match="TRADEFLOWS_EXCHANGE_ULR is not a setting; did you mean TRADEFLOWS_EXCHANGE_URL"
    ):
        load_settings()


def test_a_bad_value_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_MAX_BAD_SHARE", "lots")
    with pytest.raises(ConfigurationError, match=r"TRADEFLOWS_MAX_BAD_SHARE: .*valid number"):
        load_settings()


def test_production_needs_database_key_and_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_ENVIRONMENT", "production")
    with pytest.raises(
        ConfigurationError, match="MONGODB_URL and TRADEFLOWS_SIGNING_KEY and TRADEFLOWS_PASSWORD must be set"
    ):
        load_settings()
    monkeypatch.setenv("MONGODB_URL", "mongodb://user:hunter2@db/x")
    monkeypatch.setenv("TRADEFLOWS_SIGNING_KEY", "")
    monkeypatch.setenv("TRADEFLOWS_PASSWORD", "hunter4-of-twelve")
    with pytest.raises(ConfigurationError, match="TRADEFLOWS_SIGNING_KEY must be set"):
        load_settings()
    monkeypatch.setenv("TRADEFLOWS_SIGNING_KEY", "hunter3")
    settings = load_settings()
    assert "hunter" not in repr(settings) + str(settings.model_dump())


def test_the_names_of_the_surrounding_services_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_URL", "http://engine:8080")
    assert load_settings().engine_url == "http://engine:8080"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().environment = "production"  # type: ignore[misc]
