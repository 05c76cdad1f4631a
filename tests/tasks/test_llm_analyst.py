"""The LLM analyst against a stand-in that speaks the real protocol: each fault, what is said, stored and told."""

from __future__ import annotations

import ipaddress
import logging
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from deployments.bench_figures import market
from deployments.sandbox.llm import SandboxLlm, application, serving
from tasks import addresses, circuit
from tasks.addresses import ANYWHERE, Access
from tasks.circuit import Breaker, Rule
from tasks.llm import Conversation, Llm, Setup
from tasks.llm_analyst import opinion
from tasks.llm_budget import NANO, Budget, Price, calls_of
from tasks.llm_client import MASK, Client, masking, opened_client
from tasks.llm_keys import KeyPool, KeyRule, key_states
from tasks.llm_notices import notices, tell_once
from tasks.llm_prompt import CAPPED
from tasks.llm_setup import missing, opened_llm
from tasks.notification_texts import Message
from tasks.settings import Settings, load_settings
from tasks.sqlite_documents import SqliteDocuments
from tasks.store import LLM_BUDGETS, LLM_CALLS, LLM_KEYS, Store, open_store
from trading.analysis import Abstention, Opinion, Signal
from trading.errors import ConfigurationError, LlmError, LlmKeyRefused, LlmUnavailable, StoreUnavailable
from trading.window import Timeframe, Window

# a server in a thread, and the official client takes two seconds to import
pytestmark = pytest.mark.integration

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = "2026-11-21"
SECRETS = ("sk-stub-alpha-0123456789abcdef", "sk-stub-bravo-fedcba9876543210", "sk-stub-gamma-5555aaaa7777cccc")
KEYS = [SecretStr(secret) for secret in SECRETS]
CANDLES = market(120, 3_600_000)
START = CANDLES.index[0].to_pydatetime()
WINDOW = Window("BTCSIM", Timeframe.H1, START, START + timedelta(hours=len(CANDLES)))
PRICE = Price(0.150, 0.600)


@dataclass
class Bed:
    """An LLM whose clock passes when it waits; ``kept`` are the conversations that a tracer was told of."""

    endpoint: SandboxLlm
    store: Store
    client: Client
    now: datetime = NOW
    slept: list[float] = field(default_factory=list)
    kept: list[Conversation] = field(default_factory=list)

    def clock(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)

    def keep(self, conversation: Conversation) -> str:
        self.kept.append(conversation)
        return f"tr-{len(self.kept)}"

    def llm(self, keys: int = 3, *, daily: float = 1.0, rule: KeyRule | None = None, failures: int = 50) -> Llm:
        documents = self.store.documents
        return Llm(
            self.client,
            KeyPool(documents, KEYS[:keys], rule or KeyRule(), clock=self.clock, sleep=self.sleep),
            Budget(documents, daily, 10.0, clock=self.clock),
            Breaker(documents, "llm stub", Rule(failures), self.clock),
            Setup("gpt-4o-mini", PRICE),
            tracer=self,
            clock=self.clock,
            sleep=self.sleep,
        )

    def ask(self, *script: str, llm: Llm | None = None, **keys: list[str]) -> Opinion | Abstention:
        """The opinion while the endpoint does this; ``keys`` by name: alpha, bravo, gamma."""
        by_key = {secret: keys[name] for secret in SECRETS for name in keys if name in secret}
        self.endpoint.set_faults(*script, keys=by_key)
        return opinion(llm or self.llm(), CANDLES, WINDOW, horizon=12, data_mode="simulated")

    @property
    def outcomes(self) -> dict[str, int]:
        """How calls ended, as the store has it."""
        return dict(Counter(call["outcome"] for call in calls_of(self.store.documents, DAY)))

    def spent(self) -> float:
        return Budget(self.store.documents, 1.0, 10.0, clock=self.clock).spent().day


@pytest.fixture(scope="module")
def endpoint() -> Iterator[SandboxLlm]:
    with serving(application()) as running:
        yield running


