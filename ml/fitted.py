"""What every fitted estimator can do, and what all of them share.

Fitted ones turn into named bytes and back, in formats that hold numbers and no code: JSON, and
LightGBM's own text. Equal data, parameters and seed give equal bytes.

A class that the training rows lack gets the probability 1 / (n + 3), n being the number of rows
(Laplace's rule of succession), so that its first appearance costs a finite log loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

import numpy as np

from ml.labels import CLASSES
from trading.errors import ModelRejected

NUMBERS: Final = "estimator.json"
# A fixed number, for the order of sums, and so the last bit, may depend on it. And one: where the other core is
# busy, OpenMP's threads spin while they wait for one another, and two took sixteen times as long as one alone.
THREADS: Final = 1


class Fitted(Protocol):
    """A fitted estimator."""

    @property
    def name(self) -> str:
        """Key of the estimator in ``ml.estimators.ESTIMATORS``."""

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities of -1, 0 and +1 for float64 ``rows`` (n, k): float64 (n, 3), each row sums to one."""

    def contributions(self, row: np.ndarray) -> np.ndarray:
        """How much each feature of ``row`` (k,) moves the log odds of +1 against -1: float64 (k,)."""

    def gain(self) -> np.ndarray | None:
        """By how much the splits on each feature lowered the training loss: float64 (k,); None without splits."""

    def to_files(self) -> dict[str, bytes]:
        """Everything needed to have it back, by file name."""


def absent(rows: int) -> float:
    """Probability of a class that none of ``rows`` training rows had."""
    return 1 / (rows + len(CLASSES))


def spread(probabilities: np.ndarray, classes: tuple[int, ...], missing: float) -> np.ndarray:
    """Probabilities (n, classes) as (n, 3), ``missing`` for each class that is not among ``classes``."""
    full = np.full((len(probabilities), len(CLASSES)), missing)
    full[:, [CLASSES.index(name) for name in classes]] = probabilities * (1 - missing * (len(CLASSES) - len(classes)))
    return full


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities of scores (n, c), row by row."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def long_minus_short(shares: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Row of +1 minus row of -1 of ``shares`` (classes, k); a class that was absent counts as zero."""
    zero = np.zeros(shares.shape[1])
    long_, short = (shares[classes.index(name)] if name in classes else zero for name in (1, -1))
    return np.asarray(long_ - short)


def to_json(value: Mapping[str, Any]) -> bytes:
    """Sorted JSON; a float reads back as the same float."""
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def numbers(files: Mapping[str, bytes], *needed: str, file: str = NUMBERS) -> dict[str, Any]:
    """The JSON object in ``file``.

    Raises:
        ModelRejected: it is missing, is no JSON object, or lacks a key of ``needed``.
    """
    if file not in files:
        raise ModelRejected(f"the model has no {file}; train and save it again")
    try:
        stored = json.loads(files[file])
    except ValueError as error:
        raise ModelRejected(f"{file} is not JSON ({error}); train and save the model again") from error
    if not isinstance(stored, dict) or not set(needed) <= set(stored):
        raise ModelRejected(f"{file} lacks some of {list(needed)}; train and save the model again")
    return stored


@contextmanager
def fixed_threads() -> Iterator[None]:
    """BLAS and OpenMP with ``THREADS`` threads, whatever the machine has."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=THREADS):
        yield
