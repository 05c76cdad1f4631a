"""Promotion: a pure function from evidence to a decision, closed unless the evidence opens it.

The champion and the challenger are compared fold by fold on the same test rows. With the losses c[i] of
the champion and d[i] of the challenger in n folds,

    gain = mean(c - d)        standard error = std(c - d, ddof=1) / sqrt(n)

in nats per row. The challenger must gain at least so many standard errors (one by default, the
one-standard-error rule of Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees",
1984, section 3.4.3). The training rows of folds overlap, so that the error is rather too small: it is a
hurdle, not a test of significance.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Final

from ml.estimators import BASELINE, BASELINES
from ml.evaluation import Scores
from trading.errors import InvalidRequest

Check = tuple[bool, str]


@dataclass(frozen=True)
class Evidence:
    """What a model's out-of-sample signals earned in the backtest, as far as it is known.

    ``total_return`` and ``drawdown`` (its size, not its sign) are fractions of the starting cash, after
    costs; ``sharpe`` and ``sharpe_error`` are annual; ``turnover`` is traded notional over equity.
    ``deflated_sharpe`` is the probability of Bailey and López de Prado (2014), ``pbo`` the probability
    of backtest overfitting of Bailey et al. (2017), ``spa_p_value`` that of Hansen's test (2005).
    """

    total_return: float | None = None
    sharpe: float | None = None
    sharpe_error: float | None = None
    drawdown: float | None = None
    turnover: float | None = None
    trades: float | None = None
    deflated_sharpe: float | None = None
    pbo: float | None = None
    spa_p_value: float | None = None


@dataclass(frozen=True)
class RiskRule:
    """Limits on the evidence; None asks for nothing, any other limit needs the figure to be there.

    Units as in ``Evidence``. ``drawdown_slack``: by how much the challenger's drawdown may exceed the
    champion's, where there is one with evidence.

    Raises:
        InvalidRequest: a limit that is no number.
    """

    min_total_return: float | None = 0.0
    max_drawdown: float | None = 0.5
    min_trades: float | None = 20
    min_deflated_sharpe: float | None = 0.5
    max_pbo: float | None = 0.5
    max_spa_p_value: float | None = None
    drawdown_slack: float | None = 0.1

    def __post_init__(self) -> None:
        wrong = {name: limit for name, limit in asdict(self).items() if limit is not None and not math.isfinite(limit)}
        if wrong:
            raise InvalidRequest(f"risk limits {wrong} are not finite; use None to ask for nothing")


@dataclass(frozen=True)
class PromotionRule:
    """What a challenger must show.

    ``min_skill``: the least 1 - log loss / baseline log loss, over folds. ``min_folds_won``: it must
    beat the baseline in more than this share of folds. ``min_gain``: the least gain over the champion,
    as a fraction of its log loss; ``min_gain_errors``: the same in standard errors. ``refresh``:
    whether a challenger that scores as the champion in every single fold, which is the champion's own
    recipe fitted to newer candles, may follow it. ``min_net_return``: the least mean return per signal
    after costs, as a fraction; None asks for none. (Skill in log loss may come from foreseeing
    volatility alone, which no Long or Short signal earns money with.) ``risk``: None asks for no
    evidence from the backtest.
    """

    min_skill: float = 0.002
    min_folds_won: float = 0.5
    min_gain: float = 0.0
    min_gain_errors: float = 1.0
    refresh: bool = True
    min_net_return: float | None = 0.0
    risk: RiskRule | None = field(default_factory=RiskRule)

    def __post_init__(self) -> None:
        if not (0 <= self.min_skill < 1 and 0 <= self.min_folds_won < 1 and 0 <= self.min_gain < 1):
            raise InvalidRequest(f"{self} is out of range: min_skill, min_folds_won and min_gain lie in [0, 1)")
        if not 0 <= self.min_gain_errors < math.inf:
            raise InvalidRequest(f"min_gain_errors is {self.min_gain_errors}; it is a finite number, at least 0")
        if self.min_net_return is not None and not math.isfinite(self.min_net_return):
            raise InvalidRequest(f"min_net_return is {self.min_net_return}; use None to ask for none")


@dataclass(frozen=True)
class Unscored:
    """A champion that could not be scored on the challenger's windows, and why: nothing passes it."""

    why: str


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and every comparison that was made, the failed ones first."""

    promote: bool
    reasons: tuple[str, ...]


def decide(
    challenger: Scores,
    baseline: Scores,
    champion: Scores | Unscored | None,
    rule: PromotionRule | None = None,
    *,
    evidence: Evidence | None = None,
    champion_evidence: Evidence | None = None,
) -> Decision:
    """Whether the challenger takes the champion's place.

    It must beat the baseline's mean out-of-sample log loss by a margin and in a majority of folds, gain
    on the champion, and stay within the limits of risk. All were scored on the same test rows, or
    nothing is promoted; a figure that is asked for and missing, or not finite, counts as failed.

    Args:
        champion: None where there is none at all; ``Unscored`` where there is one without scores.
        evidence: of the challenger's signals on its test rows.
        champion_evidence: of the champion's on the same rows.
    """
    rule = rule or PromotionRule()
    if isinstance(champion, Unscored):
        return Decision(False, (f"the champion has no scores to compare with: {champion.why}",))
    for name, other in (("baseline", baseline), ("champion", champion)):
        if other is not None and other.spans != challenger.spans:
            return Decision(False, (f"challenger and {name} were not scored on the same test rows: no comparison",))
    scored = [one for one in (challenger, baseline, champion) if one is not None]
    losses = [fold.log_loss for one in scored for fold in one.folds]
    if not all(math.isfinite(loss) and loss > 0 for loss in losses):
        return Decision(False, (f"log losses {losses} are not all finite and positive: no comparison",))
    checks = [_not_baseline(challenger, baseline), _skill(challenger, baseline, rule), _won(challenger, baseline, rule)]
    if rule.min_net_return is not None:
        checks.append(_net_return(challenger, rule.min_net_return))
    if champion is not None:
        checks.append(_gain(challenger, champion, rule))
    if rule.risk is not None:
        checks += _risk(rule.risk, evidence or Evidence(), champion_evidence if champion is not None else None)
    failed = tuple(reason for passed, reason in checks if not passed)
    return Decision(not failed, failed + tuple(reason for passed, reason in checks if passed))


def paired_gain(challenger: Scores, champion: Scores) -> tuple[float, float | None]:
    """Mean and standard error of the champion's less the challenger's log loss over folds (see the module).

    The error is None for a single fold.
    """
    pairs = zip(champion.folds, challenger.folds, strict=True)
    gains = [theirs.log_loss - mine.log_loss for theirs, mine in pairs]
    mean = math.fsum(gains) / len(gains)
    return mean, statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None


def _not_baseline(challenger: Scores, baseline: Scores) -> Check:
    apart = challenger.estimator not in BASELINES and baseline.estimator == BASELINE
    return apart, f"challenger is {challenger.estimator}, compared with {baseline.estimator}"


def _skill(challenger: Scores, baseline: Scores, rule: PromotionRule) -> Check:
    skill = challenger.skill(baseline)
    return skill > 0 and skill >= rule.min_skill, (
        f"log loss {challenger.log_loss:.5f} against the baseline's {baseline.log_loss:.5f}: "
        f"skill {skill:+.2%}, needed {rule.min_skill:.2%}"
    )


def _won(challenger: Scores, baseline: Scores, rule: PromotionRule) -> Check:
    pairs = zip(challenger.folds, baseline.folds, strict=True)
    won = sum(mine.log_loss < theirs.log_loss for mine, theirs in pairs)
    return won > rule.min_folds_won * len(challenger.folds), (
        f"beats the baseline in {won} of {len(challenger.folds)} folds, needed more than {rule.min_folds_won:.0%}"
    )


def _gain(challenger: Scores, champion: Scores, rule: PromotionRule) -> Check:
    pairs = zip(challenger.folds, champion.folds, strict=True)
    if challenger.estimator == champion.estimator and all(mine.log_loss == theirs.log_loss for mine, theirs in pairs):
        return rule.refresh, f"scores as the champion ({champion.estimator}) in every fold: its recipe on newer candles"
    gain, error = paired_gain(challenger, champion)
    needed = rule.min_gain * champion.log_loss
    said = (
        f"log loss {challenger.log_loss:.5f} against the champion's {champion.log_loss:.5f} ({champion.estimator}): "
        f"gain {gain:+.5f}"
    )
    if error is None:
        return False, f"{said} in a single fold, which has no standard error"
    return gain > 0 and gain >= max(needed, rule.min_gain_errors * error), (
        f"{said} with standard error {error:.5f}, needed {needed:.5f} and {rule.min_gain_errors:g} errors"
    )


def _net_return(challenger: Scores, needed: float) -> Check:
    found = challenger.metrics().get("net_return")
    if found is None or not math.isfinite(found):
        return False, f"no signals at all: {found} per signal after costs, needed {needed:+.4%}"
    return found >= needed, f"{found:+.4%} per signal after costs, needed {needed:+.4%}"


# limit of the rule, figure of the evidence, whether the limit is the least that may be
_LIMITS: Final = (
    ("min_total_return", "total_return", True),
    ("max_drawdown", "drawdown", False),
    ("min_trades", "trades", True),
    ("min_deflated_sharpe", "deflated_sharpe", True),
    ("max_pbo", "pbo", False),
    ("max_spa_p_value", "spa_p_value", False),
)


def _risk(rule: RiskRule, evidence: Evidence, champion: Evidence | None) -> list[Check]:
    checks = [
        _limited(name.replace("_", " "), getattr(evidence, name), getattr(rule, limit), least=least)
        for limit, name, least in _LIMITS
        if getattr(rule, limit) is not None
    ]
    if rule.drawdown_slack is not None and champion is not None and champion.drawdown is not None:
        limit = champion.drawdown + rule.drawdown_slack
        checks.append(_limited("drawdown beside the champion's", evidence.drawdown, limit, least=False))
    return checks


def _limited(name: str, figure: float | None, limit: float, *, least: bool) -> Check:
    wanted = f"{'at least' if least else 'at most'} {limit:g}"
    if figure is None or not math.isfinite(figure):
        return False, f"{name} is {'not known' if figure is None else figure}, needed {wanted}"
    # sizes and probabilities: a negative one was measured in another convention
    return figure >= limit if least else 0 <= figure <= limit, f"{name} {figure:.4g}, needed {wanted}"