@pytest.fixture(scope="module")
def client(endpoint: SandboxLlm) -> Iterator[Client]:
    with opened_client(endpoint.url, KEYS, access=ANYWHERE, seconds=0.5) as opened:
        yield opened


@pytest.fixture
def bed(endpoint: SandboxLlm, client: Client, tmp_path: Path) -> Iterator[Bed]:
    endpoint.set_faults(latency=0.0)
    endpoint.forget_requests()
    with open_store(tmp_path) as store:
        yield Bed(endpoint, store, client)


def spoken(found: Opinion | Abstention) -> Opinion:
    assert isinstance(found, Opinion), found
    return found


def abstained(found: Opinion | Abstention) -> str:
    assert isinstance(found, Abstention), found
    assert found.analyst == "llm"
    return found.reason


# --- when all goes well --------------------------------------------------------------------------


def test_an_opinion_with_its_cost_latency_and_where_it_came_from(bed: Bed) -> None:
    found = spoken(bed.ask())
    assert found.analyst == "llm"
    assert found.signal in {Signal.LONG, Signal.SHORT}
    assert found.confidence == 0.6
    assert [reason.split(" at ")[0] for reason in found.reasons] == ["MACD histogram", "RSI (14)"]
    assert found.horizon == 12
    [call] = calls_of(bed.store.documents, DAY)
    wanted = {"outcome": "answered", "model": "gpt-4o-mini", "symbol": "BTCSIM", "data_mode": "simulated"}
    assert call | wanted == call
    assert call["usd"] == PRICE.nano(call["prompt_tokens"], call["completion_tokens"]) / NANO
    assert call["reserved_usd"] > call["usd"]
    assert found.cost is not None
    assert found.cost.usd == call["usd"] == bed.spent()
    assert (found.cost.prompt_tokens, found.cost.completion_tokens) == (
        call["prompt_tokens"],
        call["completion_tokens"],
    )
    assert found.latency is not None
    assert found.latency >= call["latency"] > 0
    provenance = found.provenance
    assert (provenance["model"], provenance["calls"], provenance["trace"]) == ("sandbox", "1", "tr-1")
    assert len(provenance["prompt"]) == 64


def test_the_request_is_what_the_protocol_wants(bed: Bed) -> None:
    bed.ask()
    assert bed.endpoint.state is not None
    [body] = bed.endpoint.state.bodies
    assert {name: body[name] for name in ("model", "temperature", "max_tokens")} == {
        "model": "gpt-4o-mini",
        "temperature": 0.0,
        "max_tokens": 1200,
    }
    assert body["response_format"]["json_schema"]["strict"] is True
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_a_reply_whose_tokens_nobody_counted_costs_its_worst_case(bed: Bed) -> None:
    found = spoken(bed.ask("no-usage"))
    [call] = calls_of(bed.store.documents, DAY)
    assert call["usd"] == call["reserved_usd"]
    assert call["prompt_tokens"] is None
    assert found.cost is not None
    assert found.cost.usd == call["usd"]


# --- keys ----------------------------------------------------------------------------------------


def test_a_rate_limit_on_each_key_is_waited_for_as_each_was_told(bed: Bed) -> None:
    found = spoken(bed.ask(alpha=["429:50"], bravo=["429:40"], gamma=["429:30"]))
    assert bed.outcomes == {"rate limited": 3, "answered": 1}
    assert sum(bed.slept) == pytest.approx(30, abs=0.1)
    assert (found.provenance["calls"], bed.kept[0].exchanges[-1].key) == ("4", 3)
    waits = [state.until for state in key_states(bed.store.documents, KEYS)]
    assert waits == [NOW + timedelta(seconds=told) for told in (50, 40, 30)]
    assert bed.spent() == found.cost.usd if found.cost else False


def test_a_rate_limit_without_a_time_cools_every_key_twenty_seconds(bed: Bed) -> None:
    spoken(bed.ask("429", "429", "429"))
    assert sum(bed.slept) == pytest.approx(20, abs=0.1)
    assert [state.strikes for state in key_states(bed.store.documents, KEYS)] == [0, 1, 1]


