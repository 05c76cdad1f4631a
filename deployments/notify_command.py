"""``tradeflows notify``: who is told, and whether a message reaches them. ``tradeflows settings``: the engine's."""

from __future__ import annotations

from datetime import UTC, datetime

import typer
from rich.console import Console

from deployments.running import HomeFolder, Traceback, prepared, prepared_for_flows, told

notify = typer.Typer(help="Notifications: who is told, and a message to try it.", no_args_is_help=True)


@notify.command("list")
def notify_list(home: HomeFolder = None, traceback: Traceback = False) -> None:
    """Addresses by number and service, without what is secret in them, and the least severity of each."""
    from tasks.notification_targets import targets

    with told(traceback):
        settings = prepared(home)
        console = Console(highlight=False)
        everybody = targets(settings)
        for target in everybody:
            console.print(f"{target.name}: {target.threshold} and above", markup=False)
        if not everybody:
            console.print("Nobody is told: set TRADEFLOWS_NOTIFY_URLS, such as slack://... or mailto://...")
        elif settings.notify_quiet:
            console.print(f"Quiet hours (UTC): {settings.notify_quiet}; what is critical is told all the same.")


@notify.command("test")
def notify_test(home: HomeFolder = None, traceback: Traceback = False) -> None:
    """Send a message to every address; exit code 1 where one did not get it."""
    from tasks.notification_texts import of_test
    from tasks.notifying import notify as send
    from tasks.store import configured_store

    with told(traceback):
        settings = prepared(home)
        now = datetime.now(UTC)
        with configured_store(settings) as store:
            done = send(store, settings, of_test(now), now=now)
        said = (
            f"Delivered to {', '.join(done.targets)}."
            if done.targets
            else "Nobody is told: set TRADEFLOWS_NOTIFY_URLS."
        )
        Console(highlight=False).print(said, markup=False)


def settings(home: HomeFolder = None, traceback: Traceback = False) -> None:
    """Read the engine's strategy settings now, check them and keep them."""
    from deployments import show

    with told(traceback):
        prepared_for_flows(home)
        from flows.settings import settings as flow

        found = show.watched(flow)
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"{found.state}: {found.version}, strategies: {', '.join(found.strategies) or 'none'}")
        if found.reason:
            console.print(f"  {found.reason}", markup=False)
