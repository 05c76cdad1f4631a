"""The measurement of the LLM calls: every call is answered, no limit is exceeded, and writes are counted."""

from __future__ import annotations

import pytest

from deployments.bench_llm import KEYS, measure

pytestmark = pytest.mark.integration


def test_calls_are_answered_within_the_limits_and_their_writes_are_counted() -> None:
    # two windows of two seconds, three calls of each key in each
    found = measure(2, scale=1.0, workers=6, per_window=3, window=2.0)
    assert (found.calls, found.abstained, found.violations) == (2 * 3 * len(KEYS), 0, 0)
    assert found.most == 3
    assert found.best == 2.0 + 1.0
    assert found.seconds > found.best
    # a document of its own for each call; threads that come together share the others
    assert found.writes["llm_calls"] == found.calls
    assert len(KEYS) <= found.writes["llm_keys"] <= 3 * found.calls
    assert found.writes_per_call == sum(found.writes.values()) / found.calls
