"""The champion in use: verified, loaded, and asked only about what it has not seen.

A champion that does not verify is not parsed, and not used: ``previous`` takes its place, the result says
``degraded``, an error is logged and the event ``tradeflows.model.rejected`` goes out.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING, Final

from tasks import log, mlflow_pages, model_files, promotions, registry
from tasks.settings import Settings
from tasks.signing import signing_key
from tasks.training_runs import UNSEEN
from trading.errors import ModelRejected

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from ml.model import Model
    from tasks.store import Store

REJECTED: Final = "tradeflows.model.rejected"
# the tags with the sha256 of the run's files UNSEEN and REFERENCE
UNSEEN_SHA256: Final = "unseen_sha256"
REFERENCE_SHA256: Final = "reference_sha256"


@dataclass(frozen=True, eq=False)
class Champion:
    """A verified model version and where it came from.

    ``degraded`` is None for the champion itself; otherwise it says why this is another version.
    """

    model: Model
    name: str
    version: str
    run_id: str
    estimator: str
    trained_until_ms: int
    manifest_sha256: str
    link: str
    degraded: str | None = None
    unseen_sha256: str | None = None
    reference_sha256: str | None = None


def champion(
    client: MlflowClient, settings: Settings, name: str, *, store: Store | None = None, now: datetime | None = None
) -> Champion:
    """The champion of a registered model, or ``previous`` where the champion does not verify.

    Args:
        store: given where there is one: aliases that left the promotion history are put back first, and
            a fall-back is recorded there.
        now: when, for that record.

    Raises:
        ModelNotFound: no champion.
        ModelRejected: neither the champion nor the previous version is what was registered.
        ConfigurationError: there is no signing key to verify with.
    """
    key = signing_key(settings)
    if store is not None:
        _put_back(client, store, name)
    named = registry.require_champion(client, name)
    previous = registry.version_of(client, name, registry.PREVIOUS)
    refused: list[str] = []
    for version in (named, previous):
        if version is None:
            continue
        try:
            found = load(client, settings, version, key)
        except ModelRejected as error:
            refused.append(f"version {version.version} was refused: {error}")
            alert(name, str(version.version), refused)
            continue
        if not refused:
            return found
        degraded = f"{refused[0]}; version {found.version} ({registry.PREVIOUS}) takes its place"
        if store is not None and now is not None:
            promotions.fell_back(
                store, name, str(named.version), found.version, reason=refused[0], who=promotions.who(), now=now
            )
        return replace(found, degraded=degraded)
    raise ModelRejected(f"no version of {name} can be used: {'; '.join(refused)}")


def _put_back(client: MlflowClient, store: Store, name: str) -> None:
    """See to it that the alias names the version that the promotion history says."""
    last = promotions.latest(store, name)
    named = registry.version_of(client, name, registry.CHAMPION)
    version = str(named.version) if named is not None else "none"
    # somebody at work on it holds the lease: after waiting for it there is nothing left to move
    if last is not None and last.to_version != version and promotions.settle(client, store, name):
        said = f"the alias {registry.CHAMPION} named version {version} and the promotion history {last.to_version}"
        alert(name, version, [f"{said}; it was put back"])


def load(client: MlflowClient, settings: Settings, version: ModelVersion, key: bytes) -> Champion:
    """A version whose signature and files were verified before anything of it was parsed.

    Raises:
        ModelRejected: says which tag or file is not what was registered.
    """
    from ml import artifact

    with model_files.verified(client, version, key) as folder:
        sha256 = model_files.required_tag(version, model_files.MANIFEST_SHA256)
        model = artifact.load(folder, sha256)
    return Champion(
        model=model,
        name=str(version.name),
        version=str(version.version),
        run_id=str(version.run_id),
        estimator=model_files.required_tag(version, "estimator"),
        trained_until_ms=int(model_files.required_tag(version, "trained_until_ms")),
        manifest_sha256=sha256,
        link=mlflow_pages.version_link(settings, str(version.name), str(version.version)),
        unseen_sha256=version.tags.get(UNSEEN_SHA256),
        reference_sha256=version.tags.get(REFERENCE_SHA256),
    )


def alert(name: str, version: str, reasons: Sequence[str]) -> None:
    """Say that a version was refused: an error in the log, and an event where there is a Prefect server."""
    log.logger().error("model rejected", model=name, version=version, reasons="; ".join(reasons))
    from prefect.settings import PREFECT_API_URL

    # an event alone is not worth the start of a server
    if log.flow_run_id() is None and not PREFECT_API_URL.value():
        return
    from prefect.events import emit_event

    emit_event(
        REJECTED,
        resource={"prefect.resource.id": f"tradeflows.model.{name}", "prefect.resource.name": name},
        payload={"model": name, "version": version, "reasons": list(reasons), "flow_run_id": log.flow_run_id()},
    )


def unseen_targets(
    client: MlflowClient, chosen: Champion, symbol: str, candles: pd.DataFrame
) -> tuple[np.ndarray, int]:
    """The champion's target positions on bars that it was not trained on.

    Bars inside its training span take the signals that the walk-forward gave them, each from a model
    fitted on earlier bars only; later bars take the champion's own. Each signal is held for the label's
    horizon or until the opposite one.

    Raises:
        ModelRejected: the file with those signals is not what was registered.

    Returns:
        int8 targets aligned with ``candles``, and the position of the first bar with a signal of either
        kind (``len(candles)`` if there is none). Bars before it are not to be traded at all.
    """
    import numpy as np
    import pandas as pd

    from trading.candles import open_times_ms
    from trading.strategies import hold

    opens = open_times_ms(candles)
    signals = np.zeros(len(candles), dtype=np.int8)
    known = np.zeros(len(candles), dtype=bool)
    table = pd.read_parquet(BytesIO(signed_file(client, chosen, UNSEEN, chosen.unseen_sha256)))
    mine = table[table["symbol"] == symbol]
    at = np.searchsorted(opens, mine["decided_at"].to_numpy())
    inside = at < len(opens)
    inside[inside] &= opens[at[inside]] == mine["decided_at"].to_numpy()[inside]
    signals[at[inside]] = mine["signal"].to_numpy()[inside]
    known[at[inside]] = True
    # a bar whose fill lies after the last label the model was trained on is news to it
    fresh = np.zeros(len(candles), dtype=bool)
    fresh[:-1] = opens[1:] > chosen.trained_until_ms
    fresh[-1:] = opens[-1:] > chosen.trained_until_ms
    if fresh.any() and len(candles) >= chosen.model.rows_needed:
        signals[fresh] = chosen.model.targets(candles)[fresh]
        known |= fresh
    first = int(np.argmax(known)) if known.any() else len(candles)
    return hold(signals, chosen.model.label.horizon), first


def signed_file(client: MlflowClient, chosen: Champion, name: str, wanted: str | None) -> bytes:
    """A file of the run that a version came from, held to the sha256 that the version's signed tags say.

    Args:
        wanted: the sha256; None where the version says none.

    Raises:
        ModelRejected: it is another file.
    """
    data = registry.run_file(client, chosen.run_id, name).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    # the tag is signed like the others: nobody can take it off
    if wanted is not None and not hmac.compare_digest(found, wanted):
        raise ModelRejected(
            f"{name} of {chosen.name} version {chosen.version} has sha256 {found} and {wanted} was registered; "
            "train again"
        )
    return data
