"""The rows that a request is answered with, and their JSON text.

A page costs next to nothing once its rows were asked for: text is made in blocks and kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate, islice
from typing import Final

import numpy as np
import orjson

from deployments.sandbox.markets import Market
from trading.candles import COLUMNS

BLOCK: Final = 1024  # rows whose text is made together; about the largest page
KEPT: Final = 1024  # blocks: a million rows, some 150 MB
FAR: Final = 2**62  # numpy compares no larger whole numbers with times

Positions = slice | np.ndarray


def page(market: Market, newest: int, first: int | None, last: int | None, limit: int) -> Positions:
    """Positions of the rows that a request is answered with: the oldest from ``first``, else the newest.

    Args:
        newest: no row that opens after it, in ms, is there yet.
        first, last: open times in ms, both counted in.
    """
    end = max(min(newest, newest if last is None else last), -FAR)
    begin = -FAR if first is None else min(max(first, -FAR), FAR)
    if market.in_order:
        start = int(np.searchsorted(market.opens, begin, side="left"))
        stop = int(np.searchsorted(market.opens, end, side="right"))
        if first is not None:
            return slice(start, max(start, min(stop, start + limit)))
        return slice(max(0, stop - limit), stop)
    # a file of the user's may have its rows in any order: they are served as they stand
    at = np.flatnonzero((market.opens >= begin) & (market.opens <= end))
    return at[:limit] if first is not None else at[-limit:]


def klines(market: Market, at: Positions) -> list[str]:
    """Rows as the protocol writes them: times as numbers, prices and volumes as text."""
    opens, values = market.opens[at], market.values[at]
    step = market.step - 1
    texts = iter(_texts(values))
    with np.errstate(all="ignore"):  # a file of the user's may hold any numbers
        turnovers = (values[:, 3] * values[:, 4]).tolist()
    return [
        f'[{opened},"{o}","{h}","{low}","{c}","{v}",{opened + step},"{turnover:.8f}",0,"0","0","0"]'
        for opened, o, h, low, c, v, turnover in zip(
            opens.tolist(), texts, texts, texts, texts, texts, turnovers, strict=True
        )
    ]


def klines_text(market: Market, at: Positions) -> bytes:
    """The same with commas between, from the blocks that are kept."""
    if not isinstance(at, slice):
        return ",".join(klines(market, at)).encode()
    parts = []
    for number in range(at.start // BLOCK, -(-at.stop // BLOCK)):
        text, begins = _block(market, number)
        first, last = max(at.start - number * BLOCK, 0), min(at.stop - number * BLOCK, BLOCK)
        # each row stands with a comma after it
        parts.append(text[begins[first] : begins[last] - 1])
    return b",".join(parts)


def candles(market: Market, at: Positions) -> list[str]:
    """Rows as the engine's chart writes them."""
    return [
        orjson.dumps({"timestamp": opened, **dict(zip(COLUMNS, row, strict=True))}).decode()
        for opened, row in zip(market.opens[at].tolist(), market.values[at].tolist(), strict=True)
    ]


def render(markets: Iterable[Market]) -> None:
    """Make the text of those markets now, as far as it is kept."""
    blocks = ((market, number) for market in markets for number in range(-(-len(market.opens) // BLOCK)))
    for market, number in islice(blocks, KEPT):
        _block(market, number)


@lru_cache(maxsize=KEPT)
def _block(market: Market, number: int) -> tuple[bytes, list[int]]:
    """Text of the rows of a block, and where each of them begins and the last one ends."""
    rows = klines(market, slice(number * BLOCK, (number + 1) * BLOCK))
    return "".join(f"{row}," for row in rows).encode(), list(accumulate((len(row) + 1 for row in rows), initial=0))


def _texts(values: np.ndarray) -> list[str]:
    """``repr`` of every number, row by row."""
    flat = np.ascontiguousarray(values, dtype="float64").ravel()
    # orjson is six times as fast and writes the same digits, but no exponents of small numbers, and no nan
    if flat.size and (((flat >= 1e-4) & (flat < 1e15)) | (flat == 0)).all():
        return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode().split(",")
    return list(map(repr, flat.tolist()))
