"""Settings: read once, at the edge, from ``TRADEFLOWS_*`` environment variables; frozen after.

Four variables keep the names that the surrounding services use: ``MONGODB_URL``, ``ENGINE_URL``,
``MLFLOW_TRACKING_URI`` and ``TRADEFLOWS_SIGNING_KEY``. Secrets are ``SecretStr`` and never printed; each can be read
from a file that its variable with ``_FILE`` names (``tasks.secret_files``).
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from tasks import credentials
from tasks.addresses import Access
from tasks.secret_files import SUFFIX, SecretFiles, secret_fields
from trading.errors import ConfigurationError

PREFIX: Final = "TRADEFLOWS_"
# read by the Makefile, the bootstrap and the tests, never by the program
FOREIGN: Final = frozenset({"TRADEFLOWS_SHARED"})
# how templates of environment files spell a key that is still to be filled in
PLACEHOLDER: Final = "your-"
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Everything that differs from one machine to the next."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    environment: Literal["development", "production"] = Field(
        "development", description="production refuses to start without database URL, signing key and password"
    )
    home: Path = Field(Path(".tradeflows"), description="folder of the embedded store, reports and local databases")

    password: SecretStr | None = Field(
        None,
        description="of the user tradeflows at Prefect and MLflow; where it is set the local stack asks for it",
    )
    bind: str = Field(
        "127.0.0.1",
        description="address that Prefect, MLflow and serve-model listen at; beyond loopback only with a password",
    )

    exchange_url: str = Field("https://api.binance.com", description="Binance-style REST API")
    mirror_url: str | None = Field(None, description="a second Binance-style REST API, to fall back to or compare with")
    engine_url: str | None = Field(
        None,
        validation_alias=AliasChoices("TRADEFLOWS_ENGINE_URL", "ENGINE_URL"),
        description="execution engine that serves /api/market/chart/{symbol}/{timeframe}",
    )
    candle_folder: Path | None = Field(None, description="folder of <symbol>_<timeframe>.parquet or .csv files")
    candle_calendar: str = Field(
        "24/7", description="when the markets of those files trade: 24/7, or an exchange's calendar such as XNYS"
    )

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

    llm: bool = Field(False, description="on: the LLM is one of the analysts, where there is a key")
    llm_url: str = Field(
        "https://api.openai.com/v1",
        validation_alias=AliasChoices("TRADEFLOWS_LLM_URL", "OPENAI_BASE_URL"),
        description="endpoint that speaks the OpenAI chat protocol, up to /v1",
    )
    llm_model: str = Field("gpt-4o-mini", min_length=1, description="model to ask")
    llm_prices: dict[str, tuple[Price, Price]] = Field(
        {"gpt-4o-mini": (0.150, 0.600)},
        description='JSON: US dollars per million prompt and completion tokens by model, such as {"m": [0.15, 0.6]}',
    )
    llm_max_tokens: int = Field(1200, ge=64, le=100_000, description="tokens that a reply may have")
    llm_temperature: float = Field(0.0, ge=0, le=2, description="0: the likeliest reply")
    llm_timeout: float = Field(60.0, gt=0, le=600, description="seconds that a reply may take")
    llm_patience: float = Field(120.0, ge=0, le=3600, description="seconds to wait for a key that may be used")
    llm_key_pause: float = Field(20.0, ge=0, le=3600, description="seconds between two calls of one key")
    llm_requests_per_minute: int = Field(60, ge=1, description="requests that one key may make in a minute")
    llm_daily_budget: float = Field(1.0, ge=0, le=1e6, description="US dollars that a UTC day may cost")
    llm_monthly_budget: float = Field(10.0, ge=0, le=1e6, description="US dollars that a UTC month may cost")
    openai_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("TRADEFLOWS_OPENAI_API_KEY", "OPENAI_API_KEY"), description="key of the LLM"
    )
    openai_backup_api_keys: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("TRADEFLOWS_OPENAI_BACKUP_API_KEYS", "OPENAI_BACKUP_API_KEYS"),
        description="further keys, with commas",
    )

    engine_settings_path: str = Field(
        "/api/settings/strategy",
        pattern=r"^(/[\w./-]+)?$",
        description="where the engine tells its strategy settings; empty: it is not asked",
    )
    engine_settings_hours: float = Field(
        6.0, gt=0, le=720, description="hours after which the engine's settings are too old to analyse with"
    )
    notify_urls: SecretStr | None = Field(
        None,
        description="apprise addresses with spaces between them; critical=slack://... gets that severity and above",
    )
    notify_threshold: Literal["info", "warning", "critical"] = Field(
        "info", description="least severity for addresses that say none themselves"
    )
    notify_minutes: float = Field(60.0, ge=0, le=10_080, description="minutes in which the same is not told again")
    notify_quiet: str = Field(
        "",
        pattern=r"^(([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d)?$",
        description="quiet hours in UTC, such as 22:00-06:00, in which only what is critical is told",
    )
    notify_timeout: float = Field(10.0, gt=0, le=120, description="seconds that one address may take")

    dask_address: str | None = Field(
        None,
        validation_alias=AliasChoices("TRADEFLOWS_DASK_ADDRESS", "DASK_SCHEDULER_ADDRESS"),
        description="scheduler of a Dask cluster for wide backtests, such as tcp://host:8786; threads where not set",
    )

    max_bad_share: float = Field(
        0.0, ge=0, lt=1, description="share of impossible rows above which a batch is refused as a whole"
    )
    log_format: Literal["text", "json"] = Field("text", description="shape of the log lines: text or json")

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("password")
    @classmethod
    def _strong(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        wrong = credentials.weakness(value.get_secret_value())
        if wrong:
            raise ValueError(f"the password {wrong}")
        return value

    @field_validator("bind")
    @classmethod
    def _address(cls, value: str) -> str:
        return str(ipaddress.IPv4Address(value))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, files of secrets, the environment."""
        return init_settings, SecretFiles(settings_cls), env_settings

    @property
    def loopback(self) -> bool:
        """Whether the stack's servers can be reached from this machine alone."""
        return ipaddress.IPv4Address(self.bind).is_loopback

    @property
    def llm_keys(self) -> tuple[SecretStr, ...]:
        """The keys of the LLM in their order, each once; placeholders such as ``your-key-here`` are none."""
        told = [self.openai_api_key, self.openai_backup_api_keys]
        words = [word.strip() for one in told if one is not None for word in one.get_secret_value().split(",")]
        real = [word for word in words if word and not word.lower().startswith(PLACEHOLDER)]
        return tuple(map(SecretStr, dict.fromkeys(real)))

    @property
    def access(self) -> Access:
        """Which hosts sources may be at."""
        return Access(self.allowed_hosts, public_only=self.environment == "production")


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process.

    Args:
        environment: instead of ``os.environ``, for tests that check the refusal of unknown keys.

    Raises:
        ConfigurationError: an unknown ``TRADEFLOWS_`` variable, a value that does not fit, a file of a secret that
            cannot be read, an address beyond loopback without a password, or production without database URL,
            signing key or password. The message names the variable, never a secret's value.
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
        # servers of others may have passwords of their own
        if settings.password is None and not (
            credentials.given_to_prefect(os.environ) and credentials.given_to_mlflow(os.environ)
        ):
            missing.append(credentials.VARIABLE)
        if missing:
            raise ConfigurationError(f"TRADEFLOWS_ENVIRONMENT is production, and {' and '.join(missing)} must be set")
    if not settings.loopback and settings.password is None:
        raise ConfigurationError(
            f"TRADEFLOWS_BIND is {settings.bind}, where others reach it; set {credentials.VARIABLE}, too, or unset it"
        )
    return settings


def known_variables() -> frozenset[str]:
    """Every variable with our prefix that means something."""
    secrets = {name + SUFFIX for names in secret_fields(Settings).values() for name in names}
    ours = {name for name in secrets if name.startswith(PREFIX)}
    return frozenset({PREFIX + name.upper() for name in Settings.model_fields} | ours | FOREIGN)


def secret_variables() -> frozenset[str]:
    """Every variable that holds a secret of ours, or names its file."""
    names = {name for names in secret_fields(Settings).values() for name in names}
    return frozenset(names | {name + SUFFIX for name in names})


def variable(field: str) -> str:
    """The environment variable that sets ``field``."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[-1]) if isinstance(alias, AliasChoices) else PREFIX + field.upper()


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = known_variables()
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