def test_rate_limits_longer_than_the_patience_end_in_abstention(bed: Bed) -> None:
    said = abstained(bed.ask("429:600", "429:500", "429:400"))
    assert said.startswith("no LLM key may be used: key 1 is rate limited until 2026-11-21T12:10:00Z; key 2")
    assert bed.outcomes == {"rate limited": 3}
    assert (bed.slept, bed.spent()) == ([], 0.0)


def test_a_key_that_is_refused_is_left_alone_and_another_answers(bed: Bed) -> None:
    spoken(bed.ask(alpha=["401"]))
    assert bed.outcomes == {"key refused": 1, "answered": 1}
    bed.now += timedelta(hours=6)
    spoken(bed.ask(alpha=["=401"], llm=bed.llm()))
    assert bed.outcomes == {"key refused": 1, "answered": 2}
    assert bed.endpoint.requests()[SECRETS[0]]["requests"] == 1


@pytest.mark.parametrize(("word", "why"), [("=401", "refused"), ("=403", "refused"), ("=quota", "quota used up")])
def test_with_all_keys_dead_it_abstains_until_the_next_day_and_asks_nobody(bed: Bed, word: str, why: str) -> None:
    llm = bed.llm()
    for _ in range(3):
        assert f"key 3 is {why} until 2026-11-22T00:00:00Z" in abstained(bed.ask(word, llm=llm))
    assert sum(one["requests"] for one in bed.endpoint.requests().values()) == 3
    assert (bed.slept, bed.spent()) == ([], 0.0)
    bed.now = datetime(2026, 11, 22, 0, 0, 1, tzinfo=UTC)
    spoken(bed.ask(llm=llm))


# --- the endpoint --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "said", "billed"),
    [
        ("500", "answered 500", False),
        ("slow:1", "did not answer within 0.5 s", True),
        ("drops", "did not answer within 0.5 s", True),
        ("cut", "broke the connection off", True),
        ("html", "answered with what is no chat completion", True),
    ],
)
def test_an_endpoint_that_fails_is_asked_again_and_then_given_up(bed: Bed, word: str, said: str, billed: bool) -> None:
    assert said in abstained(bed.ask(word, word, word))
    assert bed.outcomes == {"unavailable": 3}
    # 2 and 4 seconds, less what chance takes
    assert len(bed.slept) >= 2
    worst = sum(call["reserved_usd"] for call in calls_of(bed.store.documents, DAY))
    assert bed.spent() == pytest.approx(worst if billed else 0.0)
    [talk] = bed.kept
    assert talk.error is not None
    assert said in talk.error


def test_an_endpoint_that_fails_once_is_forgiven(bed: Bed) -> None:
    found = spoken(bed.ask("500"))
    assert bed.outcomes == {"unavailable": 1, "answered": 1}
    assert found.provenance["calls"] == "2"


def test_an_endpoint_that_is_down_is_left_alone_by_all_workers(bed: Bed) -> None:
    one, other = bed.llm(failures=3), bed.llm(failures=3)
    assert "answered 500" in abstained(bed.ask("=500", llm=one))
    for llm in (one, other, one):
        assert "is left alone until" in abstained(bed.ask("=500", llm=llm))
    assert bed.outcomes == {"unavailable": 3}
    # nothing stays reserved, nor promised: the next may try at once
    assert Budget(bed.store.documents, 1.0, 10.0, clock=bed.clock).spent().under_way == 0
    bed.now += timedelta(minutes=2)
    spoken(bed.ask(llm=other))
    assert circuit.find(bed.store.documents, "llm stub").state is circuit.State.CLOSED


def test_nobody_there(bed: Bed, closed_port: int) -> None:
    with opened_client(f"http://127.0.0.1:{closed_port}/v1", KEYS, access=ANYWHERE, seconds=1) as client:
        bed.client = client
        assert "cannot be reached; check that TRADEFLOWS_LLM_URL is right" in abstained(bed.ask())
    assert bed.spent() == 0.0


