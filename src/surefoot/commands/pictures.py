"""The lesson's three pictures, computed by the package's own functions: the cliff, the clip that holds, one term.

The first two show a small real policy. It has one parameter, theta, and makes twelve decisions: on with probability
sigmoid(theta), or stay. Each step on pays 1, but the tenth leads over an edge and costs 30. All 4,096 games are
enumerated, so that averages are exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surefoot.algorithm.advantages import episode_return
from surefoot.algorithm.objectives import ClippedSurrogate, Objective, Surrogate, trajectory_ratio
from surefoot.errors import UserError
from surefoot.models.distributions import Bernoulli

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, EDGE, FALL = 12, 10, 30.0
START, EPSILON = -0.4, 0.2
TRUTH, MODEL, DOTS = "#1f6f8b", "#c85a28", "#222222"


def games() -> tuple[Tensor, Tensor, Tensor]:
    """Actions, rewards and endings [12, 4096] of every game there is."""
    number = torch.arange(2**STEPS)
    action = torch.stack([(number >> t) & 1 for t in range(STEPS)])
    walked = action.cumsum(0)
    reward = action.double() - FALL * ((walked == EDGE) & (action == 1)).double()
    ended = torch.zeros_like(action, dtype=torch.bool)
    ended[-1] = True
    return action, reward, ended


def log_probability(theta: Tensor, action: Tensor) -> Tensor:
    """log pi(a) of every action [12, 4096] under the policy with one parameter."""
    return Bernoulli(theta.expand(action.shape)).log_prob(action)


def average_reward(theta: Tensor) -> Tensor:
    """Mean total reward over all games, weighted with their probability under theta; scalar."""
    action, reward, ended = games()
    probability = trajectory_ratio(log_probability(theta, action), torch.zeros(action.shape, dtype=torch.float64))
    mean: Tensor = (probability * episode_return(reward, ended, 1.0)[0]).sum()
    return mean


def model(theta: Tensor, old: Tensor, objective: Objective) -> Tensor:
    """What the objective, built from the old policy's games, believes of theta; equal to the truth at theta = old."""
    action, reward, ended = games()
    logp_old = log_probability(old, action)
    probability = trajectory_ratio(logp_old, torch.zeros_like(logp_old))
    mean = average_reward(old)
    weight = episode_return(reward, ended, 1.0) - mean
    gain = objective(log_probability(theta, action), logp_old, weight) - weight
    believed: Tensor = mean + (probability * gain.sum(0)).sum()
    return believed


def ascend(objective: Objective, steps: int = 18, rate: float = 0.05) -> list[Tensor]:
    """Gradient ascent on the model of the policy at START, the old games kept: theta after each step."""
    old = torch.tensor(START, dtype=torch.float64)
    path = [old.clone()]
    for _ in range(steps):
        theta = path[-1].clone().requires_grad_()
        model(theta, old, objective).backward()  # type: ignore[no-untyped-call]
        assert theta.grad is not None
        path.append(theta.detach() + rate * theta.grad)
    return path


def _ascent(objective: Objective, title: str, label: str) -> Figure:
    """Truth, model and the steps taken on the model, shown where they really lead."""
    figure, axes = _figure(1)
    axes = axes[0]
    old = torch.tensor(START, dtype=torch.float64)
    grid = torch.linspace(-2.5, 3.0, 221, dtype=torch.float64)
    truth = [float(average_reward(x)) for x in grid]
    belief = [float(model(x, old, objective)) for x in grid]
    path = [x for x in ascend(objective) if x <= grid[-1]]
    axes.plot(grid, truth, color=TRUTH, lw=2.2, label="average reward of the policy")
    axes.plot(grid, belief, color=MODEL, lw=1.8, ls="--", label=label)
    axes.plot(
        path, [float(average_reward(x)) for x in path], "o", color=DOTS, ms=5, label="gradient steps on the model"
    )
    axes.plot(START, float(average_reward(old)), "o", ms=11, mfc="none", mec=DOTS, label="present policy")
    axes.set(xlabel="policy parameter θ", ylabel="average reward", title=title, ylim=(min(truth) - 2, 16))
    axes.legend(loc="lower left", frameon=False)
    return figure


def _term() -> Figure:
    """One term of the sum against the ratio, for a positive and a negative reward: plain, clip, min."""
    figure, both = _figure(2)
    ratio = torch.linspace(0.4, 1.6, 241, dtype=torch.float64)
    none = torch.zeros_like(ratio)
    for axes, reward in zip(both, (1.0, -1.0), strict=True):
        weight = torch.full_like(ratio, reward)
        clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON)
        axes.plot(ratio, Surrogate()(ratio.log(), none, weight), color=TRUTH, ls="--", label="plain: r w")
        axes.plot(ratio, Surrogate()(clipped.log(), none, weight), color="#888888", ls=":", lw=2, label="clip(r) w")
        least = ClippedSurrogate(EPSILON)(ratio.log(), none, weight)
        axes.plot(ratio, least, color=MODEL, lw=2.5, label="min of both", zorder=1)
        axes.axvline(1.0, color="#bbbbbb", lw=0.8)
        sign = "positive" if reward > 0 else "negative"
        axes.set(xlabel="ratio r = π'(a|s) / π(a|s)", ylabel="gain", title=f"{sign} reward, w = {reward:+.0f}")
        axes.legend(frameon=False)
    return figure


def _figure(panels: int) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure((7 if panels == 1 else 9, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.grid(alpha=0.25)
    return figure, axes


PICTURES = {
    "cliff": lambda: _ascent(Surrogate(), "The policy/reward cliff", "surrogate of the present policy's games"),
    "clipped": lambda: _ascent(
        ClippedSurrogate(EPSILON), "The clipped surrogate holds before the cliff", f"clipped surrogate, ε = {EPSILON}"
    ),
    "clipped-explained": _term,
}


def picture(name: str, out: Path | str | None = None) -> Path:
    """Draw the picture `name` into `out` (.png or .svg; default NAME.png); returns `out`."""
    out = Path(out or f"{name}.png")
    if name not in PICTURES:
        raise UserError(f"there is no picture '{name}': choose one of {', '.join(PICTURES)}")
    if out.suffix not in (".png", ".svg"):
        raise UserError(f"'{out}' must end in .png or .svg")
    try:
        PICTURES[name]().savefig(out, dpi=140)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error}") from error
    return out
