"""Analyses as documents: what is stored under the bar's close, and when it answers a later question, too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tasks.documents import Document
from tasks.store import ANALYSES, Store
from trading.analysis import LLM, Abstention, Analysis, Opinion
from trading.window import Timeframe, as_utc


@dataclass(frozen=True)
class Analysed:
    """One row of an analysis run.

    ``said`` has each analyst's word, ``absent`` why others have none, ``degraded`` why the model is not the
    champion; ``reused``: nobody was asked again.
    """

    symbol: str
    timestamp: str
    signal: str
    confidence: float
    price: float
    reasons: list[str]
    model_version: str | None
    data_mode: str
    basis: str = ""
    said: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    degraded: str | None = None
    usd: float = 0.0
    reused: bool = False


@dataclass(frozen=True)
class Seen:
    """What an analysis is of: the last bar, and the digests of the candles and of everything else it depends on.

    ``candles_start`` is the open time of the first of those candles.
    """

    symbol: str
    timeframe: Timeframe
    bar_close: datetime
    price: float
    data_mode: str
    candles_digest: str
    inputs_digest: str
    horizon: int
    settings_version: str = ""
    candles_start: datetime | None = None


def analysis_key(symbol: str, timeframe: Timeframe, bar_close: datetime) -> str:
    """The ``_id`` of an analysis: one per symbol, timeframe and bar close."""
    return f"{symbol}|{timeframe.value}|{as_utc(bar_close):%Y-%m-%dT%H:%M:%SZ}"


def inputs_digest(*parts: object) -> str:
    """Names everything that an analysis depends on; equal digests, equal analyses (an LLM's word apart)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def stored_analysis(store: Store, symbol: str, timeframe: Timeframe, bar_close: datetime) -> Document | None:
    """The analysis of that bar, or None."""
    return store.documents.get(ANALYSES, analysis_key(symbol, timeframe, bar_close))


def still_good(stored: Document | None, digest: str, ttl: timedelta, now: datetime) -> bool:
    """Whether the stored analysis answers a question with these inputs: the same, not too old, and the LLM not missing.

    An analysis of ``now`` itself is good: a retry buys nothing twice. One from the future of ``now`` is not.
    """
    if stored is None or stored.get("inputs_digest") != digest:
        return False
    age = now - stored["created_at"]
    return timedelta(0) <= age < ttl and LLM not in stored["analysis"]["absent"]


def document(
    seen: Seen, analysis: Analysis, model: Mapping[str, Any] | None, before: Document | None, flow_run_id: str | None,
    now: datetime,
) -> Document:  # fmt: skip
    """The analysis as it is stored.

    ``symbol``, ``timestamp``, ``analysis`` (``signal``, ``confidence``, ``reasoning``) and ``created_at`` are what the
    engine reads; the rest is ours. ``spent`` has what the bar cost so far by analyst, in US dollars: also for
    analyses that this one replaces, and for questions that nobody answered.
    """
    asked: tuple[Opinion | Abstention, ...] = (*analysis.opinions, *analysis.compared, *analysis.abstentions)
    paid = [(one.analyst, one.cost) for one in asked if one.cost is not None]
    cost = {
        "usd": sum(each.usd for _, each in paid),
        "prompt_tokens": sum(each.prompt_tokens for _, each in paid),
        "completion_tokens": sum(each.completion_tokens for _, each in paid),
    }
    spent = dict(before.get("spent", {})) if before is not None else {}
    # what was written before the task died, and is written again by its retry, was paid once
    same = {"flow_run_id": flow_run_id, "created_at": now, "cost": cost}
    if before is None or any(before.get(name) != value for name, value in same.items()):
        for analyst, each in paid:
            spent[analyst] = spent.get(analyst, 0.0) + each.usd
    latencies = [opinion.latency for opinion in analysis.opinions if opinion.latency is not None]
    return {
        "symbol": seen.symbol,
        "timeframe": seen.timeframe.value,
        "timestamp": seen.bar_close,
        "analysis": {
            "signal": analysis.signal.value,
            "confidence": analysis.confidence,
            "reasoning": "\n".join(analysis.reasons),
            "opinions": [*map(opinion_document, analysis.opinions)],
            "absent": list(analysis.absent),
            "basis": analysis.basis,
            "score": analysis.score,
            "weights": dict(analysis.weights),
            "abstentions": [asdict(one) for one in analysis.abstentions],
            "compared": [*map(opinion_document, analysis.compared)],
        },
        "basis": analysis.basis,
        "horizon": seen.horizon,
        "price": seen.price,
        "cost": cost,
        "spent": spent,
        "latency": sum(latencies) if latencies else None,
        "candles_digest": seen.candles_digest,
        "candles_start": seen.candles_start,
        "inputs_digest": seen.inputs_digest,
        "settings_version": seen.settings_version,
        "data_mode": seen.data_mode,
        "model": dict(model) if model is not None else None,
        "flow_run_id": flow_run_id,
        "created_at": now,
    }


def opinion_document(opinion: Opinion) -> Document:
    """An opinion as BSON values, its parts likewise."""
    return {
        "analyst": opinion.analyst,
        "signal": opinion.signal.value,
        "confidence": opinion.confidence,
        "reasons": list(opinion.reasons),
        "provenance": dict(opinion.provenance),
        "horizon": opinion.horizon,
        "cost": asdict(opinion.cost) if opinion.cost is not None else None,
        "latency": opinion.latency,
        "parts": [*map(opinion_document, opinion.parts)],
    }


def row(stored: Document, *, reused: bool) -> Analysed:
    """A stored analysis as a row of a run."""
    analysis, model = stored["analysis"], stored["model"]
    version = None
    if model is not None:
        version = f"v{model['version']} {model['estimator']}" + (", degraded" if model["degraded"] else "")
    reasons = {one["analyst"]: one["reason"] for one in analysis["abstentions"]}
    return Analysed(
        symbol=stored["symbol"],
        timestamp=stored["timestamp"].isoformat(),
        signal=analysis["signal"],
        confidence=round(analysis["confidence"], 4),
        price=stored["price"],
        reasons=analysis["reasoning"].split("\n"),
        model_version=version,
        data_mode=stored["data_mode"],
        basis=analysis["basis"],
        said={
            one["analyst"]: f"{one['signal']} {one['confidence']:.2f}"
            for one in (*analysis["opinions"], *analysis["compared"])
        },
        absent={name: reasons.get(name, "") for name in analysis["absent"]},
        degraded=model["degraded"] if model is not None else None,
        usd=0.0 if reused else stored["cost"]["usd"],
        reused=reused,
    )


def abstention(error: Exception, analyst: str) -> Abstention:
    """What went wrong with an analyst, as the reason that it does not speak."""
    return Abstention(analyst, f"{type(error).__name__}: {error}")
