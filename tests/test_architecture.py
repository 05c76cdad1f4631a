"""The rules of the architecture that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
# each folder may import only itself and those further along
LAYERS = ("deployments", "flows", "tasks", "expectations", "ml", "trading")
# what the pure folders must not know
FORBIDDEN = {"prefect", "mlflow", "pymongo", "bson", "great_expectations", "pydantic_settings", "tasks"}
CLOCKS = re.compile(r"\b(datetime\.now|utcnow|time\.time|Timestamp\.now|date\.today)\(")


def sources(folder: str) -> list[Path]:
    return sorted((CHECKOUT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_only_go_down_the_line(folder: str) -> None:
    above = set(LAYERS[: LAYERS.index(folder)])
    wrong = {str(path.relative_to(CHECKOUT)): imported(path) & above for path in sources(folder)}
    assert sources(folder)
    assert not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize("folder", ["trading", "ml"])
def test_pure_folders_know_no_framework_and_no_clock(folder: str) -> None:
    for path in sources(folder):
        assert not imported(path) & FORBIDDEN, path
        assert not CLOCKS.search(path.read_text()), f"{path} reads the clock; take the time as an argument"


def test_flows_hold_no_pandas_and_no_pymongo() -> None:
    for path in sources("flows"):
        assert not imported(path) & {"pandas", "numpy", "pymongo", "bson", "sqlite3"}, path


def test_no_bare_or_blind_except() -> None:
    for folder in LAYERS:
        for path in sources(folder):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ExceptHandler):
                    assert node.type is not None, f"{path}:{node.lineno} catches everything"


def test_no_utils_drawer() -> None:
    for folder in LAYERS:
        assert not [path for path in sources(folder) if path.stem in {"utils", "helpers", "common", "misc"}]


def test_light_modules_do_not_pull_heavy_packages() -> None:
    """Every run is a new process: what is not needed is not imported."""
    code = (
        "import sys, tasks.settings, tasks.log, tasks.store, tasks.ledger, tasks.quarantine, tasks.sources\n"
        "heavy = {'mlflow', 'great_expectations', 'lightgbm', 'sklearn', 'matplotlib', 'numba', 'exchange_calendars'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert found.stdout.strip() == "[]"
