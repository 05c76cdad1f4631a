"""The store, over its document port alone: candles, ledger, analyses, LLM, promotions, the engine's settings.

``tasks.store`` is not imported, for pandas comes with it and takes 90 MB. The collections are declared here once more;
a test holds them, and what is worked out from them, to the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

from deployments import metrics_catalogue as catalogue
from deployments.metrics_catalogue import Metric
from deployments.metrics_sources import Reading, Since, bounded
from tasks.documents import Collection, Document, Documents, Index, Span
from tasks.settings import Settings
from trading.errors import StoreError
from trading.window import Timeframe

SERIES: Final = Collection("series")
LEDGER: Final = Collection(
    "ledger", (Index("ledger_series_idx", ("series", "start")), Index("ledger_recorded_idx", ("recorded_at",)))
)
ANALYSES: Final = Collection("ai_analysis", (Index("symbol_timestamp_idx", ("symbol", "timestamp")),))
SIGNALS: Final = Collection("signals")
CIRCUITS: Final = Collection("circuits")
PROMOTIONS: Final = Collection("promotions", (Index("promotions_model_idx", ("model", "number"), unique=True),))
LLM_BUDGETS: Final = Collection("llm_budgets")
LLM_CALLS: Final = Collection("llm_calls", (Index("llm_calls_day_idx", ("day", "at")),))
ENGINE_SETTINGS: Final = Collection("engine_settings", (Index("engine_settings_number_idx", ("number",)),))
COLLECTIONS: Final = (
    SERIES, LEDGER, ANALYSES, SIGNALS, CIRCUITS, PROMOTIONS, LLM_BUDGETS, LLM_CALLS, ENGINE_SETTINGS,
)  # fmt: skip
FORMAT: Final = 2
FILE: Final = "store.db"

MOST_MODELS: Final = 50
# records of the ledger, and calls of the LLM, that are gone through for one day
MOST_RECORDS: Final = 10_000
# reasons and analysts that are told by name; there are no others today
REASONS: Final = (
    "null", "infinite", "non_positive", "negative_volume", "inconsistent", "duplicate", "conflicting", "misaligned",
    "off_session", "outside_window", "untraded_move", "disagrees",
)  # fmt: skip
ANALYSTS: Final = ("model", "technical", "llm", "challenger")
OTHERS: Final = "others"
NANO: Final = 1_000_000_000


class StoreReader:
    """Reads the store that the settings name, opened anew for each reading, and writes nothing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._day = ""
        self._highest: dict[tuple[Metric, tuple[str, ...]], float] = {}

    def __call__(self, now: float) -> Reading:
        """See the module. Before the first flow there is no store, and nothing to tell.

        Raises:
            StoreError: it cannot be read, or is of another version.
        """
        found = Reading()
        moment = datetime.fromtimestamp(now, UTC)
        with opened(self._settings) as documents:
            if documents is None:
                return found
            held = _series(documents, found)
            _ledger(documents, found, held, moment)
            _analyses(documents, found, held)
            _llm(documents, found, self._settings, moment)
            _promotions(documents, found)
            _rest(documents, found, self._settings, moment)
        self._keep_rising(found, f"{moment:%Y-%m-%d}")
        return found

    def _keep_rising(self, found: Reading, day: str) -> None:
        """Let no counter fall within a day: a window that is ingested again has its record replaced."""
        if day != self._day:
            self._day, self._highest = day, {}
        for metric, values in found.values.items():
            if metric.kind != "counter":
                continue
            for labels, value in values.items():
                if isinstance(value, float | int):
                    self._highest[metric, labels] = max(value, self._highest.get((metric, labels), 0.0))
        for (metric, labels), value in self._highest.items():
            found.set(metric, value, *labels)


@contextmanager
def opened(settings: Settings) -> Iterator[Documents | None]:
    """The documents of the configured store; None where the embedded one has not been made yet.

    Raises:
        StoreError: it cannot be opened, or is of another version.
    """
    documents: Documents
    if settings.mongodb_url is not None:
        from tasks.mongo_documents import MongoDocuments

        documents = MongoDocuments(settings.mongodb_url.get_secret_value(), COLLECTIONS)
    elif (settings.home / FILE).is_file():
        from tasks.sqlite_documents import SqliteDocuments

        documents = SqliteDocuments(settings.home / FILE, COLLECTIONS)
    else:
        yield None
        return
    with documents:
        marked = documents.get(SERIES, "format")
        if marked is not None and marked.get("version") != FORMAT:
            raise StoreError(
                f"the store is of format {marked.get('version')} and this version reads format {FORMAT}; start the "
                "endpoint of the version that wrote it"
            )
        yield documents


