"""``tradeflows models``: which versions there are, which one trades, and whether they are what was registered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deployments import show, show_models
from deployments.running import HomeFolder, Traceback, prepared, told
from trading.errors import ModelRejected

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tasks.promotions import Change
    from tasks.settings import Settings
    from tasks.store import Store

models = typer.Typer(help="Registered models: compare, promote, roll back, verify.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Model, such as BTCUSDT-1h")]
Names = Annotated[list[str] | None, typer.Argument(help="Models; none for all")]
Version = Annotated[str, typer.Argument(help="Number of the version")]
Why = Annotated[str, typer.Option(help="Why; kept in the promotion history")]


@models.command("list")
def models_list(names: Names = None, home: HomeFolder = None, traceback: Traceback = False) -> None:
    """Versions with their aliases, estimators, figures and ages, and the promotion history."""
    from tasks import promotions, registry

    with told(traceback), _opened(home) as (_, client, store):
        console = Console()
        chosen = names or sorted(model.name for model in client.search_registered_models())
        for name in chosen:
            versions = registry.versions(client, name)
            figures = {str(one.version): registry.metrics(client, str(one.run_id)) for one in versions}
            show_models.versions(console, name, versions, figures, datetime.now(UTC))
            show_models.changes(console, promotions.history(store, name))
        if not chosen:
            console.print("No models yet: start with `tradeflows train BTCUSDT` or `tradeflows demo`.")


@models.command("compare")
def models_compare(
    name: Name, first: Version, second: Version, home: HomeFolder = None, traceback: Traceback = False
) -> None:
    """Figures of two versions side by side, and whether they are of the same candles."""
    from tasks import registry

    with told(traceback), _opened(home) as (_, client, _store):
        pair = [registry.version_at(client, name, version) for version in (first, second)]
        show_models.compared(Console(), name, pair, [registry.metrics(client, str(one.run_id)) for one in pair])


@models.command("promote")
def models_promote(
    name: Name, version: Version, reason: Why, home: HomeFolder = None, traceback: Traceback = False
) -> None:
    """Make a version the champion by hand: it is verified, no gate is asked, and the history says so."""
    from tasks import promotions
    from tasks.signing import signing_key

    with told(traceback), _opened(home) as (settings, client, store):
        key, now = signing_key(settings), datetime.now(UTC)
        change = promotions.promote(
            client, store, name, version, reason=reason, who=promotions.who(), now=now, key=key
        )  # fmt: skip
        _say(change)


@models.command("rollback")
def models_rollback(name: Name, reason: Why, home: HomeFolder = None, traceback: Traceback = False) -> None:
    """Make the previous champion the champion again."""
    from tasks import promotions
    from tasks.signing import signing_key

    with told(traceback), _opened(home) as (settings, client, store):
        key, now = signing_key(settings), datetime.now(UTC)
        _say(promotions.rollback(client, store, name, reason=reason, who=promotions.who(), now=now, key=key))


@models.command("verify")
def models_verify(
    name: Annotated[str | None, typer.Argument(help="Model, such as BTCUSDT-1h; none for all")] = None,
    version: Annotated[str | None, typer.Argument(help="Number of the version; none for all")] = None,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Check every file and the signature; exit code 1 where one is not what was registered."""
    from tasks import model_files, promotions, registry
    from tasks.signing import signing_key

    with told(traceback), _opened(home) as (settings, client, store):
        key, console = signing_key(settings), Console()
        names = [name] if name is not None else sorted(model.name for model in client.search_registered_models())
        rows, refused = [], []
        for each in names:
            chosen = [registry.version_at(client, each, version)] if version else registry.versions(client, each)
            for one in chosen:
                verdict = "[green]verified[/]"
                try:
                    with model_files.verified(client, one, key):
                        pass
                except ModelRejected as error:
                    verdict = "[bold red]refused[/]"
                    refused.append(str(error))
                rows.append([each, str(one.version), show.mode(one.tags.get("data_mode", "unknown")), verdict])
            refused += promotions.strayed(client, store, each)
        console.print(show.table("Files and signatures", show_models.VERIFIED, rows, right=("version",)))
        if refused:
            raise ModelRejected("; ".join(refused))


def _say(change: Change) -> None:
    console = Console()
    console.print(
        f"[bold]{change.model}[/] version {change.to_version} is the champion now "
        f"(was {change.from_version or 'none'}; previous is {change.previous or 'none'}).",
        soft_wrap=True,
        highlight=False,
    )


@contextmanager
def _opened(home: Path | None) -> Iterator[tuple[Settings, MlflowClient, Store]]:
    from tasks import registry
    from tasks.store import configured_store

    settings = prepared(home)
    with configured_store(settings) as store:
        yield settings, registry.connect(settings), store
