"""What the MLflow pages say of a registered model and of each of its versions, beside digests and signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tasks import reports, training_tables

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tasks.training import Trained

# MLflow takes no more characters
LONGEST: Final = 5_000
# more symbols are counted
NAMED: Final = 10


def describe(client: MlflowClient, trained: Trained, tags: Mapping[str, str], horizon: int, flow_link: str) -> None:
    """Say on the pages of a new version and of its model what they are.

    Args:
        tags: of the version.
        horizon: bars that it looks ahead.
        flow_link: the page of the flow run; empty where no Prefect server stays.
    """
    client.update_model_version(trained.model, trained.version, version(trained, tags, horizon, flow_link)[:LONGEST])
    client.update_registered_model(trained.model, model(trained, tags)[:LONGEST])


def version(trained: Trained, tags: Mapping[str, str], horizon: int, flow_link: str) -> str:
    """The text about a version, in markdown: what it is of, its figures, the gate's word, where to look."""
    verdict = "made it the champion" if trained.promoted else "did not make it the champion"
    start, end = (moment[:10] for moment in tags["window"].split("/"))
    links = [f"[training run with pictures]({trained.run_link})", f"[estimators side by side]({trained.compare_link})"]
    links += [f"[Prefect run]({flow_link})"] if flow_link else []
    parts = [
        f"{trained.winner}, {horizon} bars ahead; trained on {_series(tags)}, {start} to {end}: "
        f"**{trained.data_mode} data**.",
        "Out of sample, after costs:",
        reports.markdown_table(training_tables.side_by_side(trained.scores, trained.winner)),
        " · ".join(links),
        f"The gate {verdict} when it was registered:",
        "\n".join(f"- {reason}" for reason in trained.decision),
        "The manifest, with the sha256 of every file: Source Model, Artifacts, `data/model/manifest.json`; "
        "`tradeflows models verify` holds it against the tag `manifest_sha256` and the signature.",
    ]
    return "\n\n".join(parts)


def model(trained: Trained, tags: Mapping[str, str]) -> str:
    """The text about a registered model, in markdown."""
    return (
        f"Signals for {_series(tags)}; **{trained.data_mode} data**. One version per training: `champion` speaks in "
        "analyses; `challenger` is the newest, heard for comparison only; `previous` takes over where the champion "
        "does not verify."
    )


def _series(tags: Mapping[str, str]) -> str:
    symbols = tags["symbols"].split(",")
    return f"{', '.join(symbols) if len(symbols) <= NAMED else f'{len(symbols)} symbols'} {tags['timeframe']}"