def _series(documents: Documents, found: Reading) -> dict[str, str]:
    """The data mode of each series that is told by name; counts all of them."""
    modes = {one["_id"]: str(one["data_mode"]) for one in documents.find(SERIES) if "data_mode" in one}
    for key, mode in modes.items():
        found.add(catalogue.SERIES_COUNT, 1.0, _parts(key)[1], mode)
    names, left = bounded(modes)
    found.left_out += left
    return {name: modes[name] for name in names}


def _ledger(documents: Documents, found: Reading, held: Mapping[str, str], now: datetime) -> None:
    """How fresh each series is, and what today's runs recorded."""
    for key, mode in held.items():
        newest = _newest_approved(documents, key)
        if newest is None:
            continue
        symbol, timeframe = _parts(key)
        found.set(catalogue.CANDLE_AGE, Since(newest["end"].timestamp()), symbol, timeframe, mode)
        if newest["calendar"] == "24/7":
            bars = max((now - newest["end"]) // Timeframe(timeframe).delta, 0)
            found.set(catalogue.BARS_BEHIND, float(bars), symbol, timeframe, mode)
    for bars in {(_parts(key)[1], mode) for key, mode in held.items()}:
        # what has not happened yet is 0, so that its first time is a rise
        for metric in (catalogue.RECEIVED, catalogue.ADDED, catalogue.CHANGED):
            found.set(metric, 0.0, *bars)
        for status in ("approved", "refused"):
            found.set(catalogue.WINDOWS, 0.0, status, *bars)
        for reason in REASONS:
            found.set(catalogue.QUARANTINED, 0.0, reason, *bars)
    candles: dict[str, tuple[str, int]] = {}
    for one in _of_today(documents, LEDGER, Span("recorded_at", _midnight(now)), found):
        labels = (_parts(one["series"])[1], str(one["data_mode"]))
        found.add(catalogue.WINDOWS, 1.0, str(one["status"]), *labels)
        found.add(catalogue.RECEIVED, float(one["rows"]), *labels)
        found.add(catalogue.ADDED, float(one["added"]), *labels)
        found.add(catalogue.CHANGED, float(one.get("changed", 0)), *labels)
        for reason, count in one["quarantined"].items():
            found.add(catalogue.QUARANTINED, float(count), reason if reason in REASONS else OTHERS, *labels)
        if one["flow_run_id"]:
            _, before = candles.get(one["flow_run_id"], ("", 0))
            candles[one["flow_run_id"]] = (labels[1], before + int(one["rows"]))
    found.candles_of = candles


def _newest_approved(documents: Documents, key: str) -> Document | None:
    """The record of the newest approved window: mostly the last one, but refusals may lie after it."""
    for count in (1, 50, None):
        records = documents.find(LEDGER, {"series": key}, Span("start"), newest=count)
        approved = [one for one in records if one["status"] == "approved"]
        if approved:
            # of those that begin late, one that begins earlier may end later
            return max(approved, key=lambda one: one["end"])
        if count is None or len(records) < count:
            return None
    return None


def _analyses(documents: Documents, found: Reading, held: Mapping[str, str]) -> None:
    """What the newest analysis of each series says, and how old it is."""
    for noted in documents.find(SIGNALS):
        if noted["_id"] not in held:
            continue
        symbol, timeframe = _parts(noted["_id"])
        stored = documents.get(ANALYSES, f"{noted['_id']}|{noted['timestamp']:%Y-%m-%dT%H:%M:%SZ}")
        if stored is None:
            continue  # maintenance took it
        bars = (timeframe, str(stored["data_mode"]))
        analysis = stored["analysis"]
        found.add(catalogue.SIGNALS, 1.0, "combined", analysis["signal"], *bars)
        for opinion in (*analysis["opinions"], *analysis["compared"]):
            found.add(catalogue.SIGNALS, 1.0, _analyst(opinion["analyst"]), opinion["signal"], *bars)
        for name in analysis["absent"]:
            found.add(catalogue.ABSENT, 1.0, _analyst(name), *bars)
        found.set(catalogue.ANALYSIS_AGE, Since(stored["created_at"].timestamp()), symbol, *bars)


def _llm(documents: Documents, found: Reading, settings: Settings, now: datetime) -> None:
    """Today's calls, and the budgets; nothing where the LLM is off and never was on."""
    day = f"{now:%Y-%m-%d}"
    calls = _of_today(documents, LLM_CALLS, Span("at"), found, {"day": day})
    for call in calls:
        model, mode = str(call["model"]), str(call["data_mode"] or "none")
        found.add(catalogue.LLM_CALLS, 1.0, model, str(call["outcome"]), mode)
        for kind in ("prompt", "completion"):
            found.add(catalogue.LLM_TOKENS, float(call[f"{kind}_tokens"] or 0), model, kind, mode)
        found.add(catalogue.LLM_COST, call["nano"] / NANO, model, mode)
    month = documents.get(LLM_BUDGETS, day[:7])
    if month is None and not settings.llm:
        return
    spent, under_way = (month or {}).get("spent", {}), (month or {}).get("open", {}).values()
    of_day, of_month = spent.get(day, 0), sum(spent.values())
    reserved = sum(one["nano"] for one in under_way)
    reserved_today = sum(one["nano"] for one in under_way if one["day"] == day)
    found.set(catalogue.LLM_SPENT, of_day / NANO, "day")
    found.set(catalogue.LLM_SPENT, of_month / NANO, "month")
    found.set(catalogue.LLM_RESERVED, reserved / NANO)
    found.set(catalogue.LLM_LEFT, max(settings.llm_daily_budget - (of_day + reserved_today) / NANO, 0.0), "day")
    found.set(catalogue.LLM_LEFT, max(settings.llm_monthly_budget - (of_month + reserved) / NANO, 0.0), "month")


def _promotions(documents: Documents, found: Reading) -> None:
    """Which version reigns since when, and how often that changed."""
    changes = documents.find(PROMOTIONS)
    names, left = bounded((str(one["model"]) for one in changes), MOST_MODELS)
    found.left_out += left
    latest: dict[str, Document] = {}
    for one in changes:
        model, kind = str(one["model"]), str(one["kind"])
        if model not in names:
            continue
        found.add(catalogue.CHAMPION_CHANGES, 1.0, model, kind)
        if kind != "fallback" and one["number"] > latest.get(model, {"number": 0})["number"]:
            latest[model] = one
    for model, one in latest.items():
        found.set(catalogue.CHAMPION, float(one["to_version"]), model)
        found.set(catalogue.CHAMPION_SINCE, Since(one["at"].timestamp()), model)


def _rest(documents: Documents, found: Reading, settings: Settings, now: datetime) -> None:
    """The engine's settings, and the circuits of market sources."""
    if settings.engine_url is not None and settings.engine_settings_path:
        reading = documents.get(ENGINE_SETTINGS, "reading") or {}
        found.set(catalogue.SETTINGS_FAILURES, float(reading.get("failures", 0)))
        if reading.get("read_at") is not None:
            found.set(catalogue.SETTINGS_AGE, Since(reading["read_at"].timestamp()))
    for one in documents.find(CIRCUITS):
        is_open = one["state"] == "open" and one["until"] is not None and one["until"] > now
        found.set(catalogue.CIRCUIT, float(is_open), str(one["_id"]))


def _of_today(
    documents: Documents, collection: Collection, span: Span, found: Reading, where: Mapping[str, str] | None = None
) -> list[Document]:
    """The newest ``MOST_RECORDS`` documents; notes that there are more."""
    records = documents.find(collection, where, span, newest=MOST_RECORDS + 1)
    found.left_out += max(len(records) - MOST_RECORDS, 0)
    return records[:MOST_RECORDS]


def _midnight(now: datetime) -> datetime:
    return now - timedelta(hours=now.hour, minutes=now.minute, seconds=now.second, microseconds=now.microsecond)


def _analyst(name: str) -> str:
    return name if name in ANALYSTS else OTHERS


def _parts(key: str) -> tuple[str, str]:
    symbol, timeframe = key.rsplit("|", 1)
    return symbol, timeframe