@pytest.mark.parametrize(
    ("word", "said"),
    [("400", "answered 400 (model_not_found)"), ("redirect", "answered 307"), ("declined", "declined to answer")],
)
def test_a_refusal_is_not_tried_again(bed: Bed, word: str, said: str) -> None:
    assert said in abstained(bed.ask(word))
    assert sum(bed.outcomes.values()) == 1
    assert bed.slept == []


# --- what it says --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("empty", "it was empty"),
        ("no-json", "Invalid JSON"),
        ("length", "it was cut off, be shorter"),
        ("schema", "signal: Input should be 'Long', 'Short' or 'Neutral'; confidence: Input should be less"),
        ("inject", "max_position: Extra inputs are not permitted"),
    ],
)
def test_an_unusable_reply_is_repaired_once(bed: Bed, word: str, problem: str) -> None:
    found = spoken(bed.ask(word))
    assert bed.outcomes == {"rejected": 1, "answered": 1}
    assert found.provenance["calls"] == "2"
    calls = calls_of(bed.store.documents, DAY)
    assert found.cost is not None
    assert found.cost.usd == pytest.approx(sum(call["usd"] for call in calls))
    assert bed.endpoint.state is not None
    first, second = bed.endpoint.state.bodies
    assert second["messages"][:2] == first["messages"]
    assert [message["role"] for message in second["messages"][2:]] == ["assistant", "user"]
    assert problem in second["messages"][3]["content"]


@pytest.mark.parametrize("word", ["empty", "no-json", "length", "schema", "inject"])
def test_twice_unusable_is_an_abstention(bed: Bed, word: str) -> None:
    found = bed.ask(word, word)
    assert "gave no usable reply, asked twice: " in abstained(found)
    assert bed.outcomes == {"rejected": 2}
    assert bed.spent() > 0
    assert found.cost is not None
    assert found.cost.usd == pytest.approx(bed.spent())


def test_an_injected_reason_is_dropped_and_believed_less(bed: Bed) -> None:
    found = spoken(bed.ask("inject-reasons"))
    assert found.confidence == CAPPED
    assert len(found.reasons) == 2
    assert not any(word in str(found) for word in ("leverage", "script", "evil"))
    assert found.provenance["dropped"] == "1"


def test_invented_numbers_are_no_opinion(bed: Bed) -> None:
    found = bed.ask("invented")
    assert found.cost is not None
    assert found.cost.usd == pytest.approx(bed.spent())
    assert (
        abstained(found) == "sandbox gave no reason that can be shown: it quotes 12345.678, which the data do not have"
    )


def test_too_little_history_is_an_abstention_that_costs_nothing(bed: Bed) -> None:
    found = opinion(bed.llm(), CANDLES.iloc[-10:], WINDOW, horizon=12, data_mode="simulated")
    assert "has 10 candles" in abstained(found)
    assert bed.outcomes == {}


# --- money and the store -------------------------------------------------------------------------


def test_an_exhausted_budget_stops_calls_before_it_is_crossed(bed: Bed) -> None:
    # the worst case of this prompt is about 0.0012 USD
    llm = bed.llm(daily=0.005, rule=KeyRule(pause=timedelta(0)))
    found = [bed.ask(llm=llm) for _ in range(60)]
    spoke = [isinstance(one, Opinion) for one in found]
    assert spoke.index(False) > 20
    assert not any(spoke[spoke.index(False) :])
    assert abstained(found[-1]).startswith("the LLM's budget of this UTC day is 0.005 USD, of which 0.00")
    assert 0.003 < bed.spent() <= 0.005
    assert sum(one["requests"] for one in bed.endpoint.requests().values()) == spoke.count(True)
    bed.now += timedelta(days=1)
    spoken(bed.ask(llm=llm))


def test_a_budget_that_does_not_suffice_for_the_repair_ends_in_abstention(bed: Bed) -> None:
    assert "budget of this UTC day" in abstained(bed.ask("no-json", llm=bed.llm(daily=0.00118)))
    assert bed.outcomes == {"rejected": 1}


