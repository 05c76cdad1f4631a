"""Settings: read once, at the edge, from ``TRADEFLOWS_*`` environment variables; frozen after.

Four variables keep the names that the surrounding services use: ``MONGODB_URL``, ``ENGINE_URL``,
``MLFLOW_TRACKING_URI`` and ``TRADEFLOWS_SIGNING_KEY``. Secrets are ``SecretStr`` and never printed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tasks.addresses import Access
from trading.errors import ConfigurationError

PREFIX: Final = "TRADEFLOWS_"
# read by the Makefile, the bootstrap and the tests, never by the program
FOREIGN: Final = frozenset({"TRADEFLOWS_SHARED"})


class Settings(BaseSettings):
    """Everything that differs from one machine to the next."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    environment: Literal["development", "production"] = Field(
        "development", description="production refuses to start without database URL and signing key"
    )
    home: Path = Field(Path(".tradeflows"), description="folder of the embedded store, reports and local databases")

    exchange_url: str = Field("https://api.binance.com", description="Binance-style REST API")
    mirror_url: str | None = Field(None, description="a second Binance-style REST API, to fall back to or compare with")
    engine_url: str | None = Field(
        None,
        validation_alias=AliasChoices("TRADEFLOWS_ENGINE_URL", "ENGINE_URL"),
        description="execution engine that serves /api/market/chart/{symbol}/{timeframe}",
    )
    candle_folder: Path | None = Field(None, description="folder of <symbol>_<timeframe>.parquet or .csv files")

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="hosts or networks that sources may be at, with commas; empty: any (in production, any public)"
    )
    source_timeout: float = Field(10.0, gt=0, le=120, description="seconds to wait for a source between two bytes")
    source_pause: float = Field(
        0.5, gt=0, le=60, description="seconds before the first repeat of a request; then doubled"
    )
    exchange_weight_per_minute: int = Field(6000, ge=100, description="request weight an exchange allows in a minute")
    engine_requests_per_minute: int = Field(600, ge=100, description="requests that the engine is sent in a minute")
    price_tolerance: float = Field(
        0.01, gt=0, lt=1, description="median relative difference of closes above which two sources disagree"
    )
    circuit_failures: int = Field(5, ge=1, description="failures in a row after which a source is left alone")
    circuit_seconds: float = Field(30.0, gt=0, description="for how long, the first time")

    mongodb_url: SecretStr | None = Field(
        None, validation_alias=AliasChoices("TRADEFLOWS_MONGODB_URL", "MONGODB_URL"), description="MongoDB server"
    )
    signing_key: SecretStr | None = Field(None, description="signs model manifests; MLflow never sees it")
    mlflow_tracking_uri: str | None = Field(
        None,
        validation_alias=AliasChoices("TRADEFLOWS_MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI"),
        description="MLflow server; SQLite under home where it is not set",
    )
    mlflow_ui_url: str = Field("http://127.0.0.1:5000", description="where people open MLflow; used in links")

    max_bad_share: float = Field(
        0.0, ge=0, lt=1, description="share of impossible rows above which a batch is refused as a whole"
    )
    log_format: Literal["text", "json"] = Field("text", description="shape of the log lines")

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @property
    def access(self) -> Access:
        """Which hosts sources may be at."""
        return Access(self.allowed_hosts, public_only=self.environment == "production")


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process.

    Args:
        environment: instead of ``os.environ``, for tests that check the refusal of unknown keys.

    Raises:
        ConfigurationError: an unknown ``TRADEFLOWS_`` variable, a value that does not fit, or production
            without database URL or signing key. The message names the variable, never a secret's value.
    """
    _refuse_unknown(os.environ if environment is None else environment)
    try:
        settings = Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        raise ConfigurationError("; ".join(_sentence(problem) for problem in error.errors())) from None
    if settings.environment == "production":
        missing = [
            name
            for name, value in (("MONGODB_URL", settings.mongodb_url), ("TRADEFLOWS_SIGNING_KEY", settings.signing_key))
            if value is None or not value.get_secret_value()
        ]
        if missing:
            raise ConfigurationError(f"TRADEFLOWS_ENVIRONMENT is production, and {' and '.join(missing)} must be set")
    return settings


def variable(field: str) -> str:
    """The environment variable that sets ``field``."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[-1]) if isinstance(alias, AliasChoices) else PREFIX + field.upper()


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | FOREIGN
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known - FOREIGN))}"
            raise ConfigurationError(f"{name} is not a setting; {hint}")


def _sentence(problem: Mapping[str, object]) -> str:
    location = problem["loc"]
    field = str(location[0]) if isinstance(location, tuple) and location else "settings"
    name = variable(field) if field in Settings.model_fields else field
    # the value itself stays out of the message: it may be a secret
    return f"{name}: {problem['msg']}"
