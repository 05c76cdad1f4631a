"""Generated markets: the same for a seed, quiet and wild by turns, and nothing in them to foretell."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from deployments.sandbox.generator import COMMON_SHARE, RECIPES, Recipe, generate

COUNT = 26_000
SEEDS = (7, 1, 2)
LAGS = range(1, 25)
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.symbol)
each_seed = pytest.mark.parametrize("seed", SEEDS)


@lru_cache
def bars(seed: int) -> dict[str, np.ndarray]:
    return generate(RECIPES, COUNT, seed)


def returns(seed: int, recipe: Recipe) -> np.ndarray:
    return np.diff(np.log(bars(seed)[recipe.symbol][:, 3]))


def autocorrelations(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    return np.array([(centred[lag:] * centred[:-lag]).sum() for lag in LAGS]) / (centred**2).sum()


def scores(values: np.ndarray) -> np.ndarray:
    """Autocovariances over their standard errors where there are none, whatever the variance does (White 1980)."""
    products = [values[lag:] * values[:-lag] for lag in LAGS]
    return np.array([product.sum() / np.sqrt((product**2).sum()) for product in products])


@each_seed
def test_a_seed_gives_the_same_bars_again(seed: int) -> None:
    again = generate(RECIPES, COUNT, seed)
    assert list(again) == [recipe.symbol for recipe in RECIPES]
    for symbol, values in again.items():
        assert values.shape == (COUNT, 5)
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, bars(seed)[symbol])


def test_another_seed_gives_others() -> None:
    for recipe in RECIPES:
        assert (bars(7)[recipe.symbol][1:] != bars(1)[recipe.symbol][1:]).mean() > 0.99


@each_recipe
def test_a_market_does_not_depend_on_which_others_are_made(recipe: Recipe) -> None:
    np.testing.assert_array_equal(generate([recipe], COUNT, 7)[recipe.symbol], bars(7)[recipe.symbol])
    stranger = Recipe("OTHER", 1.0, 0.01, 5.0, 6)
    among = generate([stranger, *reversed(RECIPES)], COUNT, 7)
    np.testing.assert_array_equal(among[recipe.symbol], bars(7)[recipe.symbol])


@each_recipe
def test_more_bars_begin_with_the_fewer(recipe: Recipe) -> None:
    for count in (1, 500, 9_999):
        np.testing.assert_array_equal(generate([recipe], count, 7)[recipe.symbol], bars(7)[recipe.symbol][:count])


@each_recipe
@each_seed
def test_bars_are_consistent_positive_and_rounded(seed: int, recipe: Recipe) -> None:
    open_, high, low, close, volume = bars(seed)[recipe.symbol].T
    assert (low > 0).all()
    assert (volume > 0).all()
    assert np.isfinite(bars(seed)[recipe.symbol]).all()
    assert (high >= np.maximum(open_, close)).all()
    assert (low <= np.minimum(open_, close)).all()
    np.testing.assert_array_equal(open_[1:], close[:-1])
    assert open_[0] == recipe.price
    prices = bars(seed)[recipe.symbol][:, :4]
    np.testing.assert_array_equal(prices, prices.round(recipe.decimals))
    # most bars move beyond its own open and close, as real ones do
    assert ((high > np.maximum(open_, close)) | (low < np.minimum(open_, close))).mean() > 0.85


@each_recipe
@each_seed
def test_large_moves_follow_large_moves(seed: int, recipe: Recipe) -> None:
    moves = returns(seed, recipe)
    error = 1 / np.sqrt(len(moves))
    found = autocorrelations(moves**2)
    assert (found > 4 * error).all(), found
    assert found[0] > found[-1]
    # the same moves in another order have none of it: the measure can fail
    shuffled = autocorrelations(np.random.default_rng(seed).permutation(moves) ** 2)
    assert not (shuffled > 4 * error).any()


@each_recipe
@each_seed
def test_nothing_foretells_the_direction(seed: int, recipe: Recipe) -> None:
    moves = returns(seed, recipe)
    # 24 lags of 9 series: a normal score beyond 4.3 comes up once in 250 such tests
    assert np.abs(scores(moves)).max() < 4.3
    assert np.abs(autocorrelations(moves)).max() < 0.06
    # momentum of one part in ten would be seen
    assert scores(moves[1:] + 0.1 * moves[:-1])[0] > 4.3


@each_recipe
def test_the_level_of_volatility_is_the_recipe_s(recipe: Recipe) -> None:
    together = np.concatenate([returns(seed, recipe) for seed in SEEDS])
    assert together.std() == pytest.approx(recipe.hourly_volatility, rel=0.12)


def test_volatilities_are_those_of_hourly_crypto_markets() -> None:
    assert [recipe.hourly_volatility for recipe in RECIPES] == [0.004, 0.005, 0.006]


def test_log_prices_have_no_drift() -> None:
    """The mean return of many markets lies within its error of nought: prices do not decay."""
    moves = np.concatenate([returns(seed, recipe) / recipe.hourly_volatility for seed in SEEDS for recipe in RECIPES])
    # markets of a seed share their shocks, so the error is that of one series a seed
    assert abs(moves.mean()) < 3 / np.sqrt(len(SEEDS) * COUNT)


@each_seed
def test_tails_are_fat(seed: int) -> None:
    for recipe in RECIPES:
        moves = returns(seed, recipe)
        kurtosis = ((moves - moves.mean()) ** 4).mean() / moves.var() ** 2
        assert kurtosis > 4  # a normal distribution has 3


@each_seed
def test_markets_of_a_seed_share_their_shocks(seed: int) -> None:
    found = np.corrcoef([returns(seed, recipe) for recipe in RECIPES])
    for row, column in ((0, 1), (0, 2), (1, 2)):
        assert found[row, column] == pytest.approx(COMMON_SHARE, abs=0.08)


def test_wild_hours_are_busy_hours() -> None:
    for recipe in RECIPES:
        traded = np.log(bars(7)[recipe.symbol][1:, 4])
        assert np.corrcoef(np.abs(returns(7, recipe)), traded)[0, 1] > 0.3
