"""The look-ahead check: what a strategy decided must not change with what comes after.

A strategy is asked again with the future cut off at some bar, and again with another future after it. What
it had decided up to that bar must stand: targets exactly, price levels to 1e-9, NaN equal to NaN.

Cuts lie where peeking shows: at bars where a target changes, anywhere else, where the first decision is
made, and at the last few bars. A check proves the presence of peeking, not its absence: one that happens
once in a thousand bars, and changes no target, may be missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import pandas as pd

from trading.backtest.rules import Decisions
from trading.errors import InsufficientHistory, LookAhead, StrategyFailed
from trading.strategies import Strategy

CUTS: Final = 32
_PIECES: Final = 4
_SHORTEST: Final = 2_000  # bars of a piece, so that it holds many times the warm-up of most rules
_BUDGET: Final = 60_000  # bars
_TOLERANCE: Final = 1e-9
_ADVICE: Final = (
    "a decision may use its bar and earlier ones only: no shift(-n), centred windows, backward fills, statistics "
    "of the whole series, unfinished bins, nor the number of candles"
)


def check_lookahead(
    name: str, decide: Strategy, candles: pd.DataFrame, *, bars_needed: int = 1, seed: int = 0, cuts: int = CUTS
) -> int:
    """Ask a strategy what it decides with other futures, or none, and refuse it where that changes anything.

    Costs at most six runs over the whole series (two to see that it answers the same twice, one with another
    future, two without the last few bars, one up to the first decision), and up to ``cuts`` runs over pieces
    of it: together at most 60,000 bars, or half the series where that is more, and one run.

    Args:
        name: of the strategy, for messages.
        candles: as the backtest has them.
        bars_needed: the strategy is not asked about fewer candles.
        seed: of the places of the cuts.
        cuts: how many in the pieces, at most.

    Returns:
        How many cuts were compared.

    Raises:
        LookAhead: names the strategy, the first bar whose decision changed, and both decisions.
        StrategyFailed: as ``decisions_of``; or it changed the candles, or gave two answers to one question.
        InsufficientHistory: there are fewer than ``bars_needed`` + 1 candles, or fewer than 2.
    """
    least = max(bars_needed, 1)
    if len(candles) <= least:
        raise InsufficientHistory(
            f"{name} cannot be checked for look-ahead on {len(candles)} candles; it needs {least + 1}"
        )
    own = candles.copy(deep=True)
    subject = _Subject(name, decide, own, np.random.default_rng(seed))
    whole = subject.asked(own)
    _unchanged(name, own, candles)
    again = subject.asked(own)
    differing = _first_difference(whole, again)
    if differing is not None:
        at, what = differing
        raise StrategyFailed(
            f"{name} gave two answers to one question: {what} at {own.index[at]}; give its randomness a seed, and "
            "keep nothing between calls"
        )
    done = 0
    for cut in _everywhere(subject.rng, whole, least):
        _compare(subject, own, whole, cut)
        done += 1
    for piece, decided, cut in _in_pieces(subject, own, whole, least, cuts):
        _compare(subject, piece, decided, cut)
        done += 1
    _unchanged(name, own, candles)
    return done


def decisions_of(name: str, decide: Strategy, candles: pd.DataFrame) -> Decisions:
    """What a strategy decides on these candles, as float64 ``Decisions`` that were checked.

    Raises:
        StrategyFailed: it raised (the error is chained), or its answer has the wrong length, targets outside
            [-1, 1], or levels that are infinite or (but for the edge) not above zero; names strategy and bar.
    """
    # as they were before it was asked: it may change its candles
    times, span = candles.index, _span(candles)
    try:
        answer = decide(candles)
    except Exception as error:
        raise StrategyFailed(f"{name} failed on {span}: {type(error).__name__}: {error}") from error
    given = answer if isinstance(answer, Decisions) else Decisions(answer)
    checked = {}
    for entry in fields(Decisions):
        what = entry.name.replace("_", " ")
        values = _numbers(name, what, getattr(given, entry.name))
        if values.shape != (len(times),) and (entry.name == "targets" or values.size):
            raise StrategyFailed(f"{name} gave {what} of shape {values.shape} for {span}; give one per candle")
        if entry.name == "targets":
            wrong, allowed = ~(np.abs(values) <= 1), "a number from -1 to +1"
        elif entry.name == "edge":
            wrong, allowed = np.isinf(values), "finite, or NaN for none"
        else:
            wrong, allowed = (values <= 0) | np.isinf(values), "above zero, or NaN for none"
        if wrong.any():
            at = int(np.argmax(wrong))
            raise StrategyFailed(f"{name} gave {what} {values[at]} at {times[at]}; it must be {allowed}")
        checked[entry.name] = values
    return Decisions(**checked)


@dataclass(frozen=True)
class _Cut:
    """After ``known`` bars comes nothing, or another future."""

    known: int
    another: bool


@dataclass(frozen=True, eq=False)
class _Subject:
    name: str
    decide: Strategy
    candles: pd.DataFrame
    rng: np.random.Generator

    def asked(self, candles: pd.DataFrame) -> Decisions:
        return decisions_of(self.name, self.decide, candles)


def _everywhere(rng: np.random.Generator, whole: Decisions, least: int) -> Iterator[_Cut]:
    """Cuts of the whole series."""
    rows = len(whole.targets)
    known = {rows - 1, max(rows - int(rng.integers(2, 6)), least)}
    first = _first_decision(whole)
    if least < first + 1 < rows:
        known.add(first + 1)
    yield from (_Cut(each, another=False) for each in sorted(known))
    yield _Cut(int(rng.integers(max(least, rows // 4), rows)), another=True)


def _in_pieces(
    subject: _Subject, own: pd.DataFrame, whole: Decisions, least: int, cuts: int
) -> Iterator[tuple[pd.DataFrame, Decisions, _Cut]]:
    """Cuts of pieces that begin all over the series, as long as the budget lasts."""
    rows = len(own)
    length = min(rows, max(_SHORTEST, 3 * max(least, _first_decision(whole) + 1)))
    pieces = min(_PIECES, -(-rows // length))
    budget, left = max(_BUDGET, rows // 2), cuts
    for number in range(pieces):
        # the first piece is the beginning, the last one the end
        start = (rows - length) * number // max(pieces - 1, 1)
        piece = own.iloc[start : start + length]
        if length == rows:
            decided = whole
        else:
            decided, budget = subject.asked(piece), budget - length
        for cut in _where(subject.rng, decided, least, left // (pieces - number)):
            if budget <= 0:
                return
            yield piece, decided, cut
            budget -= length if cut.another else cut.known
            left -= 1


def _where(rng: np.random.Generator, decided: Decisions, least: int, count: int) -> Iterator[_Cut]:
    """Cuts of one piece: at changes of the target and anywhere in turn; no future and another one in pairs."""
    rows = len(decided.targets)
    low = min(max(least, _first_decision(decided) + 1), rows - 1)
    if count < 1:
        return
    edges = np.linspace(low, rows, count + 1)
    known = np.minimum(rng.uniform(edges[:-1], edges[1:]).astype(np.int64), rows - 1)
    # the bar that changes is the last one known
    changes = np.flatnonzero(np.diff(decided.targets)) + 2
    changes = changes[(changes >= least) & (changes < rows)]
    if len(changes):
        known[::2] = rng.choice(changes, len(known[::2]))
    for number, each in enumerate(known.tolist()):
        yield _Cut(each, another=number // 2 % 2 == 1)


def _compare(subject: _Subject, candles: pd.DataFrame, decided: Decisions, cut: _Cut) -> None:
    shown = _with_another_future(candles, cut.known, subject.rng) if cut.another else candles.iloc[: cut.known]
    then = subject.asked(shown)
    differing = _first_difference(_until(decided, cut.known), _until(then, cut.known))
    if differing is None:
        return
    at, what = differing
    instead = "another future" if cut.another else "no candles"
    raise LookAhead(
        f"{subject.name} looks ahead: {what} at {candles.index[at]}, decided first with the candles that came, then "
        f"with {instead} after {candles.index[cut.known - 1]}; {_ADVICE}"
    )


def _with_another_future(candles: pd.DataFrame, known: int, rng: np.random.Generator) -> pd.DataFrame:
    """The same candles up to ``known``, then what rose falls and what fell rises, by half as much again.

    Prices are mirrored on the last known close; volumes, and columns of other kinds, are shuffled.
    """
    future = candles.iloc[known:]
    order = known + rng.permutation(len(future))
    values = {name: candles[name].to_numpy().copy() for name in candles.columns}
    for column in values.values():
        column[known:] = column[order]
    last = float(candles["close"].iloc[known - 1])
    for name, source in {"open": "open", "high": "low", "low": "high", "close": "close"}.items():
        moved = np.log(future[source].to_numpy() / last)
        values[name][known:] = last * np.exp(np.clip(-1.5 * moved, -50, 50))
    values["volume"][known:] *= 2.0
    return pd.DataFrame(values, index=candles.index, copy=False)


def _first_difference(one: Decisions, other: Decisions) -> tuple[int, str] | None:
    """The first bar at which two decisions differ, and what of it, in words."""
    found: tuple[int, str] | None = None
    for entry in fields(Decisions):
        mine, theirs = getattr(one, entry.name), getattr(other, entry.name)
        if len(mine) != len(theirs):
            # levels that are given at one time and not at another
            mine, theirs = (values if len(values) else np.full(len(one.targets), np.nan) for values in (mine, theirs))
        unequal = mine != theirs
        if unequal.any():
            tolerance = 0.0 if entry.name == "targets" else _TOLERANCE
            unequal = ~np.isclose(mine, theirs, rtol=tolerance, atol=0.0, equal_nan=True)
        if unequal.any() and (found is None or int(np.argmax(unequal)) < found[0]):
            at = int(np.argmax(unequal))
            name = "target" if entry.name == "targets" else entry.name.replace("_", " ")
            found = at, f"its {name} is {mine[at]:.12g} and then {theirs[at]:.12g}"
    return found


def _first_decision(decided: Decisions) -> int:
    """The first bar with a target; 0 where there is none."""
    return int(np.argmax(decided.targets != 0))


def _until(decided: Decisions, known: int) -> Decisions:
    return Decisions(**{entry.name: getattr(decided, entry.name)[:known] for entry in fields(Decisions)})


def _numbers(name: str, what: str, values: object) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise StrategyFailed(f"{name} gave {what} of {type(values).__name__}; give an array of numbers") from error


def _unchanged(name: str, shown: pd.DataFrame, before: pd.DataFrame) -> None:
    same = shown.columns.equals(before.columns) and shown.index.equals(before.index)
    for column in before.columns if same else ():
        same = same and np.array_equal(shown[column].to_numpy(), before[column].to_numpy())
    if not same:
        raise StrategyFailed(f"{name} changed the candles it was given; work on a copy, such as candles.assign(...)")


def _span(candles: pd.DataFrame) -> str:
    return f"{len(candles)} candles until {candles.index[-1]}" if len(candles) else "no candles"
