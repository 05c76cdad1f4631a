"""Promotion: a pure function from evidence to a decision, closed unless the evidence opens it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ml.estimators import BASELINE
from ml.evaluation import Scores
from trading.errors import InvalidRequest


@dataclass(frozen=True)
class PromotionRule:
    """What a challenger must show.

    ``min_skill``: the least 1 - log loss / baseline log loss, over folds. ``min_folds_won``: it must
    beat the baseline in more than this share of folds. ``champion_slack``: how much its mean log loss
    may exceed the champion's, as a fraction of it; zero asks for at least as good. ``min_net_return``:
    the least mean return per signal after costs, as a fraction; None asks for none. (Skill in log loss
    may come from foreseeing volatility alone, which no Long or Short signal earns money with.)
    """

    min_skill: float = 0.002
    min_folds_won: float = 0.5
    champion_slack: float = 0.0
    min_net_return: float | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.min_skill < 1 and 0 <= self.min_folds_won < 1 and 0 <= self.champion_slack < 1):
            raise InvalidRequest(f"{self} is out of range: each of its values is a fraction in [0, 1)")


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and every comparison that was made, the failed ones first."""

    promote: bool
    reasons: tuple[str, ...]


def decide(
    challenger: Scores,
    baseline: Scores,
    champion: Scores | None,
    rule: PromotionRule | None = None,
) -> Decision:
    """Whether the challenger takes the champion's place.

    It must beat the baseline's mean out-of-sample log loss by a margin and in a majority of folds, and
    must not be worse than the champion. All were scored on the same test rows, or nothing is promoted.
    ``champion`` is None where there is none yet.
    """
    rule = rule or PromotionRule()
    for name, other in (("baseline", baseline), ("champion", champion)):
        if other is not None and other.spans != challenger.spans:
            return Decision(False, (f"challenger and {name} were not scored on the same test rows: no comparison",))
    losses = [challenger.log_loss, baseline.log_loss, *([champion.log_loss] if champion else [])]
    if not all(math.isfinite(loss) and loss > 0 for loss in losses):
        return Decision(False, (f"log losses {losses} are not all finite and positive: no comparison",))
    checks = [_not_baseline(challenger, baseline), _skill(challenger, baseline, rule), _won(challenger, baseline, rule)]
    if rule.min_net_return is not None:
        checks.append(_net_return(challenger, rule.min_net_return))
    if champion is not None:
        checks.append(_champion(challenger, champion, rule))
    failed = tuple(reason for passed, reason in checks if not passed)
    return Decision(not failed, failed + tuple(reason for passed, reason in checks if passed))


def _not_baseline(challenger: Scores, baseline: Scores) -> tuple[bool, str]:
    apart = challenger.estimator != BASELINE and baseline.estimator == BASELINE
    return apart, f"challenger is {challenger.estimator}, compared with {baseline.estimator}"


def _skill(challenger: Scores, baseline: Scores, rule: PromotionRule) -> tuple[bool, str]:
    skill = challenger.skill(baseline)
    return skill > 0 and skill >= rule.min_skill, (
        f"log loss {challenger.log_loss:.5f} against the baseline's {baseline.log_loss:.5f}: "
        f"skill {skill:+.2%}, needed {rule.min_skill:.2%}"
    )


def _won(challenger: Scores, baseline: Scores, rule: PromotionRule) -> tuple[bool, str]:
    pairs = zip(challenger.folds, baseline.folds, strict=True)
    won = sum(mine.log_loss < theirs.log_loss for mine, theirs in pairs)
    return won > rule.min_folds_won * len(challenger.folds), (
        f"beats the baseline in {won} of {len(challenger.folds)} folds, needed more than {rule.min_folds_won:.0%}"
    )


def _champion(challenger: Scores, champion: Scores, rule: PromotionRule) -> tuple[bool, str]:
    limit = champion.log_loss * (1 + rule.champion_slack)
    return challenger.log_loss <= limit, (
        f"log loss {challenger.log_loss:.5f} against the champion's {champion.log_loss:.5f} "
        f"({champion.estimator}), allowed {limit:.5f}"
    )


def _net_return(challenger: Scores, needed: float) -> tuple[bool, str]:
    found = challenger.metrics().get("net_return")
    said = "no signals at all" if found is None else f"{found:+.4%} per signal after costs"
    return found is not None and found >= needed, f"{said}, needed {needed:+.4%}"
