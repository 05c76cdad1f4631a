"""The page of all settings, made of their declarations: ``python -m deployments.manual`` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from tasks.settings import PREFIX, Settings

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
HEAD: Final = """# Settings

Read once, from the environment, by each process: what runs keeps what it was started with, until `tradeflows down` and
`up`. An unknown `TRADEFLOWS_` variable is refused. A secret (password, keys and addresses with them) can be in a file
instead: `MONGODB_URL_FILE=/run/secrets/mongodb`, and so for each ([security](../SECURITY.md)). Variables of Prefect and
MLflow (`PREFECT_API_URL`, ...) count as they do there. This page is made of `tasks/settings.py` by `python -m
deployments.manual`.

| variable | default | meaning |
|---|---|---|
"""


def page() -> str:
    """The whole page, Markdown."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return HEAD + "\n".join(rows) + "\n"


def variables(name: str, field: FieldInfo) -> tuple[str, ...]:
    """What a setting may be called in the environment, the usual name first."""
    alias = field.validation_alias
    names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [PREFIX + name.upper()]
    # the names that other services use are the ones people know
    return tuple(sorted(names, key=lambda one: one.startswith(PREFIX)))


def _row(name: str, field: FieldInfo) -> str:
    names = " or ".join(f"`{one}`" for one in variables(name, field))
    meaning = (field.description or "").replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
    return f"| {names} | {_default(field.get_default())} | {meaning} |"


def _default(value: Any) -> str:
    if value is None or value in ("", (), {}):
        return "none"
    if isinstance(value, bool):
        return "`on`" if value else "`off`"
    if isinstance(value, dict):
        value = json.dumps(value)
    if isinstance(value, float):
        value = f"{value:g}"
    return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page())
