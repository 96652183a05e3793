"""The NumPy twin of an MLP is held to the plain path: the same actions, distributions, values and gradients."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import surefoot
from heads import COUNT, HEADS, batch_for, policy_for
from surefoot.algorithm.advantages import OverBatch, OverMinibatch
from surefoot.algorithm.fast_paths import make_actor, mlp_backward
from surefoot.algorithm.objectives import (
    SPO,
    ClippedSurrogate,
    DualClip,
    Entropy,
    FixedPenalty,
    OldPolicyCrossEntropy,
    Reinforce,
    Surrogate,
)
from surefoot.algorithm.state import State, flat_parameters, initial
from surefoot.algorithm.update import Batch, update, update_metrics
from surefoot.config import Config
from surefoot.fast.mlp import FastMLP, MLPActor
from surefoot.models.actor import Actor
from surefoot.models.policy import flatten
from surefoot.parallel.ranks import Alone

OBJECTIVES = (Reinforce(), Surrogate(), ClippedSurrogate(0.1))
BONUSES = (Entropy(0.03), OldPolicyCrossEntropy(0.03), Entropy(0.0))
LOSSES = (
    *((objective, bonus, FixedPenalty()) for objective, bonus in itertools.product(OBJECTIVES, BONUSES)),
    *((objective, Entropy(0.0), FixedPenalty(0.4)) for objective in (Surrogate(), DualClip(0.1, 1.1), SPO(0.1))),
)


def as_numpy(batch: Batch) -> Batch:
    return batch.each(torch.Tensor.numpy)


@pytest.fixture(scope="module")
def state(small: Config) -> Iterator[State]:
    """One for all cases, which give it a policy of their own."""
    state = initial(small, Alone())
    yield state
    state.envs.close()


@pytest.mark.parametrize("size", [COUNT, 10], ids=["whole", "microbatches"])
@pytest.mark.parametrize("normalize", [OverBatch(), OverMinibatch()], ids=str)
@pytest.mark.parametrize("value_clip", [math.inf, 0.2])
@pytest.mark.parametrize(("objective", "bonus", "penalty"), LOSSES, ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_is_that_of_the_plain_path(
    head: str,
    objective,
    bonus,
    penalty,
    value_clip,
    normalize,
    size: int,
    small: Config,
    state: State,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In double precision; also the metrics, and what is added to a gradient that was there before."""
    monkeypatch.setattr("surefoot.models.policy.MICROBATCH", size)
    policy = policy_for(head)
    batch = batch_for(policy, head)
    cfg = replace(small, objective=objective, entropy=bonus, value_clip=value_clip, normalize=normalize, target_kl=9.0)
    cfg = replace(cfg, max_grad_norm=1e9, value_coef=0.7, kl_penalty=penalty)
    results = []
    for fast in (True, False):
        state.policy = policy
        before = {name: x.clone() for name, x in policy.state_dict().items()}
        vars(state).update(flat_parameters(policy, cfg, Alone()))
        if not fast:
            state.mlp = None
        assert (mlp_backward(state.mlp, cfg) is not None) == fast
        state.gradient.fill_(math.nan)  # of an update that was skipped
        info = update(state, as_numpy(batch) if fast else batch, cfg, Alone())
        metrics = update_metrics([info], state, cfg, Alone())
        moved = state.flat.detach().clone()
        results.append((state.gradient.clone(), torch.tensor([info.kl, info.grad_norm]), metrics, moved))
        policy.load_state_dict(before)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert (results[0][0] != 0).all()
    ratio = (policy.evaluate(batch.obs)[0].log_prob(batch.action) - batch.logp_old).exp()
    assert 0 < int(((ratio - 1).abs() > 0.1).sum()) < COUNT  # clipped and unclipped ones are both there


