"""MLflow's registry, over its REST API: which version the alias names, how old it is, and its candles."""

from __future__ import annotations

import os
from typing import Any, Final

import httpx

from deployments import metrics_catalogue as catalogue
from deployments.metrics_sources import Reading, Since
from deployments.prefect_api import trusted
from trading.errors import ConfigurationError

EVERY_SECONDS: Final = 60.0
TIMEOUT_SECONDS: Final = 5.0
MOST_MODELS: Final = 50
ALIAS: Final = "champion"
PATH: Final = "/api/2.0/mlflow"


class RegistryReader:
    """Reads the MLflow server at ``url``, with the user and password, or the token, that MLflow's client takes."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def __call__(self, now: float) -> Reading:
        """See the module.

        Raises:
            ConfigurationError: the server does not answer, or refuses.
        """
        found = Reading()
        # loading the certificates takes longer than asking a server on this machine, which has none
        verify = trusted(self._url)
        with httpx.Client(
            base_url=f"{self._url}{PATH}",
            auth=_credentials(),
            headers=_token(),
            timeout=TIMEOUT_SECONDS,
            verify=verify,
            trust_env=bool(verify),
        ) as client:
            listed = _asked(client, "/registered-models/search", {"max_results": MOST_MODELS})
            # how many more there are, MLflow does not say
            found.left_out = int(bool(listed.get("next_page_token")))
            for model in listed.get("registered_models", []):
                named = {one["alias"]: str(one["version"]) for one in model.get("aliases", [])}
                if ALIAS in named:
                    _tell(client, found, str(model["name"]), named[ALIAS])
        return found


def _tell(client: httpx.Client, found: Reading, name: str, number: str) -> None:
    told = _asked(client, "/model-versions/get", {"name": name, "version": number})["model_version"]
    tags = {one["key"]: one["value"] for one in told.get("tags", [])}
    mode = str(tags.get("data_mode", "unknown"))
    found.set(catalogue.ALIAS, float(number), name)
    found.set(catalogue.MODEL_AGE, Since(int(told["creation_timestamp"]) / 1000), name, mode)
    if "trained_until_ms" in tags:
        found.set(catalogue.MODEL_DATA_AGE, Since(int(tags["trained_until_ms"]) / 1000), name, mode)


def _asked(client: httpx.Client, path: str, query: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = client.get(path, params=query)
    except httpx.TransportError as error:
        raise ConfigurationError(
            f"the MLflow server at {client.base_url} cannot be reached ({error}); see whether it runs"
        ) from error
    if answer.is_error:
        raise ConfigurationError(f"MLflow refused {path} ({answer.status_code}): {answer.text[:200]}")
    found: dict[str, Any] = answer.json()
    return found


def _credentials() -> httpx.BasicAuth | None:
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    return httpx.BasicAuth(user, password) if user and password else None


def _token() -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token and not _credentials() else {}
