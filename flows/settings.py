"""Settings: what the engine's users have selected, read every few minutes and kept in versions."""

from __future__ import annotations

from prefect import flow
from prefect.states import Completed

from tasks import reports
from tasks.engine_settings import Refreshed, refresh_task
from tasks.notifying import tell_held_task
from tasks.periods import run_moment
from tasks.settings_notices import tell_unserved_task
from trading.errors import SettingsTooOld

STATES = {
    "changed": "A new version was kept.",
    "unchanged": "As they were.",
    "stale": "The engine did not tell them; the last good ones stay.",
    "unserved": "The engine has none to tell; the built-in ones count.",
    "unconfigured": "There is no engine to ask; the built-in ones count.",
}


@flow(name="settings", flow_run_name="settings", retries=0, persist_result=False)
def settings() -> Refreshed:
    """Read the engine's strategy settings, check them, keep them as a version where they are news.

    The run ends in the state Stale while the engine does not tell them and the last good ones still count, and
    Failed once those are too old for an analysis. Of an engine that has no settings to tell, and never told any, the
    built-in ones count: the run ends in the state Unserved, and somebody is told once, with the setting to change.
    After that it tells what was held back in quiet hours.
    """
    moment = run_moment()
    found = refresh_task(moment)
    age = "" if found.age is None else f" They were last read {found.age / 60:.0f} minutes ago."
    text = [
        f"# Engine settings: {found.state}",
        f"{STATES[found.state]}{age}",
        f"Version **{found.version}**, strategies: {', '.join(found.strategies) or 'none'}.",
        *reports.section("Why", [found.reason] if found.reason else []),
    ]
    reports.markdown("settings", "\n\n".join(text), f"{found.state}: {found.version}"[:200])
    if found.state == "unserved":
        tell_unserved_task(found.reason, moment)
    tell_held_task(moment)
    if found.too_old:
        raise SettingsTooOld(
            f"no settings of the engine count any more ({found.reason}); analyses refuse until it tells them again"
        )
    if found.state in ("stale", "unserved"):
        # Prefect hands the data to the caller, and shows the name and the message
        name, message = found.state.capitalize(), f"{found.reason}{age}"[:1000]
        named: Refreshed = Completed(name=name, message=message, data=found)  # type: ignore[assignment]
        return named
    return found
