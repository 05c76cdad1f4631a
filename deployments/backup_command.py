"""``tradeflows backup`` and ``tradeflows restore``: the embedded stores as one file, and a home folder of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deployments.running import HomeFolder, Traceback, prepared, told

NewFile = Annotated[Path, typer.Argument(help="Zip file to write; it must not be there yet", metavar="FILE")]
OldFile = Annotated[Path, typer.Argument(help="What tradeflows backup wrote", metavar="FILE")]
EmptyFolder = Annotated[Path, typer.Option("--home", help="Folder to restore into: empty, or not there yet")]
WithKey = Annotated[bool, typer.Option("--with-key", help="Take the file of the signing key along")]
WithPrefect = Annotated[bool, typer.Option("--with-prefect", help="Take Prefect's database (history of runs) along")]


def backup(
    file: NewFile,
    with_key: WithKey = False,
    with_prefect: WithPrefect = False,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Candles, ledger, analyses, results, models and reports into one file, while flows may go on."""
    from tasks import signing
    from tasks.backups import backup as write

    with told(traceback):
        settings = prepared(home)
        made = write(settings, file, with_key=with_key, with_prefect=with_prefect)
        console = Console(highlight=False, soft_wrap=True)
        console.print(
            f"Wrote {file}: {file.stat().st_size:,} bytes with {len(made.members):,} files of {made.size:,} bytes.",
            markup=False,
        )
        if not with_key and (settings.home / signing.KEY_FILE).is_file():
            console.print(
                f"The signing key is not in it: keep {settings.home / signing.KEY_FILE} elsewhere, or models cannot be "
                "verified after a restore.",
                markup=False,
            )
        console.print("Restore it with: tradeflows restore FILE --home EMPTY_FOLDER")


def restore(file: OldFile, home: EmptyFolder, traceback: Traceback = False) -> None:
    """Make a home folder of a backup: every file is verified before the folder appears."""
    from tasks import signing
    from tasks.restoring import restore as read

    with told(traceback):
        # no settings: they would make the folder that is to be empty
        made = read(file, home)
        console = Console(highlight=False, soft_wrap=True)
        console.print(
            f"Restored {len(made.members):,} files of {made.size:,} bytes, as of {made.made_at}, into {home}.",
            markup=False,
        )
        if not (home / signing.KEY_FILE).is_file() and not os.environ.get("TRADEFLOWS_SIGNING_KEY"):
            console.print(
                f"There was no signing key in it: set TRADEFLOWS_SIGNING_KEY, or put {signing.KEY_FILE} there, before "
                "anything else runs.",
                markup=False,
            )
        console.print(f"Verify the models with: tradeflows models verify --home {home}", markup=False)
