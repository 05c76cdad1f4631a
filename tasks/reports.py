"""Prefect artifacts: what a person reads of a run.

Keys are lower case with dashes; the newest artifact of a key is the one that the Prefect pages show first.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

# a picture inside an artifact is stored in Prefect's database, so it stays small
PICTURE_LIMIT = 400_000


def markdown(key: str, text: str, description: str) -> None:
    """Write a markdown artifact of this run."""
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(markdown=text, key=key, description=description)


def table(key: str, rows: Sequence[Mapping[str, object]], description: str) -> None:
    """Write a table artifact of this run: rows that the Prefect pages can sort and search."""
    from prefect.artifacts import create_table_artifact

    create_table_artifact(table=[dict(row) for row in rows], key=key, description=description)


def picture(key: str, path: Path, description: str) -> None:
    """Show a PNG file: a markdown artifact with the picture itself inside.

    An image artifact would print its whole address below the picture.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        # the answer to an earlier request, whose files another machine has
        markdown(key, f"{description}: the picture {path} is not on this machine; its MLflow run has it", description)
        return
    if len(content) > PICTURE_LIMIT:
        markdown(key, f"{description}: {path} ({len(content)} bytes, too large to show here)", description)
        return
    address = "data:image/png;base64," + base64.b64encode(content).decode()
    markdown(key, f"![{description}]({address})", description)


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a markdown table, columns in the order of the first row."""
    if not rows:
        return "_nothing_"
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def section(title: str, lines: Sequence[str]) -> list[str]:
    """A heading with a list below it; nothing where there is nothing to list."""
    return [f"## {title}", "\n".join(f"- {line}" for line in lines)] if lines else []
