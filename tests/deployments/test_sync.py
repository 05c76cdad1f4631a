"""What prefect.yaml declares: it is read strictly, every entry point and parameter fits, and differences are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deployments import declared
from deployments.sync import Change, differences, limits
from tasks.settings import load_settings
from trading.errors import ConfigurationError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
BLOCK = {
    "name": "ingest",
    "description": "x",
    "entrypoint": "flows/ingest.py:ingest",
    "tags": ["tradeflows"],
    "work_pool": {"name": "tradeflows"},
    "parameters": {"symbols": ["BTCUSDT"], "timeframe": "1h"},
    "schedules": [{"slug": "hourly", "cron": "2 * * * *"}],
}


def written(tmp_path: Path, *blocks: dict[str, Any]) -> Path:
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump({"deployments": list(blocks)}))
    return path


@given(JSON, JSON)
def test_there_is_a_difference_if_and_only_if_values_differ(old: Any, new: Any) -> None:
    def typed(value: Any) -> Any:  # True is not 1 in JSON
        if isinstance(value, dict):
            return {key: typed(inner) for key, inner in value.items()}
        return [typed(inner) for inner in value] if isinstance(value, list) else (type(value).__name__, value)

    assert bool(list(differences(old, new))) == (typed(old) != typed(new))


def test_a_difference_names_its_place_and_both_values() -> None:
    old = {"parameters": {"days": 730, "gone": 1}, "tags": ["a"]}
    new = {"parameters": {"days": 365, "new": None}, "tags": ["a"]}
    assert list(differences(old, new)) == [
        "parameters.days: 730 -> 365",
        "parameters.gone: 1 goes",
        "parameters.new: None comes",
    ]
    assert str(Change("update", "deployment", "a/b", ("x: 1 -> 2",))) == "~ deployment a/b\n    x: 1 -> 2"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shedules": []}, "deployment ingest: shedules: Extra inputs are not permitted"),
        ({"tags": ["other"]}, "deployment ingest: it lacks the tag tradeflows"),
        ({"schedules": [{"cron": "2 * * * *"}]}, "schedules.0.slug: Field required"),
        ({"concurrency_limit": {"limit": 0}}, "concurrency_limit.limit: Input should be greater than or equal to 1"),
        ({"description": None}, "description: Input should be a valid string"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        declared.read(written(tmp_path, {**BLOCK, **changes}))


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="declares ingest twice"):
        declared.read(written(tmp_path, BLOCK, BLOCK))


def test_the_sandbox_s_symbols_stand_wherever_some_are_named(tmp_path: Path) -> None:
    groups = {"groups": [{"symbols": ["A"], "days": 1}], "symbols": [], "other": ["A"]}
    [one] = declared.read(written(tmp_path, {**BLOCK, "parameters": groups}), symbols=["S"])
    # an empty list means all there are
    assert one.parameters == {"groups": [{"symbols": ["S"], "days": 1}], "symbols": [], "other": ["A"]}


def test_limits_are_those_that_flows_make_when_they_need_them() -> None:
    from tasks.limits import BLOCK as LEAST
    from tasks.limits import weights_per_minute

    settings = load_settings({})
    made = limits(settings)
    assert made["tradeflows-llm"] == (60, 1.0)
    for kind, weight in weights_per_minute(settings).items():
        slots, decay = made[f"tradeflows-{kind}"]
        assert slots >= LEAST
        # in no minute more than the exchange allows, whoever draws
        assert slots + 60 * decay <= max(weight, LEAST + weight / 2)


@pytest.mark.integration
def test_every_entry_point_imports_and_its_parameters_fit() -> None:
    found = declared.read()
    assert {one.entrypoint for one in found} == {
        f"flows/{path.stem}.py:{path.stem}"
        for path in (declared.CHECKOUT / "flows").glob("*.py")
        if "@flow(" in path.read_text()
    }
    for one in found:
        sent = declared.as_sent(one)
        assert set(sent["parameters"]) <= set(sent["parameter_openapi_schema"]["properties"])
        assert all(schedule["timezone"] == "UTC" for schedule in sent["schedules"].values())
        for automation in declared.automations(one, "00000000-0000-0000-0000-000000000000"):
            assert automation["tags"] == ["tradeflows"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"entrypoint": "flows/nowhere.py:x"}, "entry point flows/nowhere.py:x: No module named 'flows.nowhere'"),
        ({"entrypoint": "flows/ingest.py:nothing"}, "has no attribute 'nothing'"),
        ({"entrypoint": "tasks/limits.py:ensure"}, "is a function, no flow"),
        ({"parameters": {"symbol": ["A"]}}, "symbol is no parameter of flows/ingest.py:ingest, which takes symbols"),
        ({"parameters": {"symbols": ["A"], "timeframe": "7m"}}, "timeframe"),
        ({"parameters": {"timeframe": "1h"}}, "symbols"),
        ({"schedules": [{"slug": "x", "cron": "2 * * * *", "parameters": {"days": 0}}]}, "days"),
    ],
)
def test_a_deployment_that_would_crash_is_refused_before_it_is_made(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    [one] = declared.read(written(tmp_path, {**BLOCK, **changes}))
    with pytest.raises(ConfigurationError, match=told):
        declared.as_sent(one)
