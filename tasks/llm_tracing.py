"""Conversations with the LLM as MLflow traces: prompt, reply, latency, tokens and cost, as its pages show them.

One trace per question in the experiment ``llm``, one span per call in it. They are written after the fact, with
their true times, by MLflow's own background threads; ``close`` waits for those. Where MLflow cannot be reached the
analysis goes on without a trace: the call's document in the store has tokens and cost all the same.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx

from tasks import log, registry
from tasks.addresses import without_login
from tasks.llm import Conversation, Exchange
from tasks.llm_budget import NANO
from tasks.settings import Settings

if TYPE_CHECKING:
    from mlflow.entities import LiveSpan

EXPERIMENT: Final = "llm"
# with it the pages of the experiment open with its traces
_KIND: Final = "genai_development"
FLUSH_SECONDS: Final = 20.0
ANSWER_SECONDS: Final = 5.0


class MlflowTracer:
    """``tasks.llm.Tracer`` that writes to an experiment."""

    def __init__(self, experiment: str) -> None:
        self._experiment = experiment

    def keep(self, conversation: Conversation) -> str | None:
        """Write the trace; its id, which leads to it in the pages. Safe for threads."""
        import mlflow

        talk, calls = conversation, conversation.exchanges
        about, cost = talk.about, talk.cost
        tags = {
            "question": talk.id,
            "purpose": about.purpose,
            "symbol": about.symbol,
            "data_mode": about.data_mode,
            "flow_run_id": talk.flow_run_id,
            "outcome": "failed" if talk.error else "answered",
        }
        root = mlflow.start_span_no_context(
            " ".join(filter(None, (about.purpose, about.symbol))),
            span_type="CHAIN",
            inputs={"messages": list(calls[0].messages)},
            attributes={"usd": cost.usd, "calls": len(calls), "endpoint": talk.host, "model": talk.model},
            tags={name: value for name, value in tags.items() if value},
            metadata={"mlflow.trace.session": talk.flow_run_id or talk.id},
            experiment_id=self._experiment,
            start_time_ns=_ns(calls[0], 0.0),
        )
        for call in calls:
            _span(root, call, talk)
        last = calls[-1].reply
        root.end(
            outputs={"error": talk.error} if talk.error else {"reply": _readable(last.text) if last else None},
            status="ERROR" if talk.error else "OK",
            end_time_ns=_ns(calls[-1], calls[-1].seconds),
        )
        # MLflow gives a span that leads nowhere where it could not begin one
        return str(root.trace_id) if root.trace_id and "NOOP" not in root.trace_id.upper().replace("_", "") else None


@contextmanager
def opened_tracer(settings: Settings) -> Iterator[MlflowTracer | None]:
    """The tracer of the configured MLflow; None, and a warning, where it does not answer.

    At the end traces under way are waited for, ``FLUSH_SECONDS`` at most.
    """
    from mlflow.exceptions import MlflowException

    try:
        require_answer(settings)
        tracer = MlflowTracer(_experiment(settings))
    except (MlflowException, httpx.HTTPError) as error:
        log.logger().warning("LLM calls are not traced", reason=without_login(str(error))[:300])
        yield None
        return
    try:
        yield tracer
    finally:
        _flush()


def trace_link(settings: Settings, experiment: str, trace: str) -> str:
    """Address of a trace in the MLflow pages."""
    return f"{settings.mlflow_ui_url.rstrip('/')}/#/experiments/{experiment}/traces?selectedEvaluationId={trace}"


def require_answer(settings: Settings) -> None:
    """Ask a server whether it is there: MLflow's own client would try for minutes. Raises httpx.HTTPError."""
    uri = registry.tracking_uri(settings)
    if uri.startswith(("http://", "https://")):
        httpx.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS).raise_for_status()


def _experiment(settings: Settings) -> str:
    client = registry.connect(settings)
    experiment = registry.experiment_id(client, settings, EXPERIMENT)
    client.set_experiment_tag(experiment, "mlflow.experimentKind", _KIND)
    return experiment


def _span(root: LiveSpan, call: Exchange, talk: Conversation) -> None:
    import mlflow
    from mlflow.tracing.constant import SpanAttributeKey

    attributes: dict[str, Any] = {
        SpanAttributeKey.MODEL: call.reply.model if call.reply else talk.model,
        SpanAttributeKey.MODEL_PROVIDER: talk.host,
        SpanAttributeKey.MESSAGE_FORMAT: "openai",
        # what we paid by our own prices; MLflow knows those of some models only
        SpanAttributeKey.LLM_COST: _cost(call, talk),
        "outcome": call.outcome,
        "latency_seconds": round(call.seconds, 3),
        "usd": call.nano / NANO,
        "key_number": call.key,
        "call": call.call,
    }
    if call.tokens:
        names = ("input_tokens", "output_tokens", "total_tokens")
        attributes[SpanAttributeKey.CHAT_USAGE] = dict(zip(names, (*call.tokens, sum(call.tokens)), strict=True))
    span = mlflow.start_span_no_context(
        f"call {talk.exchanges.index(call) + 1}: {call.outcome}",
        span_type="CHAT_MODEL",
        parent_span=root,
        inputs={"model": talk.model, "messages": list(call.messages)},
        attributes=attributes,
        start_time_ns=_ns(call, 0.0),
    )
    said = {"role": "assistant", "content": call.reply.text} if call.reply else None
    span.end(
        outputs={"choices": [{"message": said}]} if said else {"error": call.outcome},
        status="OK" if call.reply else "ERROR",
        end_time_ns=_ns(call, call.seconds),
    )


def _readable(text: str) -> Any:
    """A reply that is JSON as what it says, so that the pages show it and not its quotation marks."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _cost(call: Exchange, talk: Conversation) -> dict[str, float]:
    usd = call.nano / NANO
    prompt = talk.price.nano(call.tokens[0], 0) / NANO if call.tokens else usd
    return {"input_cost": prompt, "output_cost": max(usd - prompt, 0.0), "total_cost": usd}


def _ns(call: Exchange, seconds: float) -> int:
    moment = call.started + timedelta(seconds=seconds)
    return int(moment.timestamp() * 1_000_000) * 1_000


def _flush() -> None:
    import mlflow

    # a server that died is tried for minutes; nobody waits for that
    waiting = threading.Thread(target=mlflow.flush_trace_async_logging, daemon=True)
    waiting.start()
    waiting.join(FLUSH_SECONDS)
    if waiting.is_alive():
        log.logger().warning("LLM traces are still on their way", waited_seconds=FLUSH_SECONDS)
