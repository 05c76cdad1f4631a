"""``tradeflows review``: what a review proposes and whom it stopped; and a person's word on either."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from deployments import show
from deployments.running import HomeFolder, Traceback, prepared, prepared_for_flows, told
from trading.window import Timeframe

reviews = typer.Typer(help="Reviews: run one, decide about proposals, lift a disabling.", no_args_is_help=True)

Why = Annotated[str, typer.Option(help="Why; kept in the record")]


@reviews.command("run")
def review_run(
    timeframe: Annotated[str, typer.Option("--timeframe", "-t", help="Length of a bar, 1m to 1d")] = "1h",
    days: Annotated[int, typer.Option(help="How far back records reach", min=1)] = 90,
    emergency: Annotated[bool, typer.Option("--emergency", help="Only disable what must be disabled")] = False,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Look at the week: disable what crosses a hard threshold, propose the rest."""
    with told(traceback):
        bar = Timeframe.parse(timeframe)
        prepared_for_flows(home)
        from flows.review import review as flow

        found = show.watched(lambda: flow(bar, days, emergency))
        console = Console(soft_wrap=True, highlight=False)
        if found is None:
            console.print("Looked for strategies to stop; `tradeflows review list` shows those that are.")
            return
        if found.silent:
            console.print(f"Without the LLM: {found.silent}", markup=False)
        if found.assessment:
            console.print(found.assessment, markup=False)
        for one in found.proposals:
            console.print(f"  {one.action} {one.subject}: {one.reason}", markup=False)
        if not found.proposals:
            console.print("Nothing to propose.")


@reviews.command("list")
def review_list(home: HomeFolder = None, traceback: Traceback = False) -> None:
    """Proposals that nobody has decided about, and strategies that are disabled."""
    from tasks.disabled_strategies import disabled
    from tasks.reviewing import open_proposals
    from tasks.store import configured_store

    with told(traceback), configured_store(prepared(home)) as store:
        console = Console(soft_wrap=True, highlight=False)
        for one in disabled(store, datetime.now(UTC)):
            console.print(f"{one.strategy} is disabled until {one.until:%Y-%m-%dT%H:%MZ}: {'; '.join(one.reasons)}")
        for proposal in open_proposals(store):
            console.print(f"{proposal['_id']} ({proposal['origin']}): {proposal['reason']}", markup=False)
        console.print("Decide with `tradeflows review decide ID accepted|rejected --reason ...`.")


@reviews.command("decide")
def review_decide(
    proposal: Annotated[str, typer.Argument(help="Its id, such as 2026-11-21|retrain|BTCUSDT-1h")],
    decision: Annotated[str, typer.Argument(help="accepted or rejected")],
    reason: Why,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Write down what you decided about a proposal; doing it is yours, too."""
    from tasks.promotions import who
    from tasks.reviewing import decide
    from tasks.store import configured_store

    with told(traceback), configured_store(prepared(home)) as store:
        decide(store, proposal, decision, reason=reason, by=who(), now=datetime.now(UTC))
        Console(highlight=False).print(f"{proposal}: {decision}", markup=False)


@reviews.command("lift")
def review_lift(
    strategy: Annotated[str, typer.Argument(help="Strategy, such as rsi")],
    reason: Why,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Let a disabled strategy speak again."""
    from tasks.disabled_strategies import lift
    from tasks.promotions import who
    from tasks.store import configured_store

    with told(traceback), configured_store(prepared(home)) as store:
        lift(store, strategy, reason=reason, by=who(), now=datetime.now(UTC))
        Console(highlight=False).print(f"{strategy} speaks again.", markup=False)
