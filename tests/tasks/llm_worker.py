"""Processes of their own for the tests of the LLM's keys and budget: ``python llm_worker.py``.

A process imports what it needs, says ``ready``, and then does one ``Job`` for each line of JSON that it reads, with
a key pool, a budget and connections of its own; it answers with a line of JSON: what became of each question. A job
that is ``doomed`` is done by a fork of it, whose number is the answer.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from pydantic import SecretStr

from tasks.addresses import ANYWHERE
from tasks.circuit import Breaker
from tasks.llm import About, Llm, Setup
from tasks.llm_budget import Budget, Price
from tasks.llm_client import opened_client
from tasks.llm_keys import KeyPool, KeyRule
from tasks.llm_prompt import LlmOpinion
from tasks.store import COLLECTIONS
from tests.tasks.store_worker import open_documents
from trading.errors import TradeflowsError

PRICE = Price(0.150, 0.600)
MODEL = "gpt-4o-mini"
MESSAGES = [{"role": "system", "content": "judge"}, {"role": "user", "content": "{}"}]


@dataclass(frozen=True)
class Job:
    """Questions to ask, and within which limits; ``window``, ``grace``, ``pause`` and ``patience`` in seconds."""

    address: str
    url: str
    keys: tuple[str, ...]
    questions: int = 1
    threads: int = 1
    requests: int = 1000
    window: float = 60.0
    grace: float = 2.0
    pause: float = 0.0
    patience: float = 60.0
    daily: float = 1.0
    doomed: bool = False

    def line(self) -> str:
        """As a process reads it."""
        return json.dumps(asdict(self)) + "\n"


def done(job: Job) -> list[str]:
    """What became of each question: ``answered``, or the error."""
    keys = [SecretStr(key) for key in job.keys]
    span = timedelta(seconds=job.window), timedelta(seconds=job.grace)
    rule = KeyRule(job.requests, timedelta(seconds=job.pause), *span)
    with (
        open_documents(job.address, COLLECTIONS) as documents,
        opened_client(job.url, keys, access=ANYWHERE, seconds=60.0) as client,
        ThreadPoolExecutor(job.threads) as threads,
    ):
        llm = Llm(
            client,
            KeyPool(documents, keys, rule),
            Budget(documents, job.daily, 10.0),
            Breaker(documents, "llm stub"),
            Setup(MODEL, PRICE, patience=timedelta(seconds=job.patience)),
        )
        return list(threads.map(lambda number: _asked(llm, number), range(job.questions)))


def _asked(llm: Llm, number: int) -> str:
    try:
        llm.ask(MESSAGES, LlmOpinion, About("opinion", f"SYM{number}", "simulated"))
    except TradeflowsError as error:
        return f"{type(error).__name__}: {error}"
    return "answered"


def forked(job: Job) -> int:
    """The number of a process that does the job, and says nothing."""
    child = os.fork()
    if child == 0:
        done(job)
        os._exit(0)
    return child


def main() -> None:
    """Do a job for each line."""
    import openai  # noqa: F401 - two seconds that are not to be the first job's

    print("ready", flush=True)
    for line in sys.stdin:
        told: dict[str, Any] = json.loads(line)
        job = Job(**{**told, "keys": tuple(told["keys"])})
        print(json.dumps(forked(job) if job.doomed else done(job)), flush=True)


if __name__ == "__main__":
    main()
