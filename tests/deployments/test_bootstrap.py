"""The bootstrap's last resort, and what the lock and prefect.yaml promise."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from deployments.fetch_uv import main, wheel_address

CHECKOUT = Path(__file__).resolve().parents[2]
LOCK = (CHECKOUT / "requirements.lock").read_text()
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]

PAGE = """<html><body>
<a href="../../files/uv-0.9.9-py3-none-manylinux_2_17_x86_64.whl#sha256=aa">old</a>
<a href="../../files/uv-0.13.8-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl#sha256=bb">new</a>
<a href="../../files/uv-0.13.8-py3-none-macosx_11_0_arm64.whl#sha256=cc">mac</a>
<a href="../../files/uv-0.13.8.tar.gz#sha256=dd">source</a>
<a href="../../files/uv-0.14.0rc1-py3-none-manylinux_2_17_x86_64.whl#sha256=ee">candidate</a>
</body></html>"""


def test_the_newest_released_wheel_of_the_machine_is_chosen() -> None:
    found = wheel_address(PAGE, "https://mirror.example/simple/uv/", ("manylinux", "x86_64"))
    assert found.startswith("https://mirror.example/files/uv-0.13.8-py3-none-manylinux_2_17_x86_64")
    assert found.endswith("#sha256=bb")


def test_a_machine_without_a_wheel_is_told() -> None:
    with pytest.raises(SystemExit, match="no uv wheel for manylinux riscv64"):
        wheel_address(PAGE, "https://mirror.example/simple/uv/", ("manylinux", "riscv64"))


def test_without_an_index_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match=r"neither venv nor pip.* apt install python3-venv"):
        main(tmp_path)


def test_every_locked_package_has_hashes_and_no_address() -> None:
    assert "://" not in re.sub(r"#.*", "", LOCK)
    packages = re.findall(r"^([a-z0-9][\w.-]*)==", LOCK, re.MULTILINE)
    assert {"prefect", "mlflow", "great-expectations", "lightgbm", "ta", "pymongo"} <= set(packages)
    for entry in re.split(r"\n(?=[a-z0-9])", LOCK.strip()):
        assert "--hash=sha256:" in entry, entry[:80]


def test_the_pins_without_which_the_server_does_not_work() -> None:
    fastapi, sqlalchemy = (
        re.search(rf"^{name}==(\d+)\.(\d+)", LOCK, re.MULTILINE) for name in ("fastapi", "sqlalchemy")
    )
    assert fastapi
    assert (int(fastapi[1]), int(fastapi[2])) < (0, 151)
    assert sqlalchemy
    assert (int(sqlalchemy[1]), int(sqlalchemy[2])) < (2, 1)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: str(one["name"]))
def test_entry_points_exist_and_take_the_declared_parameters(deployment: dict[str, Any]) -> None:
    path, name = deployment["entrypoint"].split(":")
    assert (CHECKOUT / path).is_file()
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert flow.name == deployment["name"]
    # the server does not refuse an unknown name, so it is refused here; what nothing but a trigger starts has the rest
    # from its triggers
    triggers = deployment.get("triggers", [])
    given = [{}] if deployment["schedules"] else [trigger["parameters"] for trigger in triggers]
    for more in given:
        filled = {name: str(uuid4()) if "{{" in str(value) else value for name, value in more.items()}
        flow.validate_parameters(deployment.get("parameters", {}) | filled)
    assert all(schedule["timezone"] == "UTC" for schedule in deployment["schedules"])
    # a message is never dropped, nor what a program asks for, and a sweep that died holds up no other; of anything
    # else the run at work keeps its place
    dropped = {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert deployment["concurrency_limit"] == dropped or deployment["name"] in ("notify", "signals", "sweep")


def test_every_flow_is_deployed() -> None:
    modules = {path.stem for path in (CHECKOUT / "flows").glob("*.py") if "\n@flow(" in path.read_text()}
    assert modules == {deployment["name"] for deployment in DEPLOYMENTS}
