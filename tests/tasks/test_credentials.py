"""The password of Prefect and MLflow: weak ones are refused without being told, and clients find it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.credentials import for_clients, weakness
from tasks.settings import load_settings
from trading.errors import ConfigurationError

GOOD = "Zx9-kkq27Lm4:pw"
OF_CLIENTS = (
    "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)  # fmt: skip


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*OF_CLIENTS, *(name for name in os.environ if name.startswith("TRADEFLOWS_")), "MONGODB_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("Ab3-Cd4-Ef5", "12 to 128"),
        ("Ab3-" * 33, "12 to 128"),
        ("Ab3 Cd4 Ef5 Gh6", "ASCII"),
        ("Ab3-Cd4-Ef5-é", "ASCII"),
        ("Ab3-Cd4-Ef5-G\n", "ASCII"),
        ("password1234", "everybody"),
        ("Password-2026!", "everybody"),
        ("changeme1234567", "everybody"),
        ("admin1234567890", "everybody"),
        ("tradeflows2026", "everybody"),
        ("your-password-here", "everybody"),
        ("ababababababab", "everybody"),
    ],
)
def test_weak_passwords_are_refused_and_not_repeated(password: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_PASSWORD", password)
    with pytest.raises(ConfigurationError, match=f"TRADEFLOWS_PASSWORD: .*{why}") as refused:
        load_settings()
    assert password not in str(refused.value)


def test_a_password_as_openssl_makes_it_is_taken() -> None:
    assert weakness("1f0e3dad99908345f7439f8ffabdffc4") is None
    assert weakness(GOOD) is None


def test_clients_are_told_what_they_were_not_told_already(monkeypatch: pytest.MonkeyPatch) -> None:
    assert for_clients(load_settings()) == {}
    monkeypatch.setenv("TRADEFLOWS_PASSWORD", GOOD)
    assert for_clients(load_settings()) == {
        "PREFECT_API_AUTH_STRING": f"tradeflows:{GOOD}",
        "MLFLOW_TRACKING_USERNAME": "tradeflows",
        "MLFLOW_TRACKING_PASSWORD": GOOD,
    }
    monkeypatch.setenv("PREFECT_API_KEY", "of the cloud")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of another server")
    assert for_clients(load_settings()) == {}


def test_production_takes_credentials_of_other_servers_for_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRADEFLOWS_ENVIRONMENT", "production")
    monkeypatch.setenv("MONGODB_URL", "mongodb://db/x")
    monkeypatch.setenv("TRADEFLOWS_SIGNING_KEY", "k" * 40)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "a:b")
    with pytest.raises(ConfigurationError, match="TRADEFLOWS_PASSWORD must be set"):
        load_settings()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "a")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "b")
    assert load_settings().password is None


def test_an_address_that_others_reach_needs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().loopback
    monkeypatch.setenv("TRADEFLOWS_BIND", "0.0.0.0")
    with pytest.raises(ConfigurationError, match=r"TRADEFLOWS_BIND is 0\.0\.0\.0.*TRADEFLOWS_PASSWORD"):
        load_settings()
    monkeypatch.setenv("TRADEFLOWS_PASSWORD", GOOD)
    assert not load_settings().loopback
    monkeypatch.setenv("TRADEFLOWS_BIND", "somewhere")
    with pytest.raises(ConfigurationError, match="TRADEFLOWS_BIND"):
        load_settings()
