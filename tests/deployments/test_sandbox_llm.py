"""The stand-in for an LLM endpoint: it speaks the protocol, follows its script, and counts what keys do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deployments.sandbox.llm import LlmState, SandboxLlm, application, running_llm
from deployments.sandbox.llm_replies import opinion_of
from tasks.llm_prompt import LlmOpinion
from tasks.llm_schema import problem_of

FACTS = {"indicators": {"rsi_14": 55.5, "macd_histogram": 1.25}}
BODY = {
    "model": "m",
    "messages": [{"role": "system", "content": "judge"}, {"role": "user", "content": json.dumps(FACTS)}],
}


class Endpoint:
    """The application, asked without a server."""

    def __init__(self, **options: Any) -> None:
        self.app = application(**options)
        self.state: LlmState = self.app.state.llm

    def post(self, key: str = "k", body: dict[str, Any] = BODY) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return self.call("POST", "/v1/chat/completions", json=body, headers=headers)

    def call(self, method: str, path: str, **named: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://stub") as client:
                return await client.request(method, path, **named)

        return asyncio.run(ask())


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    yield Endpoint()


def content(reply: httpx.Response) -> str:
    return str(reply.json()["choices"][0]["message"]["content"])


def test_it_answers_with_an_opinion_made_of_the_prompt_s_numbers(endpoint: Endpoint) -> None:
    reply = endpoint.post()
    assert reply.status_code == 200
    found, _ = problem_of(content(reply), LlmOpinion)
    assert found is not None
    assert (found.signal, found.confidence) == ("Long", 0.6)
    assert found.reasons == ["MACD histogram at 1.25", "RSI (14) at 55.5"]
    usage = reply.json()["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 10


@pytest.mark.parametrize(
    ("rsi", "histogram", "signal", "confidence"),
    [(80, 1, "Long", 0.35), (20, -1, "Short", 0.35), (50, -1, "Short", 0.6), (50, 0, "Neutral", 0.6)],
)
def test_it_is_less_sure_against_the_rsi(rsi: float, histogram: float, signal: str, confidence: float) -> None:
    facts = json.dumps({"indicators": {"rsi_14": rsi, "macd_histogram": histogram}})
    found = opinion_of({"messages": [{}, {"content": facts}]})
    assert (found["signal"], found["confidence"]) == (signal, confidence)


def test_a_prompt_without_indicators_is_neutral(endpoint: Endpoint) -> None:
    assert '"Neutral"' in content(endpoint.post(body={"messages": [{"role": "user", "content": "hello"}]}))


def test_a_script_is_taken_reply_by_reply_and_then_over(endpoint: Endpoint) -> None:
    endpoint.call("PUT", "/sandbox/faults", json={"script": ["429:7", "500", "401"], "keys": {"b": ["=quota"]}})
    replies = [endpoint.post() for _ in range(4)]
    assert [reply.status_code for reply in replies] == [429, 500, 401, 200]
    assert replies[0].headers["retry-after"] == "7"
    assert [endpoint.post("b").json()["error"]["code"] for _ in range(3)] == ["insufficient_quota"] * 3
    assert endpoint.call("GET", "/sandbox/faults").json() == {"script": [], "keys": {"b": ["=quota"]}, "latency": 0.0}
    endpoint.call("PUT", "/sandbox/faults", json={})
    assert endpoint.post("b").status_code == 200


@pytest.mark.parametrize("asked", [{"script": ["418"]}, {"keys": {"a": ["ok", "never"]}}, {"latency": "long"}, []])
def test_a_script_that_cannot_be_followed_is_refused_and_nothing_changes(endpoint: Endpoint, asked: Any) -> None:
    assert endpoint.call("PUT", "/sandbox/faults", json=asked).status_code == 400
    assert endpoint.post().status_code == 200


def test_real_endpoints_repeat_the_key_and_so_does_it(endpoint: Endpoint) -> None:
    endpoint.state.set({"script": ["401", "echo"]})
    assert "secret-key" in endpoint.post("secret-key").text
    assert "secret-key" in content(endpoint.post("secret-key"))


def test_requests_above_the_limit_of_a_key_are_violations() -> None:
    endpoint = Endpoint(limit=3, window=60.0)
    assert [endpoint.post("a").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    assert endpoint.post("b").status_code == 200
    assert endpoint.call("GET", "/sandbox/requests").json() == {
        "a": {"requests": 5, "replies": {"200": 3, "429": 2}, "most_in_window": 5, "violations": 2},
        "b": {"requests": 1, "replies": {"200": 1}, "most_in_window": 1, "violations": 0},
    }
    endpoint.call("PUT", "/sandbox/requests")
    assert endpoint.call("GET", "/sandbox/requests").json() == {}


@pytest.mark.integration
def test_as_a_process_of_its_own() -> None:
    with running_llm(latency=0.05) as running:
        assert isinstance(running, SandboxLlm)
        assert httpx.get(f"{running.url}/models").json()["data"][0]["id"] == "sandbox"
        running.set_faults("500")
        headers = {"Authorization": "Bearer k"}
        replies = [httpx.post(f"{running.url}/chat/completions", json=BODY, headers=headers) for _ in range(2)]
        assert [reply.status_code for reply in replies] == [500, 200]
        assert running.requests()["k"]["replies"] == {"500": 1, "200": 1}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/models")
