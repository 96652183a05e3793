"""Trading a random walk with gym-trading-env, whose environment needs a table: `surefoot train trading:make_env`."""

from typing import Any

import gym_trading_env  # noqa: F401  (registers TradingEnv)
import gymnasium
import numpy as np
import pandas as pd


def make_env(**kwargs: Any) -> Any:
    """Prices of 1,000 hours, and their last change as the feature to see."""
    close = 100 * np.exp(np.random.default_rng(0).normal(0, 0.01, 1000).cumsum())
    hours = pd.date_range("2026-01-01", periods=len(close), freq="h")
    table = pd.DataFrame({"open": close, "high": close, "low": close, "close": close, "volume": 1.0}, hours)
    table["feature_change"] = table["close"].pct_change().fillna(0.0)
    return gymnasium.make("TradingEnv", df=table, positions=[-1, 0, 1], verbose=0, **kwargs)
