"""``tradeflows trace``: from a signal back to its candles, every digest on the way worked out again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from deployments.running import HomeFolder, Traceback, prepared, told, utc
from deployments.show import FORMATS

if TYPE_CHECKING:
    from tasks.traces import Candles, ModelVersion, Run, Said, Trace

VERDICTS: Final = {
    "equal": "equal to the store",
    "corrected": "equal once the late corrections since are undone",
    "other": "NOT what was written down",
    "unknown": "not written down at the time",
}
# of the ledger's records, and of chunks and flow runs, so many are spelled out
SHOWN: Final = 5
WIDTH: Final = 9

Asked = Annotated[
    str,
    typer.Argument(
        help="Id of an analysis, such as BTCUSDT/1h/2026-11-21T10:00:00Z; a symbol; or a flow run", metavar="ID"
    ),
]
AtTime = Annotated[
    datetime | None,
    typer.Option("--at", help="Of a symbol: the analysis that stood then (UTC)", formats=FORMATS, metavar="DATE"),
]
Bars = Annotated[str | None, typer.Option("--timeframe", "-t", help="Of a symbol: of these bars, such as 1h")]


def trace(
    asked: Asked,
    at: AtTime = None,
    timeframe: Bars = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole way as JSON, every record of the ledger")] = False,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Signal, analysts, model, training, dataset, ledger, candles: with ids, links and digests.

    Exit code 1 where a part of the way is gone, or is not what was written down.
    """
    with told(traceback):
        settings = prepared(home)
        from deployments import stack_state
        from tasks import registry
        from tasks.analysis_lookup import find_analysis
        from tasks.store import configured_store
        from tasks.tracing import trace as go_back

        state = stack_state.read(settings.home.resolve())
        running = state if state is not None and state.supervised else None
        api = os.environ.get("PREFECT_API_URL") or (running.prefect_api if running else None)
        if running is not None and running.parts["mlflow"].url and not os.environ.get("TRADEFLOWS_MLFLOW_UI_URL"):
            settings = settings.model_copy(update={"mlflow_ui_url": running.parts["mlflow"].url})
        with configured_store(settings) as store:
            stored = find_analysis(store, asked, at=utc(at), timeframe=timeframe)
            found = go_back(
                store,
                stored,
                settings,
                client=lambda: registry.connect(settings),
                page_of=lambda run: flow_run_page(api, run),
            )
        if as_json:
            typer.echo(json.dumps(plain(found), indent=1))
        else:
            console = Console(highlight=False, soft_wrap=True)
            for line in lines(found):
                console.print(line, markup=False)
        if found.findings:
            raise typer.Exit(1)


def flow_run_page(api: str | None, run: str) -> str | None:
    """The page of a flow run, where it is known which server has it."""
    pages = os.environ.get("PREFECT_UI_URL") or (api.rstrip("/").removesuffix("/api") if api else None)
    return f"{pages}/runs/flow-run/{run}" if pages else None


def plain(value: Any) -> Any:
    """A trace as JSON values: times in ISO 8601."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value.value if isinstance(value, Enum) else value


def lines(found: Trace) -> Iterator[str]:
    """A trace for people, the signal first and the candles last."""
    said = f"{found.signal} {found.confidence:.2f} at {found.price:g}"
    yield f"{found.symbol} {found.timeframe}: {said} ({found.data_mode})"
    yield _line("id", found.id)
    yield _line("bar", f"closed {_stamp(found.bar_close)}; analysed {_stamp(found.made_at)}")
    yield _line("run", _run(found.run) if found.run else "outside Prefect")
    for one in found.said:
        yield _line("analyst", _said(one))
    for name, why in found.absent.items():
        yield _line("absent", f"{name}: {why or 'it did not say why'}")
    if found.settings_version:
        yield _line("settings", found.settings_version)
    if found.model is not None:
        yield from _model(found.model)
    else:
        yield _line("model", "none had a say")
    if found.dataset is not None:
        yield _line("dataset", f"{found.dataset.digest} ({found.dataset.data_mode}): {VERDICTS[found.dataset.verdict]}")
        for held in found.dataset.candles:
            yield from _candles("learned", held)
    if found.candles is not None:
        yield from _candles("seen", found.candles)
    for finding in found.findings:
        yield _line("FINDING", finding)
    if not found.findings:
        yield _line("", "Every digest on the way is what was written down.")


def _model(model: ModelVersion) -> Iterator[str]:
    yield _line("model", f"{model.name} version {model.version} ({model.estimator})  {model.link}")
    if model.degraded:
        yield _line("", f"degraded: {model.degraded}")
    if model.champion_since is not None:
        yield _line("", f"champion since {_stamp(model.champion_since)} by {model.champion_by}")
    training = model.training
    if training is None:
        return
    yield _line("training", f"MLflow run {training.run_id}  {training.link or ''}".rstrip())
    if training.flow is not None:
        yield _line("", _run(training.flow))
    until = f"; candles until {_stamp(training.trained_until)}" if training.trained_until else ""
    yield _line("", f"code {training.code_version or 'of no version'}{until}")


def _candles(name: str, held: Candles) -> Iterator[str]:
    yield _line(name, f"{held.window}: {held.rows:,} candles, digest {(held.digest or held.stored_digest)[:16]}")
    yield _line("", VERDICTS[held.verdict])
    wrong = sum(one.verdict == "other" for one in held.ledger)
    counted = f"{len(held.ledger)} approved records, {wrong or 'none'} not as recorded"
    yield _line("ledger", f"{counted}; {len(held.runs)} flow runs ingested them")
    for one in held.ledger[-SHOWN:]:
        run = one.run.id if one.run else "outside Prefect"
        yield _line("", f"{one.window} {one.rows:,} rows {one.digest[:16]} from {one.source}, run {run}")
    if len(held.ledger) > SHOWN:
        yield _line("", f"... and {len(held.ledger) - SHOWN} earlier ones; --json has them all")
    for chunk in held.chunks[-SHOWN:]:
        read = f", read at revision {chunk.read_at_rev}" if chunk.read_at_rev is not None else ""
        told = f"{chunk.id} revision {chunk.rev}{read}, {chunk.rows:,} rows {chunk.digest[:16]}"
        yield _line("chunk", f"{told}: {VERDICTS[chunk.verdict]}")
    if len(held.chunks) > SHOWN:
        yield _line("", f"... and {len(held.chunks) - SHOWN} earlier ones")


def _said(one: Said) -> str:
    weight = "compared only" if one.weight is None else f"weight {one.weight:g}"
    return f"{one.analyst} {one.signal} {one.confidence:.2f} ({weight})"


def _run(run: Run) -> str:
    return f"flow run {run.id}  {run.link or ''}".rstrip()


def _line(name: str, text: str) -> str:
    return f"  {name:<{WIDTH}} {text}"


def _stamp(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%SZ}"