@pytest.mark.parametrize("head", HEADS)
def test_it_acts_and_evaluates_as_the_plain_path(head: str) -> None:
    policy = policy_for(head)
    steps, n = 6, 3
    draw = torch.Generator().manual_seed(2)
    noise = torch.rand(steps, n, *policy.noise_shape, generator=draw)
    if head == "masked":
        rows = np.zeros((steps * n, 16 + 5), np.uint8)
        rows[:, :16] = np.random.default_rng(0).normal(size=(steps * n, 4)).astype(np.float32).view(np.uint8)
        rows[:, 16:] = np.eye(5, dtype=np.uint8)[np.arange(steps * n) % 5] | np.array([0, 1, 0, 1, 0], np.uint8)
        obs = rows.reshape(steps, n, -1)
        policy.float()
    else:
        obs = np.random.default_rng(0).normal(size=(steps, n, 4))
    fast, plain = make_actor(policy, noise), Actor(policy, noise)
    assert isinstance(fast, MLPActor)
    for t in range(steps):
        torch.testing.assert_close(torch.tensor(fast.act(t, obs[t])), torch.tensor(plain.act(t, obs[t])))
    with torch.no_grad():
        a, b = (actor.decisions(obs, obs[2]) for actor in (fast, plain))
    exact = 1e-5 if head == "masked" else 1e-12
    for name, x, y in zip(a._fields, a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=exact, atol=exact, msg=lambda text, name=name: f"{name}: {text}")
    params, value = FastMLP(policy).evaluate_all(a.preprocessed.flatten(0, 1))
    torch.testing.assert_close(
        policy.evaluate_all(b.preprocessed.flatten(0, 1)), (params, value), rtol=exact, atol=exact
    )


def test_an_objective_of_ones_own_is_its_formula_alone(small: Config) -> None:
    """An MLP learns from it the plain way: there is no written-out gradient for it."""

    class Doubled(Surrogate):
        def __call__(self, logp, logp_old, advantage):
            return 2 * super().__call__(logp, logp_old, advantage)

    gradients, policy = [], policy_for("categorical")
    batch = batch_for(policy, "categorical")
    for objective in (Surrogate(), Doubled()):
        state = initial(small, Alone())
        state.policy = policy
        vars(state).update(flat_parameters(policy, small, Alone()))
        cfg = replace(small, entropy=Entropy(0.0), value_coef=0.0, max_grad_norm=1e9)
        vars(cfg)["objective"] = objective
        known = mlp_backward(state.mlp, cfg) is not None
        assert known == (type(objective) is Surrogate)
        before = state.flat.detach().clone()
        update(state, as_numpy(batch) if known else batch, cfg, Alone())
        gradients.append(state.gradient.clone())
        state.flat.data.copy_(before)
        state.envs.close()
    torch.testing.assert_close(gradients[1], 2 * gradients[0], rtol=1e-12, atol=1e-12)


@pytest.mark.long
def test_the_trainer_learns_without_the_folder(tmp_path: Path) -> None:
    """src/surefoot without fast/: CartPole's first rollouts improve the policy, and Pong from images runs."""
    package = Path(surefoot.__file__).parent
    shutil.copytree(package, tmp_path / "surefoot", ignore=shutil.ignore_patterns("fast", "__pycache__"))
    program = """
import surefoot
from surefoot.algorithm import fast_paths
assert not fast_paths.FAST
run = surefoot.train("cartpole", run_dir="a", total_steps=8192, eval_episodes=8, quiet=True)
pong = surefoot.train("pong", run_dir="b", num_envs=2, num_steps=(8,), minibatch_size=8, total_steps=32,
                      eval_episodes=0, quiet=True, ranks=1)
print(run.evaluation.mean, pong.steps)
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    score, steps = done.stdout.split()
    assert float(score) > 100  # random play scores about 20
    assert steps == "32"


def test_flattened_parameters_are_the_twins_own() -> None:
    policy = policy_for("gaussian")
    flat = flatten(policy)
    twin = FastMLP(policy)
    flat.data.fill_(0.5)
    assert (twin.actor[0] == 0.5).all()
    assert (twin.hidden[0][0] == 0.5).all()
    assert (twin.log_std == 0.5).all()


def test_state_has_a_twin_where_the_network_is_an_mlp(small: Config) -> None:
    state: State = initial(small, Alone())
    assert isinstance(state.mlp, FastMLP)
    state.envs.close()
