"""What the endpoint asks when it is scraped: each source by itself, not too often, and never for long.

A source is read when somebody scrapes and the last reading is old enough, in a thread of its own. One that fails or
hangs is down, and takes nobody with it. The longer a reading takes the rarer it becomes: a source is read for a
twentieth of the time at most, but once in five minutes in any case.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from deployments import metrics_catalogue as catalogue
from deployments.metrics_catalogue import CATALOGUE, Metric
from tasks import log

# a scrape waits so long for a reading; Prometheus gives up after ten seconds
PATIENCE_SECONDS: Final = 4.0
# the reading before stands in for one under way that is overdue by no more than this
STALE_SECONDS: Final = 120.0
SHARE: Final = 20
LONGEST_PAUSE_SECONDS: Final = 300.0
# values of a label that grow with what is traded, trained or deployed: so many are told one by one
MOST: Final = 200


@dataclass(frozen=True)
class Since:
    """A moment (seconds since the epoch) whose age is wanted at each scrape."""

    moment: float


@dataclass(frozen=True)
class Distribution:
    """How often something took how long: ``counts`` beside ``bounds`` (seconds), one more for what is above."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...] = ()
    total: float = 0.0

    def with_value(self, value: float) -> Distribution:
        """The same with one value more."""
        counts = list(self.counts or (0,) * (len(self.bounds) + 1))
        # a bucket takes what is at its bound, too
        counts[bisect.bisect_left(self.bounds, value)] += 1
        return Distribution(self.bounds, tuple(counts), self.total + value)


Value = float | Since | Distribution


@dataclass
class Reading:
    """What a source said: values by metric and labels, and how much it left out.

    What several sources know together is worked out from ``seconds_of``, how long ingest runs ran, and ``candles_of``,
    the data mode and number of the candles that they received; both by the id of the flow run.
    """

    values: dict[Metric, dict[tuple[str, ...], Value]] = field(default_factory=dict)
    left_out: int = 0
    seconds_of: Mapping[str, float] = field(default_factory=dict)
    candles_of: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def set(self, metric: Metric, value: Value, *labels: str) -> None:
        """The value of a metric with these labels."""
        self.values.setdefault(metric, {})[labels] = value

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """Add to it; what is not there is 0."""
        held = self.values.setdefault(metric, {})
        before = held.get(labels, 0.0)
        if not isinstance(before, float | int):
            raise TypeError(f"{metric.name} {labels} is {before!r}, to which nothing can be added")
        held[labels] = before + value


Read = Callable[[float], Reading]


