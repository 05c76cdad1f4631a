"""The demo: the cycle against the sandbox exchange, on sample and simulated candles."""

from __future__ import annotations

import os
from typing import Final

from rich.console import Console

from deployments import show
from tasks.settings import Settings, load_settings

DAILY: Final = ("SP500", "NASDAQ")
HOURLY: Final = ("BTCSIM", "ETHSIM", "SOLSIM")
DAILY_DAYS: Final = 7_305  # twenty years
HOURLY_DAYS: Final = 730


def run(settings: Settings, console: Console) -> None:
    """Start the sandbox, run the cycle over it, show what came of it; the sandbox ends with it."""
    from deployments.sandbox import running_sandbox

    console.print(
        "[bold]tradeflows demo[/]: real daily S&P 500 and NASDAQ history ([yellow]sample[/]) and three generated "
        "hourly markets ([magenta]simulated[/]), served by a local exchange over HTTP.\n"
    )
    with running_sandbox() as sandbox:
        os.environ["TRADEFLOWS_EXCHANGE_URL"] = sandbox.url
        settings = load_settings()
        from flows.cycle import Group, cycle
        from tasks.sources import source_of
        from trading.window import Timeframe

        with source_of(settings, "exchange") as source:
            today = source.server_time()
        groups = [
            Group(symbols=list(DAILY), timeframe=Timeframe.D1, days=DAILY_DAYS, horizon=5),
            Group(symbols=list(HOURLY), timeframe=Timeframe.H1, days=HOURLY_DAYS, horizon=12),
        ]
        console.print(f"The exchange's clock says {today:%Y-%m-%d %H:%M} UTC: that is today for the demo.\n")
        done = show.watched(lambda: cycle(groups, "exchange", today))
    show.cycled(console, done, settings)