def test_a_store_that_is_down_before_the_call_is_raised_and_nobody_is_asked(bed: Bed) -> None:
    llm = bed.llm()
    bed.store.documents.close()
    broken: Any = bed.store.documents
    assert isinstance(broken, SqliteDocuments)
    broken._path = Path("/proc/nowhere/store.db")  # as a disk that went away
    with pytest.raises(StoreUnavailable):
        bed.ask(llm=llm)
    assert bed.endpoint.requests() == {}


def test_a_store_that_dies_during_the_call_leaves_its_worst_case_reserved(bed: Bed, tmp_path: Path) -> None:
    llm = bed.llm()
    broken: Any = bed.store.documents
    settle = llm._budget.settle

    def die(*arguments: Any, **named: Any) -> None:
        broken.close()
        path, broken._path = broken._path, Path("/proc/nowhere/store.db")
        try:
            settle(*arguments, **named)
        finally:
            broken._path = path

    llm._budget.settle = die  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        bed.ask(llm=llm)
    budget = Budget(bed.store.documents, 1.0, 10.0, clock=bed.clock)
    assert 0.001 < budget.spent().under_way < 0.002
    bed.now += timedelta(hours=2)
    assert budget.reconcile() == 1
    assert bed.outcomes == {"lost": 1}


# --- throughput ----------------------------------------------------------------------------------


