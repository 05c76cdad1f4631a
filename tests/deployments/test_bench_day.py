"""The plan of a simulated day, its clock, and the figures that are made of what was seen."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from deployments import declared
from deployments.bench_day import BEGIN, Clock, Due, plan, simulate
from deployments.bench_growth import LOGS, Bound, Seen, age, bounds, daily, line, rows, sizes, tables
from deployments.declared import Deployment, Schedule, WorkPool
from deployments.supervising import KEPT, LOG_BYTES
from tasks.retention import Retention


def deployment(name: str, *crons: str) -> Deployment:
    schedules = [Schedule(slug=f"s{number}", cron=cron) for number, cron in enumerate(crons)]
    return Deployment(
        name=name, description="", entrypoint="flows/x.py:x", work_pool=WorkPool(name="p"), schedules=schedules
    )


def at(hour: int, minute: int) -> datetime:
    return BEGIN + timedelta(hours=hour, minutes=minute)


def test_schedules_become_runs_in_the_order_of_time() -> None:
    wanted = [deployment("b", "2 * * * *"), deployment("a", "0,30 * * * *", "2 0 * * *"), deployment("never")]
    found = plan(wanted, BEGIN, 2)
    assert [(one.moment, one.deployment, one.slug) for one in found] == [
        (at(0, 0), "a", "s0"), (at(0, 2), "a", "s1"), (at(0, 2), "b", "s0"), (at(0, 30), "a", "s0"),
        (at(1, 0), "a", "s0"), (at(1, 2), "b", "s0"), (at(1, 30), "a", "s0"),
    ]  # fmt: skip
    assert type(found[0].moment) is datetime and found[0].moment.tzinfo is UTC
    # the end is not in it, and two halves are the whole
    assert plan(wanted, BEGIN, 1) + plan(wanted, at(1, 0), 1) == found


def test_the_declared_day_has_every_daily_and_weekly_run_and_no_monthly_one() -> None:
    found = plan(declared.read(), BEGIN, 24)
    counts = {name: sum(one.deployment == name for one in found) for name in ("settings", "ingest", "train", "cycle")}
    assert counts == {"settings": 288, "ingest": 24, "train": 1, "cycle": 0}
    # the weekly review, and the hourly ones with their own parameters
    reviews = [one for one in found if one.deployment == "review"]
    assert len(reviews) == 25
    assert [one.parameters for one in reviews if one.slug == "weekly"] == [{}]


def test_time_without_work_is_left_out_and_work_holds_it_up() -> None:
    ticks = [100.0]
    clock = Clock(BEGIN, lambda: ticks[0])
    told: list[tuple[str, datetime]] = []
    until: list[float] = []

    def start(due: Due) -> None:
        told.append((due.deployment, clock.now()))
        # "long" takes seven minutes
        until.append(ticks[0] + (420 if due.deployment == "long" else 0))

    def wait(seconds: float) -> None:
        assert seconds >= 0
        ticks[0] += max(seconds, 0.01)

    due = [Due(at(0, 2), "long", ""), Due(at(0, 5), "next", ""), Due(at(0, 5), "other", ""), Due(at(3, 0), "late", "")]
    simulate(due, clock, lambda: any(ticks[0] < end for end in until), start, lambda m: told.append(("skip", m)),
             wait=wait)  # fmt: skip
    assert [name for name, _ in told] == ["skip", "long", "next", "other", "skip", "late"]
    moments = [moment for _, moment in told]
    assert moments[0] == moments[1] == at(0, 2)
    # three minutes of the work under way passed as they do
    assert timedelta(0) <= moments[2] - at(0, 5) < timedelta(seconds=1)
    # and then nearly three hours in no time
    assert moments[4] == at(3, 0)
    assert 420 <= ticks[0] - 100 < 422


def test_a_run_that_began_after_a_quarter_of_a_minute_or_never_is_late() -> None:
    assert not Seen("a", "Completed", 14.9, 1.0).late
    assert Seen("a", "Completed", 15.1, 1.0).late
    assert Seen("a", "Cancelled", None, None).late


def test_a_line_is_that_of_least_squares_with_its_error() -> None:
    rng = np.random.default_rng(1)
    xs = np.arange(12.0)
    ys = 3 + 0.5 * xs + rng.normal(0, 0.2, 12)
    found = line(list(xs), list(ys))
    (slope, start), spread = np.polyfit(xs, ys, 1, cov=True)
    assert found.slope == pytest.approx(slope)
    assert found.start == pytest.approx(start)
    assert found.error == pytest.approx(spread[0, 0] ** 0.5)
    with pytest.raises(ValueError, match="three points"):
        line([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"at 2\.0"):
        line([2.0, 2.0, 2.0], [1.0, 2.0, 3.0])


def test_growth_is_per_day_and_knows_what_is_new_and_what_is_gone() -> None:
    told = [(0.0, {"a": 10, "gone": 6}), (1.0, {"a": 110, "gone": 0, "new": 3}), (3.0, {"a": 116, "new": 7})]
    # the first hour, and 23 hours like the two after it
    assert daily(told) == {"a": 100 + 23 * 3, "gone": -6, "new": 3 + 23 * 2}
    # of a whole day it is what happened
    whole = [(float(hour), {"a": hour**2}) for hour in range(0, 25, 2)]
    assert daily(whole) == {"a": 24**2}
    with pytest.raises(ValueError, match="three hours"):
        daily(told[:2])
    with pytest.raises(ValueError, match="in their order"):
        daily([told[0], told[2], told[1]])


def test_growth_times_days_is_where_it_ends() -> None:
    found = {
        one.what: one for one in bounds({"store": {"results": 2.0, "candle_chunks": 5.0}, "files": {"reports": 3}})
    }
    keep = Retention()
    assert found["store: results"] == Bound("store: results", 2.0, keep.results, "results_days")
    assert found["store: results"].steady == 2.0 * keep.results
    assert found["store: candle_chunks"].steady is None
    assert bounds({"files": {"logs": 1.0}})[0].steady == LOGS * (KEPT + 1) * LOG_BYTES
    assert found["files: reports"].steady == 3.0 * min(keep.reports, keep.most_reports)


def test_files_are_counted_by_kind_and_tables_by_their_pages(tmp_path: Path) -> None:
    for path, size in (
        ("store.db-wal", 7), ("mlflow/artifacts/1/a", 11), ("mlflow/mlflow.db", 13), ("reports/x/y", 17),
        ("logs/worker.log.1", 19), ("prefect/storage/z", 23), ("reports-of-others", 29),
    ):  # fmt: skip
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
    found = sizes(tmp_path)
    assert found["store"] == 7
    assert (found["MLflow artifacts"], found["MLflow database"]) == (11, 13)
    assert (found["reports"], found["logs"], found["other"]) == (17, 19, 52)
    file = tmp_path / "a.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE small (a)")
        connection.execute("CREATE TABLE large (a)")
        connection.execute("CREATE INDEX of_large ON large (a)")
        connection.executemany("INSERT INTO large VALUES (?)", [(f"{number:0500}",) for number in range(200)])
        connection.execute("INSERT INTO small VALUES (1)")
    by_table = tables(file)
    # an index counts with its table
    assert by_table["large"] > 2 * 200 * 500
    assert by_table["small"] == 4096
    assert sum(by_table.values()) == file.stat().st_size
    assert rows(file, ["large", "small"]) == {"large": 200, "small": 1}
    assert tables(tmp_path / "none.db") == {}


def test_a_database_is_aged_without_losing_a_microsecond_s_place(tmp_path: Path) -> None:
    file = tmp_path / "prefect.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE flow_run (end_time DATETIME)")
        connection.execute("CREATE TABLE events (occurred DATETIME)")
        connection.execute("CREATE TABLE event_resources (occurred DATETIME)")
        connection.execute("INSERT INTO flow_run VALUES ('2026-03-02 01:02:03.456789'), (NULL)")
    age(file, 31)
    with closing(sqlite3.connect(file)) as connection:
        found = [value for (value,) in connection.execute("SELECT end_time FROM flow_run")]
    # as the library that reads it wants it: six digits
    assert found == ["2026-01-30 01:02:03.456000", None] or found == ["2026-01-30 01:02:03.457000", None]
    assert datetime.strptime(found[0], "%Y-%m-%d %H:%M:%S.%f")
