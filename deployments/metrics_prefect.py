"""Prefect, over its REST API: what ended today, what is under way or late, who works.

The first reading of a day goes through all runs that ended since midnight (UTC), the following ones through those
that ended since the one before, so that a reading is three small questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from deployments import metrics_catalogue as catalogue
from deployments.declared import POOL
from deployments.metrics_sources import MOST, Distribution, Reading, Since
from deployments.prefect_api import PAGE, Api, connected

EVERY_SECONDS: Final = 30.0
TIMEOUT_SECONDS: Final = 5.0
DURATIONS: Final = (1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
LATENESSES: Final = (1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
# an end may be written down some time after it was
OVERLAP_SECONDS: Final = 300.0
# runs of a day that are counted; deployments and workers that are told by name
MOST_RUNS: Final = 20_000
MOST_NAMES: Final = 50
NEWEST_INGESTS: Final = 50
DEPLOYMENTS_SECONDS: Final = 600.0
WITHOUT: Final = "none"
OTHERS: Final = "others"
# names that states of ended runs have here; Prefect's other names are told by their type
STATES: Final = frozenset({"completed", "degraded", "partly", "failed", "crashed", "cancelled", "timedout"})
UNDER_WAY: Final = ("late", "pending", "running", "cancelling")


@dataclass
class _Ended:
    """The runs that ended on one UTC day, as far as they have been seen."""

    day: str = ""
    until: float = 0.0
    known: set[tuple[str, str]] = field(default_factory=set)
    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    durations: dict[str, Distribution] = field(default_factory=dict)
    latenesses: dict[str, Distribution] = field(default_factory=dict)
    ingests: dict[str, float] = field(default_factory=dict)
    left_out: int = 0


class PrefectRuns:
    """Reads the server at ``url`` (with ``/api``); keeps what it has counted of the day."""

    def __init__(self, url: str, *, most_runs: int = MOST_RUNS) -> None:
        self._url, self._most_runs = url, most_runs
        self._names: dict[str, str] = {}
        self._left_out = 0
        self._named_at = float("-inf")
        self._successes: dict[str, float] = {}
        self._ended = _Ended()

    def __call__(self, now: float) -> Reading:
        """See the module.

        Raises:
            ConfigurationError: the server does not answer, or refuses.
        """
        with connected(self._url, timeout=TIMEOUT_SECONDS) as api:
            if now - self._named_at > DEPLOYMENTS_SECONDS:
                self._learn_names(api, now)
            active = api.ask("POST", "/flow_runs/filter", _ACTIVE) or []
            ended, left_out = self._newly_ended(api, now)
            ids = {str(run["deployment_id"]) for run in (*active, *ended) if run["deployment_id"]}
            unknown = ids - self._names.keys()
            if unknown:
                self._learn_names(api, now)
                # whatever has no tag of ours
                self._names = {**dict.fromkeys(unknown, OTHERS), **self._names}
            workers = api.ask("POST", f"/work_pools/{POOL}/workers/filter", {"limit": MOST_NAMES}) or []
        self._count(ended)
        self._ended.left_out += left_out
        found = Reading(left_out=self._left_out + self._ended.left_out, seconds_of=dict(self._ended.ingests))
        self._tell_ended(found)
        self._tell_active(found, active, now)
        for worker in workers:
            if worker["last_heartbeat_time"]:
                found.set(catalogue.HEARTBEAT, Since(_moment(worker["last_heartbeat_time"])), worker["name"])
        return found

    def _learn_names(self, api: Api, now: float) -> None:
        """The names of our deployments; of new ones also when they last succeeded."""
        told = sorted(
            api.all("/deployments/filter", deployments={"tags": {"all_": ["tradeflows"]}}), key=lambda one: one["name"]
        )
        kept = told[:MOST_NAMES]
        self._left_out = len(told) - len(kept)
        for one in kept:
            if one["name"] in self._successes:
                continue
            asked = {
                "deployments": {"id": {"any_": [one["id"]]}},
                "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
                "sort": "END_TIME_DESC",
                "limit": 1,
            }
            for run in api.ask("POST", "/flow_runs/filter", asked) or []:
                if run["end_time"]:
                    self._successes[one["name"]] = _moment(run["end_time"])
        others = dict.fromkeys(self._names, OTHERS)
        self._names = {**others, **{one["id"]: one["name"] for one in kept}}
        self._named_at = now

    def _newly_ended(self, api: Api, now: float) -> tuple[list[dict[str, Any]], int]:
        """Runs that ended today and were not counted yet, the oldest first; and how many are left out."""
        today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if f"{today:%Y-%m-%d}" != self._ended.day:
            self._ended = _Ended(day=f"{today:%Y-%m-%d}", until=today.timestamp())
        start = max(today.timestamp(), self._ended.until - OVERLAP_SECONDS)
        asked = {
            "flow_runs": {"end_time": {"after_": datetime.fromtimestamp(start, UTC).isoformat()}},
            "sort": "END_TIME_DESC",
            "limit": PAGE,
        }
        found: list[dict[str, Any]] = []
        left_out = 0
        while True:
            page = api.ask("POST", "/flow_runs/filter", {**asked, "offset": len(found)}) or []
            found += page
            if len(page) < PAGE:
                break
            if len(found) >= self._most_runs:
                total = int(api.ask("POST", "/flow_runs/count", {"flow_runs": asked["flow_runs"]}) or 0)
                left_out = max(total - len(found), 0)
                break
        # the end of a run that is started again goes, and comes again as another one
        fresh = {(run["id"], run["end_time"]): run for run in reversed(found) if run["end_time"]}
        return [run for key, run in fresh.items() if key not in self._ended.known], left_out

    def _count(self, runs: Iterable[Mapping[str, Any]]) -> None:
        """Add runs that ended to what the day has."""
        day = self._ended
        for run in runs:
            name, end = self._name(run), _moment(run["end_time"])
            day.known.add((run["id"], run["end_time"]))
            day.until = max(day.until, end)
            day.states[name, _state(run)] += 1
            if run["state_type"] == "COMPLETED":
                self._successes[name] = max(self._successes.get(name, 0.0), end)
            if run["start_time"] is None:
                continue  # cancelled before it began
            seconds = float(run["total_run_time"])
            day.durations[name] = day.durations.get(name, Distribution(DURATIONS)).with_value(seconds)
            if run["expected_start_time"]:
                late = max(_moment(run["start_time"]) - _moment(run["expected_start_time"]), 0.0)
                day.latenesses[name] = day.latenesses.get(name, Distribution(LATENESSES)).with_value(late)
            # by the name that the flow gives its runs: those of a cycle have no deployment
            if str(run["name"]).startswith("ingest-"):
                day.ingests[run["id"]] = seconds
        day.ingests = dict(list(day.ingests.items())[-NEWEST_INGESTS:])

    def _tell_ended(self, found: Reading) -> None:
        day = self._ended
        for name in self._known():
            # what has not happened yet is 0, so that its first time is a rise
            for state in ("completed", "degraded", "partly", "failed", "crashed"):
                found.set(catalogue.RUNS, 0.0, name, state)
        for (name, state), count in day.states.items():
            found.set(catalogue.RUNS, float(count), name, state)
        for metric, told in ((catalogue.RUN_DURATION, day.durations), (catalogue.RUN_LATENESS, day.latenesses)):
            for name, distribution in told.items():
                found.set(metric, distribution, name)
        for name in self._known():
            if name in self._successes:
                found.set(catalogue.SUCCESS_AGE, Since(self._successes[name]), name)

    def _tell_active(self, found: Reading, active: Iterable[Mapping[str, Any]], now: float) -> None:
        for name in self._known():
            for state in UNDER_WAY:
                found.set(catalogue.RUNS_NOW, 0.0, name, state)
            found.set(catalogue.OVERDUE, 0.0, name)
            found.set(catalogue.RUNNING, 0.0, name)
        late: dict[str, float] = {}
        running: dict[str, float] = {}
        for run in active:
            name, state = self._name(run), str(run["state_name"]).lower()
            state = state if state in UNDER_WAY else str(run["state_type"]).lower()
            found.add(catalogue.RUNS_NOW, 1.0, name, state)
            if state == "late" and run["expected_start_time"]:
                late[name] = min(_moment(run["expected_start_time"]), late.get(name, now))
            if state == "running" and run["start_time"]:
                running[name] = min(_moment(run["start_time"]), running.get(name, now))
        for metric, moments in ((catalogue.OVERDUE, late), (catalogue.RUNNING, running)):
            for name, moment in moments.items():
                found.set(metric, Since(moment), name)

    def _known(self) -> list[str]:
        return sorted(set(self._names.values()) - {OTHERS})

    def _name(self, run: Mapping[str, Any]) -> str:
        deployment = run["deployment_id"]
        return WITHOUT if deployment is None else self._names.get(deployment, OTHERS)


_ACTIVE: Final = {
    "flow_runs": {
        "state": {
            "operator": "or_",
            "type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]},
            "name": {"any_": ["Late"]},
        }
    },
    "sort": "EXPECTED_START_TIME_ASC",
    "limit": MOST,
}


def _state(run: Mapping[str, Any]) -> str:
    name = str(run["state_name"]).lower()
    return name if name in STATES else str(run["state_type"]).lower()


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