def test_many_threads_use_every_key_to_its_limit_and_no_further(bed: Bed) -> None:
    """Windows of a second and a half, five requests in each; the true clock, and real waiting."""
    state = bed.endpoint.state
    assert state is not None
    rule = KeyRule(5, timedelta(0), timedelta(seconds=1.5), timedelta(seconds=0.2))
    documents = bed.store.documents
    bed.endpoint.set_faults(latency=0.05)
    state.limit, state.window = 5, 1.5
    found: list[Opinion | Abstention] = []
    # patient: an answer that comes late on a busy machine is no second request
    with opened_client(bed.endpoint.url, KEYS, access=ANYWHERE, seconds=30) as client:
        llm = Llm(
            client,
            KeyPool(documents, KEYS, rule),
            Budget(documents, 1.0, 10.0),
            Breaker(documents, "llm stub"),
            Setup("gpt-4o-mini", PRICE),
        )

        def ask() -> None:
            found.extend(opinion(llm, CANDLES, WINDOW, horizon=12, data_mode="simulated") for _ in range(2))

        threads = [threading.Thread(target=ask) for _ in range(15)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        finally:
            state.limit, state.window = 0, 60.0
    assert [type(one) for one in found] == [Opinion] * 30
    seen = bed.endpoint.requests()
    # which key answers how often hangs on who is waited for; that each was used, and none too often, does not
    assert sum(one["requests"] for one in seen.values()) == 30
    assert [(one["violations"], one["most_in_window"]) for one in seen.values()] == [(0, 5)] * 3


# --- secrets -------------------------------------------------------------------------------------


def test_keys_are_nowhere_to_be_seen(bed: Bed, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Not in logs (of all libraries, at their most talkative), documents, traces, opinions, errors or tracebacks."""
    caplog.set_level(logging.DEBUG)
    seen: list[object] = []
    llm = bed.llm()
    for word in ("401", "429:1", "quota", "400", "500", "cut", "html", "echo", "slow:1"):
        seen.append(bed.ask(word, llm=llm))
        bed.now += timedelta(days=1)
        for number, key in enumerate(KEYS):
            bed.endpoint.set_faults(word)
            try:
                reply = bed.client.complete(key, {"model": "m", "messages": [{"role": "user", "content": "x"}]})
                seen.append(reply)
            except LlmError as error:
                assert error.__cause__ is error.__context__ is None
                # locals of our own frames, as some loggers show them
                frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
                assert all(Path(frame.f_code.co_filename).parent.name == "tasks" for frame in frames)
                seen += [repr(error), vars(error), number, *(str(frame.f_locals) for frame in frames)]
    documents = bed.store.documents
    seen += [documents.find(collection) for collection in (LLM_CALLS, LLM_KEYS, LLM_BUDGETS)]
    seen += [bed.kept, caplog.text, [vars(record) for record in caplog.records], llm, bed.client]
    bed.store.documents.close()
    text = "\n".join(map(str, seen)) + "".join(
        path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()
    )
    assert MASK in text  # the endpoint did say one
    for secret in SECRETS:
        # the first characters are the same for all, and say nothing
        for at in range(len("sk-stub-"), len(secret) - 7):
            assert secret[at : at + 8] not in text


def test_a_key_is_masked_wherever_it_stands() -> None:
    mask = masking(KEYS)
    secret = SECRETS[0]
    assert mask(f"a {secret} b") == f"a {MASK} b"
    assert mask(f"a {secret[3:15]}... b") == f"a {MASK}... b"
    assert mask(secret + secret) == MASK * 2 or MASK in mask(secret + secret)
    assert mask("nothing of it") == "nothing of it"
    assert masking([SecretStr("none")])("none of them") == "none of them"


def test_an_error_says_who_and_what_and_holds_no_request(bed: Bed) -> None:
    bed.endpoint.set_faults("401")
    with pytest.raises(LlmKeyRefused) as caught:
        bed.client.complete(KEYS[0], {"model": "m", "messages": [{"role": "user", "content": "x"}]})
    assert str(caught.value) == f"{bed.client.host} answered 401"
    assert "openai" not in "".join(traceback.format_exception(caught.value))


def test_a_host_that_is_not_listed_is_refused(bed: Bed) -> None:
    opening = opened_client(bed.endpoint.url, KEYS, access=Access(("localhost",)), seconds=1)
    with pytest.raises(ConfigurationError, match=r"TRADEFLOWS_LLM_URL names 127\.0\.0\.1"), opening:
        pass


def test_a_name_that_leads_elsewhere_when_it_is_called_gets_no_key(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """It resolved to a listed address when the client was made, and to another when it connects."""
    listed = [ipaddress.ip_address("10.1.2.3")]
    monkeypatch.setattr(addresses, "_resolve", lambda host: listed)
    url = bed.endpoint.url.replace("127.0.0.1", "localhost")
    with opened_client(url, KEYS, access=Access(("10.0.0.0/8",)), seconds=1) as client:
        bed.client = client
        said = abstained(bed.ask())
    assert "TRADEFLOWS_LLM_URL names localhost at 127.0.0.1" in said
    assert bed.endpoint.requests() == {}
    assert (bed.outcomes, bed.spent()) == ({"refused": 1}, 0.0)


# --- the settings --------------------------------------------------------------------------------


@pytest.fixture
def configured(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    def configure(**others: str) -> Settings:
        told = {
            "TRADEFLOWS_LLM": "on",
            "OPENAI_BASE_URL": bed.endpoint.url,
            "OPENAI_API_KEY": SECRETS[0],
            "OPENAI_BACKUP_API_KEYS": f"your-second-key, {SECRETS[1]},{SECRETS[0]}, ,{SECRETS[2]}",
        }
        for name, value in (told | others).items():
            monkeypatch.setenv(name, value)
        return load_settings()

    return configure


def test_keys_come_in_order_once_and_placeholders_are_none(configured: Callable[..., Settings]) -> None:
    settings = configured()
    assert [key.get_secret_value() for key in settings.llm_keys] == list(SECRETS)
    assert not any(secret[8:] in repr(settings) for secret in SECRETS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"TRADEFLOWS_LLM": "off"}, "the LLM is off; set TRADEFLOWS_LLM=on and OPENAI_API_KEY"),
        ({"OPENAI_API_KEY": "your-key", "OPENAI_BACKUP_API_KEYS": ""}, "the LLM has no key; set OPENAI_API_KEY"),
        ({"TRADEFLOWS_LLM_MODEL": "other"}, "the price of the LLM 'other' is not known"),
        ({"OPENAI_API_KEY": "sk-schlüssel-0123456789"}, "LLM key 1 has characters that no header can hold"),
    ],
)
def test_why_there_is_no_llm(bed: Bed, configured: Callable[..., Settings], changed: dict[str, str], said: str) -> None:
    settings = configured(**changed)
    assert (missing(settings) or "").startswith(said)
    with pytest.raises(ConfigurationError, match=said[:20]), opened_llm(settings, bed.store.documents):
        pass


def test_one_setting_and_a_key_are_enough(bed: Bed, configured: Callable[..., Settings]) -> None:
    bed.endpoint.set_faults()
    with opened_llm(configured(), bed.store.documents, traced=False) as llm:
        spoken(opinion(llm, CANDLES, WINDOW, horizon=12, data_mode="simulated"))


def test_without_an_mlflow_that_answers_it_speaks_all_the_same(
    bed: Bed, configured: Callable[..., Settings], closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    bed.endpoint.set_faults()
    settings = configured(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{closed_port}")
    with opened_llm(settings, bed.store.documents) as llm:
        found = spoken(opinion(llm, CANDLES, WINDOW, horizon=12, data_mode="simulated"))
    assert "trace" not in found.provenance
    assert "LLM calls are not traced" in caplog.text


# --- who is told ---------------------------------------------------------------------------------


def test_what_is_told_of_dead_keys_and_budgets_is_told_once(bed: Bed, configured: Callable[..., Settings]) -> None:
    settings = configured(TRADEFLOWS_LLM_DAILY_BUDGET="0.01", TRADEFLOWS_CIRCUIT_FAILURES="3")
    documents = bed.store.documents
    sent: list[Message] = []
    bed.ask(alpha=["401"])
    assert [message.title for message in notices(documents, settings, bed.now)] == ["LLM key 1: refused"]
    assert tell_once(documents, settings, bed.now, sent.append) == 1
    bed.ask("=quota")
    assert tell_once(documents, settings, bed.now, sent.append) == 3
    assert tell_once(documents, settings, bed.now, sent.append) == 0
    assert [message.title for message in sent] == [
        "LLM key 1: refused",
        "LLM key 2: quota used up",
        "LLM key 3: quota used up",
        "LLM has no key left",
    ]
    assert not any(secret[8:16] in str(sent) for secret in SECRETS)

    budget = Budget(documents, 0.01, 10.0, clock=bed.clock)
    budget.settle(budget.reserve(8_100_000, {}), "answered", nano=8_100_000, latency=0.1, tokens=None)

    def fail(message: Message) -> None:
        raise StoreUnavailable("nobody home")

    with pytest.raises(StoreUnavailable):
        tell_once(documents, settings, bed.now, fail)
    assert tell_once(documents, settings, bed.now, sent.append) == 1  # what failed is told the next time
    assert sent[-1].title == "LLM daily budget is 82% used"
    budget.settle(budget.reserve(900_000, {}), "answered", nano=900_000, latency=0.1, tokens=None)
    assert tell_once(documents, settings, bed.now, sent.append) == 1
    assert sent[-1].title == "LLM daily budget is used up"
    bed.now += timedelta(days=1)
    assert notices(documents, settings, bed.now) == []


def test_an_endpoint_that_is_down_is_told_of(bed: Bed, configured: Callable[..., Settings]) -> None:
    settings = configured(TRADEFLOWS_CIRCUIT_FAILURES="2")
    breaker = Breaker(bed.store.documents, f"llm {bed.client.host}", Rule(2), bed.clock)
    for _ in range(2):
        from trading.errors import SourceUnavailable

        breaker.heard(SourceUnavailable("it answered 500"))
    [message] = notices(bed.store.documents, settings, bed.now)
    assert (message.title, message.key) == ("LLM endpoint is down", f"llm-down-{bed.client.host}-{DAY}")
    assert LlmUnavailable("x", billed=True).transient
