"""The probe ladder: five tiny environments, each of which isolates one part of the trainer.

Climb it from the bottom: the first probe that fails says which part is broken. Source: A. L. Jones, "Debugging RL,
without the agonizing pain" (2021), whose probe environments these are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from helpers import Until
from surefoot.algorithm.advantages import GAE
from surefoot.algorithm.fast_paths import mlp_backward
from surefoot.algorithm.objectives import ClippedSurrogate, Entropy
from surefoot.algorithm.schedules import FixedRate
from surefoot.algorithm.state import State, initial
from surefoot.algorithm.train import train
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.models.networks import MLP
from surefoot.parallel.ranks import Alone
from surefoot.presets import CARTPOLE

GAMMA = 0.5
PROBE = replace(
    CARTPOLE,
    network=MLP((16,)),
    num_envs=8,
    num_steps=(16,),
    minibatch_size=32,
    num_epochs=4,
    advantage=GAE(gamma=GAMMA, gae_lambda=0.9),
    objective=ClippedSurrogate(0.2),
    entropy=Entropy(0.0),
    learning_rate=FixedRate(1e-2),
    total_steps=8 * 16 * 20,
    seed=1,
)


class Probe(gymnasium.Env):
    """Episodes of `length` steps; the observation is a number drawn from `shown`, or the step where that is empty."""

    shown: tuple[float, ...] = (0.0,)
    actions, length = 1, 1

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(self.actions)

    def _see(self) -> np.ndarray:
        self.number = float(self.np_random.choice(self.shown)) if self.shown else float(self.t)
        return np.array([self.number], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.t = 0
        return self._see(), {}

    def step(self, action: int):
        reward = float(self.pays(int(action)))
        self.t += 1
        return self._see(), reward, self.t == self.length, False, {}

    def pays(self, action: int) -> float:
        raise NotImplementedError


class ConstantReward(Probe):
    """One action, one observation, one step, reward 1."""

    def pays(self, action: int) -> float:
        return 1.0


class RewardByObservation(Probe):
    """One action, one step; the reward is the observation, -1 or 1."""

    shown = (-1.0, 1.0)

    def pays(self, action: int) -> float:
        return self.number


class RewardAfterTwoSteps(Probe):
    """One action, two steps, of which the observation is the number; the second one pays 1."""

    shown, length = (), 2

    def pays(self, action: int) -> float:
        return float(self.t == 1)


class RewardByAction(Probe):
    """Two actions, one observation, one step; action 1 pays 1, action 0 pays -1."""

    actions = 2

    def pays(self, action: int) -> float:
        return 1.0 if action == 1 else -1.0


class RewardByActionAndObservation(Probe):
    """Two actions, observation -1 or 1, one step; the action of the observation's sign pays 1, the other one -1."""

    shown, actions = (-1.0, 1.0), 2

    def pays(self, action: int) -> float:
        return 1.0 if (action == 1) == (self.number > 0) else -1.0


for probe in (ConstantReward, RewardByObservation, RewardAfterTwoSteps, RewardByAction, RewardByActionAndObservation):
    gymnasium.register(f"Probe{probe.__name__}-v0", probe, disable_env_checker=True)


def learned(probe: type[Probe], fast: bool, **changes: Any) -> tuple[Any, Any]:
    """What 20 iterations on a probe lead to: V and P(a) as functions of the observation."""
    cfg: Config = replace(PROBE, env=Gymnasium(f"Probe{probe.__name__}-v0"), **changes)
    state: State = initial(cfg, Alone())
    if not fast:
        state.mlp = None
    assert (mlp_backward(state.mlp, cfg) is not None) == fast
    train(cfg, state, Alone(), Until(cfg.total_steps))
    state.envs.close()

    @torch.no_grad()
    def forward(obs: float) -> Any:
        return state.policy(torch.tensor([[obs]]))

    return lambda obs: float(forward(obs)[1]), lambda obs: forward(obs)[0].probabilities()[0].tolist()


both_ways = pytest.mark.parametrize("fast", [False, True], ids=["autograd", "twin"])


@both_ways
def test_probe_1_the_value_of_a_constant_reward_is_learned(fast: bool) -> None:
    value, _ = learned(ConstantReward, fast)
    broken = f"V is {value(0):.3f}, not 1: the value head, the value loss or the optimizer is broken"
    assert value(0) == pytest.approx(1, abs=0.05), broken


@both_ways
def test_probe_2_values_follow_the_observation(fast: bool) -> None:
    value, _ = learned(RewardByObservation, fast)
    broken = (
        f"V(-1) is {value(-1):.3f}, not -1, or V(1) is {value(1):.3f}, not 1: observations, rewards or values are "
        "mixed up between environments, steps or minibatches, or gradients do not reach the hidden layers"
    )
    assert (value(-1), value(1)) == pytest.approx((-1, 1), abs=0.1), broken


@both_ways
def test_probe_3_a_later_reward_is_discounted_once(fast: bool) -> None:
    value, _ = learned(RewardAfterTwoSteps, fast)
    broken = (
        f"V is {value(0):.3f} before and {value(1):.3f} at the step that pays 1, not {GAMMA} and 1: discounting, the "
        "bootstrap from the successor's value, or where one episode ends and the next begins is broken"
    )
    assert (value(0), value(1)) == pytest.approx((GAMMA, 1), abs=0.1), broken


@both_ways
def test_probe_4_the_action_that_pays_is_chosen(fast: bool) -> None:
    _, probabilities = learned(RewardByAction, fast)
    broken = (
        f"P(1) is {probabilities(0)[1]:.3f}, not near 1: the policy loss, the sign or normalisation of advantages, log "
        "probabilities or sampling is broken"
    )
    assert probabilities(0)[1] > 0.95, broken


@both_ways
def test_probe_5_the_action_that_pays_is_chosen_by_the_observation(fast: bool) -> None:
    value, probabilities = learned(RewardByActionAndObservation, fast)
    chosen = probabilities(-1)[0], probabilities(1)[1]
    broken = (
        f"the right actions have probabilities {chosen[0]:.3f} and {chosen[1]:.3f}, not near 1: where the others "
        "pass, advantages belong to other samples' actions or observations, or actor and critic disturb each other"
    )
    assert min(chosen) > 0.95, broken
    assert (value(-1), value(1)) == pytest.approx((1, 1), abs=0.2), broken
