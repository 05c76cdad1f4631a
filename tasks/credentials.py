"""The one password of Prefect and MLflow: what it must be like, and how the clients of both are told.

Both take it from the environment of their process: there it is given, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tasks.settings import Settings

USER: Final = "tradeflows"
VARIABLE: Final = "TRADEFLOWS_PASSWORD"
SHORTEST: Final = 12
LONGEST: Final = 128
# fewer different signs are no password, however many there are
LEAST_SIGNS: Final = 6
# what stands in templates and manuals, alone or with digits and the like around it
KNOWN: Final = frozenset({
    "admin", "administrator", "changeit", "changeme", "default", "example", "letmein", "mlflow", "passwd", "password",
    "pleasechange", "prefect", "qwerty", "qwertyuiop", "secret", "testtest", "tradeflows", "yourpassword",
    "yoursecret", "yourpasswordhere", "abcdefghijkl", "passwordpassword", "adminadmin",
})  # fmt: skip


def weakness(password: str) -> str | None:
    """What is wrong with a password, in words that do not repeat it; None where nothing is."""
    if not SHORTEST <= len(password) <= LONGEST:
        return f"needs {SHORTEST} to {LONGEST} characters and has {len(password)}"
    # MLflow reads some headers as ASCII, and a blank or a line break at an end gets lost on the way
    if not all("!" <= sign <= "~" for sign in password):
        return "may hold ASCII letters, digits and punctuation only"
    letters = "".join(sign for sign in password.lower() if sign.isalpha())
    if letters in KNOWN or len(set(password)) < LEAST_SIGNS:
        return "is one that everybody tries; make one with: openssl rand -hex 24"
    return None


def pair(settings: Settings) -> tuple[str, str] | None:
    """User and password, where one is set."""
    return (USER, settings.password.get_secret_value()) if settings.password is not None else None


def for_clients(settings: Settings) -> dict[str, str]:
    """What Prefect's and MLflow's clients must find in their environment and do not."""
    known = pair(settings)
    if known is None:
        return {}
    wanted: dict[str, str] = {}
    if not given_to_prefect(os.environ):
        wanted["PREFECT_API_AUTH_STRING"] = ":".join(known)
    if not given_to_mlflow(os.environ):
        wanted |= {"MLFLOW_TRACKING_USERNAME": known[0], "MLFLOW_TRACKING_PASSWORD": known[1]}
    return wanted


def given_to_prefect(environment: Mapping[str, str]) -> bool:
    """Whether Prefect's client has credentials in its own variables."""
    return bool(environment.get("PREFECT_API_AUTH_STRING") or environment.get("PREFECT_API_KEY"))


def given_to_mlflow(environment: Mapping[str, str]) -> bool:
    """Whether MLflow's client has credentials in its own variables."""
    named = environment.get("MLFLOW_TRACKING_USERNAME") and environment.get("MLFLOW_TRACKING_PASSWORD")
    return bool(named or environment.get("MLFLOW_TRACKING_TOKEN"))
