"""The LLM as an analyst: its opinion on the last bar, or why it abstains. It never raises for the LLM's sake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tasks import log
from tasks.llm import About, Llm
from tasks.llm_prompt import LlmOpinion, check, prompt_of
from trading.analysis import LLM, Abstention, Opinion, Signal
from trading.errors import DataError, InvalidRequest, LlmError
from trading.window import Window

if TYPE_CHECKING:
    import pandas as pd

PURPOSE: Final = "opinion"


def opinion(
    llm: Llm,
    candles: pd.DataFrame,
    window: Window,
    *,
    horizon: int,
    data_mode: str,
    notes: Sequence[str] = (),
) -> Opinion | Abstention:
    """What the LLM says of the last of ``candles``. Safe for threads; waits for a key where it must.

    Args:
        candles: in the contract of ``trading.candles``, ending with the bar to judge.
        window: names symbol and timeframe.
        horizon: bars that the opinion is about, as for the other analysts.
        notes: texts of others, such as headlines; data to the model, never instructions.

    Returns:
        An opinion of the analyst ``llm`` with cost (all calls that it took), latency, and in ``provenance`` the
        model, the endpoint, the prompt's digest, the number of calls and the MLflow trace; or an abstention: no
        key, no budget, no answer, no usable answer, or none that stands on numbers of the input.

    Raises:
        StoreError: the store cannot be used, so that nothing could be paid or recorded.
    """
    try:
        prompt = prompt_of(candles, window, horizon=horizon, notes=notes)
        about = About(PURPOSE, window.symbol, data_mode)
        answer = llm.ask(prompt.messages, LlmOpinion, about)
    except LlmError as error:
        return Abstention(LLM, str(error), error.cost)
    except (DataError, InvalidRequest) as error:
        return Abstention(LLM, str(error))
    checked = check(answer.value, prompt.numbers)
    if checked.dropped:
        log.logger().warning("reasons of the LLM dropped", symbol=window.symbol, dropped="; ".join(checked.dropped))
    if not checked.reasons:
        why = f"{answer.model} gave no reason that can be shown: {'; '.join(checked.dropped)}"
        return Abstention(LLM, why, answer.cost)
    provenance = {
        "model": answer.model,
        "endpoint": llm.host,
        "prompt": prompt.digest,
        "calls": str(answer.calls),
        **({"trace": answer.trace} if answer.trace else {}),
        **({"dropped": str(len(checked.dropped))} if checked.dropped else {}),
    }
    return Opinion(
        LLM,
        Signal(answer.value.signal),
        checked.confidence,
        checked.reasons,
        provenance,
        horizon=horizon,
        cost=answer.cost,
        latency=answer.seconds,
    )
