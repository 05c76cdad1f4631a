"""Parameters of estimators as data: what may be set, within which bounds, and where tuning searches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trading.errors import InvalidRequest


@dataclass(frozen=True)
class Number:
    """A number within ``[lowest, highest]``; tuning tries ``search``, on a log scale if ``log``."""

    default: float
    lowest: float
    highest: float
    whole: bool = False
    search: tuple[float, float] | None = None
    log: bool = False

    def checked(self, where: str, value: Any, names: tuple[str, ...]) -> float:
        """``value`` if it is allowed, else InvalidRequest."""
        kind = int if self.whole else (int, float)
        right = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
        if not right or not self.lowest <= value <= self.highest:
            raise InvalidRequest(
                f"{where}={value!r}; it must be a{' whole' if self.whole else ''} number "
                f"from {self.lowest:g} to {self.highest:g}"
            )
        return int(value) if self.whole else float(value)


@dataclass(frozen=True)
class Choice:
    """One of ``options``; tuning tries them all if ``search``."""

    default: str
    options: tuple[str, ...]
    search: bool = False

    def checked(self, where: str, value: Any, names: tuple[str, ...]) -> str:
        """``value`` if it is allowed, else InvalidRequest."""
        if value not in self.options:
            raise InvalidRequest(f"{where}={value!r}; use one of {', '.join(self.options)}")
        return str(value)


@dataclass(frozen=True)
class Directions:
    """By feature name +1 or -1: the odds of Long against Short may only rise, or only fall, with the feature."""

    default: tuple[tuple[str, int], ...] = ()

    def checked(self, where: str, value: Any, names: tuple[str, ...]) -> dict[str, int]:
        """``value`` as a mapping if all features are known and all signs are -1 or +1, else InvalidRequest."""
        try:
            found = dict(value)
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"{where}={value!r}; it must map feature names to 1 or -1") from error
        _require_known(where, list(found), names)
        if not set(found.values()) <= {-1, 1}:
            raise InvalidRequest(f"{where}={found}; a direction is 1 or -1")
        return {name: int(sign) for name, sign in found.items()}


@dataclass(frozen=True)
class Groups:
    """Groups of feature names that may meet on one path of a tree.

    Features in no group form one more; without groups all may meet.
    """

    default: tuple[tuple[str, ...], ...] = ()

    def checked(self, where: str, value: Any, names: tuple[str, ...]) -> list[list[str]]:
        """``value`` as lists if all features are known, else InvalidRequest."""
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        if not listed or any(isinstance(group, str) or not isinstance(group, Sequence) for group in value):
            raise InvalidRequest(f"{where}={value!r}; it must be a list of lists of feature names")
        _require_known(where, [name for group in value for name in group], names)
        return [list(group) for group in value]


Parameter = Number | Choice | Directions | Groups


def settle(
    estimator: str, space: Mapping[str, Parameter], given: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, Any]:
    """All parameters of ``space``: those given, checked, and the defaults of the others.

    Args:
        names: the features of the sample, which constraints may speak of.

    Raises:
        InvalidRequest: an unknown parameter or feature, or a value out of bounds.
    """
    unknown = sorted(set(given) - set(space))
    if unknown:
        raise InvalidRequest(f"{estimator} has no parameter {', '.join(unknown)}; it has {', '.join(space) or 'none'}")
    return {
        name: parameter.checked(f"{estimator}: {name}", given.get(name, parameter.default), names)
        for name, parameter in space.items()
    }


def groups_by_position(groups: list[list[str]], names: tuple[str, ...]) -> list[list[int]]:
    """Groups of column numbers, and the columns in no group as the last; none for no groups."""
    if not groups:
        return []
    listed = [[names.index(name) for name in group] for group in groups]
    rest = sorted(set(range(len(names))) - {at for group in listed for at in group})
    return [*listed, rest] if rest else listed


def _require_known(where: str, asked: list[str], names: tuple[str, ...]) -> None:
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise InvalidRequest(f"{where} speaks of {unknown}, which are no features here; there are {', '.join(names)}")
