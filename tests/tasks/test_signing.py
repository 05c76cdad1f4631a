"""The signing key and the signature: who knows the key can sign, and nobody else, and it is told to nobody."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.settings import Settings, load_settings
from tasks.signing import KEY_FILE, SIGNATURE, require_signature, signature, signing_key
from trading.errors import ConfigurationError, ModelRejected

KEY = b"0123456789abcdef0123456789abcdef"


@dataclass
class Version:
    """What of MLflow's model version is signed."""

    name: str = "BTCUSDT-1h"
    version: str = "3"
    run_id: str = "run"
    tags: dict[str, str] = field(default_factory=lambda: {"manifest_sha256": "ab", "estimator": "lightgbm"})

    def signed(self, key: bytes = KEY) -> Any:
        known = {"name": self.name, "version": self.version, "run_id": self.run_id}
        self.tags[SIGNATURE] = signature(key, **known, tags=self.tags)
        return self


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    def build(**variables: str) -> Settings:
        for name in ("SIGNING_KEY", "ENVIRONMENT", "HOME"):
            monkeypatch.delenv(f"TRADEFLOWS_{name}", raising=False)
        monkeypatch.setenv("TRADEFLOWS_HOME", str(tmp_path / "home"))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return load_settings()

    return build


def test_the_signature_is_the_hmac_it_says() -> None:
    statement = {"name": "m", "run_id": "r", "tags": {"a": "ä"}, "version": "1"}
    text = b"tradeflows model version 1\0" + json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    assert signature(KEY, name="m", version="1", run_id="r", tags={"a": "ä"}) == hmac.digest(KEY, text, "sha256").hex()


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.tags.update(estimator="logistic"),
        lambda v: v.tags.update(more="1"),
        lambda v: v.tags.pop("estimator"),
        lambda v: setattr(v, "version", "4"),
        lambda v: setattr(v, "name", "ETHUSDT-1h"),
        lambda v: setattr(v, "run_id", "another"),
        lambda v: v.tags.update({SIGNATURE: v.tags[SIGNATURE].upper()}),
        lambda v: v.tags.update({SIGNATURE: "ä"}),
        lambda v: v.tags.pop(SIGNATURE),
        lambda v: v.signed(b"another key of thirty-two bytes."),
    ],
)
def test_whatever_else_is_said_does_not_verify_and_the_key_is_not_told(change: Callable[[Any], object]) -> None:
    version = Version().signed()
    require_signature(KEY, version)
    change(version)
    with pytest.raises(ModelRejected) as told:
        require_signature(KEY, version)
    assert KEY.decode() not in str(told.value)


def test_what_mlflow_says_of_a_version_is_not_ours_to_sign() -> None:
    version = Version().signed()
    version.tags["mlflow.source"] = "anything"
    require_signature(KEY, version)


TAGS = st.dictionaries(st.text(min_size=1, max_size=4), st.text(max_size=4), max_size=4)


@given(
    one=st.tuples(st.text(max_size=4), st.text(max_size=4), TAGS),
    two=st.tuples(st.text(max_size=4), st.text(max_size=4), TAGS),
)
def test_two_statements_have_one_signature_only_if_they_are_one(
    one: tuple[str, str, dict[str, str]], two: tuple[str, str, dict[str, str]]
) -> None:
    def signed(of: tuple[str, str, dict[str, str]]) -> str:
        return signature(KEY, name=of[0], version=of[1], run_id="r", tags=of[2])

    plain = [(a, b, {tag: value for tag, value in c.items() if tag != SIGNATURE}) for a, b, c in (one, two)]
    assert (signed(one) == signed(two)) == (plain[0] == plain[1])


def test_the_configured_key_is_used_and_a_short_one_refused_without_being_told(
    settings: Callable[..., Settings],
) -> None:
    assert signing_key(settings(TRADEFLOWS_SIGNING_KEY=KEY.decode())) == KEY
    with pytest.raises(ConfigurationError, match="has 7 bytes and needs at least 16") as told:
        signing_key(settings(TRADEFLOWS_SIGNING_KEY="hunter2"))
    assert "hunter2" not in str(told.value)


def test_production_makes_no_key_of_its_own(settings: Callable[..., Settings], tmp_path: Path) -> None:
    production = settings().model_copy(update={"environment": "production"})
    with pytest.raises(ConfigurationError, match="TRADEFLOWS_SIGNING_KEY must be set"):
        signing_key(production)
    assert not (tmp_path / "home" / KEY_FILE).exists()


def test_development_makes_one_key_that_only_its_owner_can_read(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    chosen = settings()
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: signing_key(chosen), range(16)))
    path = tmp_path / "home" / KEY_FILE
    assert keys == {path.read_bytes()}
    assert len(path.read_bytes()) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert signing_key(settings()) in keys
    assert signing_key(settings(TRADEFLOWS_HOME=str(tmp_path / "other"))) not in keys


def test_a_key_file_that_others_can_read_or_that_is_a_link_is_refused(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    chosen = settings()
    signing_key(chosen)
    path = tmp_path / "home" / KEY_FILE
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="mode 0640"):
        signing_key(chosen)
    path.chmod(0o600)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="cannot be made or read"):
        signing_key(chosen)
    path.unlink()
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    with pytest.raises(ConfigurationError, match="holds no key"):
        signing_key(chosen)