class Source:
    """A source, read at most every ``every`` seconds; ``read`` gets the time (seconds since the epoch)."""

    def __init__(
        self,
        name: str,
        read: Read,
        *,
        every: float = 15.0,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._read, self._every, self._clock, self._ticks = read, every, clock, ticks
        self._lock = threading.Lock()
        self._under_way: threading.Thread | None = None
        self._last: Reading | None = None
        self._said: str | None = None
        self._at = self._took = 0.0
        self._due = float("-inf")

    def begin(self) -> None:
        """Start a reading where the last one is old enough and none is under way."""
        with self._lock:
            if self._under_way is None and self._ticks() >= self._due:
                self._under_way = threading.Thread(target=self._run, name=f"read-{self.name}", daemon=True)
                self._under_way.start()

    def reading(self, patience: float) -> tuple[Reading | None, float, float]:
        """What the source said last, None where it is down; the time of that; how long the last reading took (s).

        Args:
            patience: seconds to wait for a reading under way.
        """
        waiting = self._under_way
        if waiting is not None:
            waiting.join(patience)
        with self._lock:
            overdue = self._under_way is not None and self._ticks() - self._due > STALE_SECONDS
            usable = self._said is None and not overdue
            return self._last if usable else None, self._at, self._took

    def _run(self) -> None:
        at, begun = self._clock(), self._ticks()
        found: Reading | None = None
        said: str | None = None
        try:
            found = self._read(at)
        except Exception as error:  # noqa: BLE001 - whatever it is: this source is down, and the others are not
            said = f"{type(error).__name__}: {error}"
        with self._lock:
            self._took = self._ticks() - begun
            if found is not None:
                self._last, self._at = found, at
            # waiting for who does not answer costs nothing
            share = min(SHARE * self._took, LONGEST_PAUSE_SECONDS) if found is not None else 0.0
            self._due = self._ticks() + max(self._every, share)
            self._under_way = None
            news, self._said = said != self._said, said
        if news and said is not None:
            log.logger().warning("metrics source is down", source=self.name, error=said[:500])
        elif news:
            log.logger().info("metrics source is up again", source=self.name)


class Sources(Collector):
    """All sources as Prometheus' client library wants them: families in the order of the catalogue."""

    def __init__(
        self, sources: Sequence[Source], *, patience: float = PATIENCE_SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        self._sources, self._patience, self._clock = tuple(sources), patience, clock

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily]:
        """Ask every source at once, and tell what they said."""
        for source in self._sources:
            source.begin()
        until = time.monotonic() + self._patience
        whole = Reading()
        readings = []
        for source in self._sources:
            found, at, took = source.reading(max(until - time.monotonic(), 0.0))
            whole.set(catalogue.SOURCE_UP, float(found is not None), source.name)
            whole.set(catalogue.SOURCE_READ, took, source.name)
            if found is not None:
                whole.set(catalogue.SOURCE_AGE, Since(at), source.name)
                whole.set(catalogue.LEFT_OUT, float(found.left_out), source.name)
                readings.append(found)
        for found in readings:
            for metric, values in found.values.items():
                whole.values.setdefault(metric, {}).update(values)
        for mode, rate in candles_per_second(readings).items():
            whole.set(catalogue.CANDLE_RATE, rate, mode)
        yield from families(whole.values, self._clock())


def candles_per_second(readings: Iterable[Reading]) -> dict[str, float]:
    """Candles received per second of run time by data mode: how many the store knows, how long Prefect.

    Args:
        readings: ``seconds_of`` has the newest ingest runs, the newest last.
    """
    seconds: dict[str, float] = {}
    candles: dict[str, tuple[str, int]] = {}
    for one in readings:
        seconds |= one.seconds_of
        candles |= one.candles_of
    known = [run for run in seconds if seconds[run] > 0 and candles.get(run, ("", 0))[1] > 0][-10:]
    found = {}
    for mode in sorted({candles[run][0] for run in known}):
        mine = [run for run in known if candles[run][0] == mode]
        found[mode] = sum(candles[run][1] for run in mine) / sum(seconds[run] for run in mine)
    return found


def families(
    values: Mapping[Metric, Mapping[tuple[str, ...], Value]], now: float
) -> Iterator[GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily]:
    """Values as metric families, in the order of the catalogue, labels sorted.

    Raises:
        KeyError: a metric that is not in the catalogue.
    """
    unknown = values.keys() - set(CATALOGUE)
    if unknown:
        raise KeyError(f"not in the catalogue: {sorted(metric.name for metric in unknown)}")
    for metric in CATALOGUE:
        of_metric = values.get(metric)
        if not of_metric:
            continue
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in sorted(of_metric.items()):
                if not isinstance(value, Distribution):
                    raise TypeError(f"{metric.name} is a histogram, and {labels} is {value!r}")
                histogram.add_metric(labels, _buckets(value), value.total)
            yield histogram
            continue
        made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = made(metric.name, metric.help, labels=metric.labels)
        for labels, value in sorted(of_metric.items()):
            if isinstance(value, Distribution):
                raise TypeError(f"{metric.name} is no histogram, and {labels} is {value!r}")
            family.add_metric(labels, max(now - value.moment, 0.0) if isinstance(value, Since) else float(value))
        yield family


def _buckets(of: Distribution) -> list[tuple[str, float]]:
    found, count = [], 0
    for bound, more in zip((*of.bounds, float("inf")), of.counts or (0,) * (len(of.bounds) + 1), strict=True):
        count += more
        found.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(count)))
    return found


def bounded(names: Iterable[str], most: int = MOST) -> tuple[list[str], int]:
    """The first names in their order, and how many more there are."""
    ordered = sorted(set(names))
    return ordered[:most], max(len(ordered) - most, 0)
