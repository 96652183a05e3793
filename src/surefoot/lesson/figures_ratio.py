"""The figures on using games again: importance sampling, the surrogate, the cliff, clipping, the trust region."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from surefoot.algorithm.objectives import (
    ClippedSurrogate,
    Objective,
    Surrogate,
    effective_sample_size,
    is_clipped,
    trajectory_ratio,
)
from surefoot.lesson.cliff import EPSILON, START, ascend, average_reward, model
from surefoot.lesson.svg import Axis, Mark, axis, half_of, number, plot
from surefoot.lesson.widgets import Again, Drawn, Figure, Slider
from surefoot.models.distributions import Bernoulli
from surefoot.rng import Purpose, stream

LOWEST, LOW, HIGH = -5.0, -2.5, 3.0
GRID, WIDE = (torch.linspace(low, HIGH, 181, dtype=torch.float64) for low in (LOW, LOWEST))
TRAJECTORIES = 1000


def scalar(x: float) -> Tensor:
    """A number in double precision."""
    return torch.tensor(x, dtype=torch.float64)


def importance(width: int, shift: float, length: float, seed: int) -> Drawn:
    """The trajectory factor of old trajectories under a policy a little further on, and what they are still worth."""
    steps = int(length)
    noise = torch.from_numpy(stream(seed, Purpose.ACTIONS).random((300, TRAJECTORIES)))
    old, new = (Bernoulli(torch.full_like(noise, logit)) for logit in (0.0, shift))
    action = old.sample(noise)
    logp, logp_old = new.log_prob(action), old.log_prob(action)
    lengths = sorted({steps, *np.geomspace(1, 300, 28).astype(int).tolist()})
    worth = [float(effective_sample_size(trajectory_ratio(logp[:t], logp_old[:t]))) / TRAJECTORIES for t in lengths]
    ratio = trajectory_ratio(logp[:steps], logp_old[:steps])
    exponent = ratio.log10()
    reach = max(1.0, float(exponent.abs().max()) * 1.05)
    count, edges = np.histogram(exponent.numpy(), 41, (-reach, reach))
    one = worth[lengths.index(steps)]
    marks = [
        Mark("bars", (edges[1:] + edges[:-1]) / 2, count, "a", f"{TRAJECTORIES} old trajectories of {steps} steps"),
        Mark("rule", [0.0], None, "grey"),
    ]
    worths = [
        Mark("line", lengths, worth, "b", "effective samples, share of all"),
        Mark("dots", [steps], [one], "b"),
    ]
    pictures = [
        plot(marks, Axis("log₁₀ of the trajectory factor", -reach, reach), axis("trajectories", count, low=0), width,
             height=210),
        plot(worths, Axis("length of a trajectory, steps", 0, 300), Axis("share", 0, 1.05), width, height=210),
    ]  # fmt: skip
    single = float((logp[0] - logp_old[0]).exp().max())
    values = {
        "largest ratio of a single step": number(single),
        "largest factor of a trajectory": number(float(ratio.max())),
        "smallest": number(float(ratio.min())),
        "effective samples of 1,000": number(one * TRAJECTORIES),
        "weight of the heaviest trajectory": f"{100 * float(ratio.max() / ratio.sum()):.0f} %",
    }
    says = (
        f"No single ratio is above {number(single)}, yet {steps} of them multiplied leave the worth of "
        f"{number(one * TRAJECTORIES)} of 1,000 trajectories."
    )
    return Drawn(pictures, values, says)


def surrogate(width: int, old: float, new: float) -> Drawn:
    """The surrogate from one policy's episodes beside the true average reward."""
    truth, estimate = average_reward(GRID), model(GRID, scalar(old), Surrogate())
    true, believed = float(average_reward(scalar(new))), float(model(scalar(new), scalar(old), Surrogate()))
    marks = [
        Mark("line", GRID, truth, "a", "true average reward"),
        Mark("line", GRID, estimate, "b", "surrogate, from the old policy's games", dashed=True),
        Mark("rule", [old], None, "grey"),
        Mark("dots", [old], [float(average_reward(scalar(old)))], "d", "old policy"),
        Mark("dots", [new], [true], "a"),
        Mark("dots", [new], [believed], "b"),
    ]
    walk_old, walk_new = (Bernoulli(scalar(x)).probabilities()[1] for x in (old, new))
    values = {
        "ratio π'/π of walking on": number(float(walk_new / walk_old)),
        "surrogate at the new policy": number(believed),
        "true reward there": number(true),
        "error": number(believed - true),
    }
    near = abs(believed - true) < 0.5
    says = (
        "Near the old policy the two agree: here the surrogate can be trusted."
        if near
        else f"The surrogate promises {number(believed)}; the policy would really earn {number(true)}."
    )
    return Drawn([plot(marks, Axis("policy parameter θ", LOW, HIGH), Axis("reward", -20, 18), width)], values, says)


def cliff(width: int, epsilon: float, step: float, steps: float, rounds: float, start: float) -> Drawn:
    """Gradient ascent on the surrogate and on the clipped surrogate, drawn where the policies really are.

    After each round of steps new games are played with the policy that it has led to. The curves are the last round's.
    """
    old = scalar(start)
    objectives: list[tuple[str, str, Objective]] = [
        ("b", "surrogate", Surrogate()),
        ("c", "clipped", ClippedSurrogate(epsilon)),
    ]
    marks = [Mark("line", WIDE, average_reward(WIDE), "a", "true average reward")]
    after, ends, fell = [], [], []
    for color, name, objective in objectives:
        path, last = [old], old
        for _ in range(int(rounds)):
            last = path[-1]
            path += ascend(objective, int(steps), step, float(last))[1:]
        marks.append(Mark("line", WIDE, model(WIDE, last, objective), color, name, dashed=True))
        reward = average_reward(torch.stack(path))
        marks.append(Mark("dots", torch.stack(path), reward, color))
        after.append(Mark("line", np.arange(len(path)), reward, color, f"true reward, steps on the {name}"))
        after.append(Mark("dots", np.arange(len(path)), reward, color))
        ends.append(float(reward[-1]))
        fell.append("fell off the cliff" if float(reward.min()) < 0 else "holds")
    marks.append(Mark("dots", [start], [float(average_reward(old))], "d", "start"))
    pictures = [
        plot(marks, Axis("policy parameter θ", LOWEST, HIGH), Axis("reward", -20, 16), width),
        plot(after, Axis("gradient step", 0, steps * rounds), Axis("true reward", -20, 10), width, height=210),
    ]
    best = float(average_reward(WIDE).max())
    values = {
        "reward at the start": number(float(average_reward(old))),
        "after the steps, surrogate": number(ends[0]),
        "after the steps, clipped": number(ends[1]),
        "best there is": number(best),
    }
    says = f"Without clipping the policy {fell[0]}; with ε = {number(epsilon)} it {fell[1]}."
    return Drawn(pictures, values, says)


def objective_gradient(objective: Objective, ratio: float, advantage: float) -> tuple[float, float]:
    """One term of an objective and its derivative by the ratio."""
    r = scalar(ratio).requires_grad_()
    term = objective(r.log(), scalar(0.0), scalar(advantage))
    return float(term.detach()), float(torch.autograd.grad(term, r)[0])


def clipped(width: int, epsilon: float, ratio: float) -> Drawn:
    """One term against the ratio, for either sign of the advantage."""
    grid = torch.linspace(0.2, 2.0, 181, dtype=torch.float64)
    zero, pictures, values, flat = torch.zeros_like(grid), [], {}, []
    for sign, name in ((1.0, "A = +1"), (-1.0, "A = −1")):
        advantage = torch.full_like(grid, sign)
        clip = ClippedSurrogate(epsilon)
        term, steep = objective_gradient(clip, ratio, sign)
        marks = [
            Mark("band", [1 - epsilon, 1 + epsilon], None, "grey", "1 − ε to 1 + ε"),
            Mark("line", grid, Surrogate()(grid.log(), zero, advantage), "a", "ρ A", dashed=True),
            Mark("line", grid, clip(grid.log(), zero, advantage), "b", "min(ρ A, clip(ρ) A)"),
            Mark("dots", [ratio], [term], "b"),
        ]
        half = half_of(width)
        pictures.append(plot(marks, Axis("ratio ρ", 0.2, 2.0), Axis("objective", -2.1, 2.1), half, name, 260))
        values[f"objective, {name}"] = number(term)
        values[f"slope, {name}"] = number(steep)
        flat.append(steep == 0)
    outside = bool(is_clipped(scalar(ratio), epsilon))
    if not outside:
        says = "Within the clip range nothing is clipped: both terms push as the plain surrogate does."
    elif flat[0]:
        says = "Likelier than 1 + ε. Was the action good, enough is enough: slope 0. Was it bad, the push back stays."
    else:
        says = "Rarer than 1 − ε. Was the action bad, enough is enough: slope 0. Was it good, the pull back stays."
    return Drawn(pictures, values, says)


def trust(width: int, probability: float, epsilon: float, delta: float) -> Drawn:
    """What TRPO's bound on the KL divergence allows for one action's probability, beside the clip range."""
    grid = torch.linspace(0.005, 0.995, 397, dtype=torch.float64)
    old = Bernoulli(torch.full_like(grid, probability).logit())
    kl = Bernoulli(grid.logit()).kl_from(old)
    inside = grid[kl <= delta]
    region: Any = (float(inside.min()), float(inside.max())) if len(inside) else (probability, probability)
    clip: Any = (probability * (1 - epsilon), min(1.0, probability * (1 + epsilon)))
    top = max(4 * delta, 0.02)
    marks = [
        Mark("area", region, ((0, 0), (top / 2, top / 2)), "a", "trust region, KL ≤ δ"),
        Mark("area", clip, ((top / 2, top / 2), (top, top)), "b", "clip range, |ρ − 1| ≤ ε"),
        Mark("line", grid, kl, "c", "KL(old ‖ new)"),
        Mark("line", [0, 1], [delta, delta], "grey", "δ", dashed=True),
        Mark("rule", [probability], None, "d", "old probability"),
    ]
    values = {
        "trust region": f"{number(region[0])} to {number(region[1])}",
        "clip range": f"{number(clip[0])} to {number(clip[1])}",
        "ratios in the trust region": f"{number(region[0] / probability)} to {number(region[1] / probability)}",
    }
    wider = (region[1] - region[0]) > (clip[1] - clip[0])
    which = "trust region" if wider else "clip range"
    says = f"For an action of probability {number(probability)} the {which} is the wider of the two."
    y = Axis("KL, nats", 0, top)
    return Drawn([plot(marks, Axis("new probability of the action", 0, 1), y, width)], values, says)


FIGURES = {
    "importance": Figure(
        "A coin is the policy: P(1) was 0.5 when the games were played. Each trajectory is weighted by Π π'/π.",
        {
            "shift": Slider("how far the policy has moved, in logits", 0, 2, 0.05, 0.3),
            "length": Slider("steps of a trajectory", 1, 300, 1, 100),
            "seed": Again("other trajectories"),
        },
        importance,
    ),
    "surrogate": Figure(
        "The true average reward of every policy, and what the old policy's games make of it.",
        {
            "new": Slider("new policy θ'", LOW, HIGH, 0.05, 0.2),
            "old": Slider("old policy θ", LOW, HIGH, 0.05, START),
        },
        surrogate,
    ),
    "cliff": Figure(
        "Gradient ascent on either objective from one policy's games. Dots lie at the true reward of each policy.",
        {
            "epsilon": Slider("clip range ε", 0.02, 1, 0.02, EPSILON),
            "step": Slider("step size", 0.005, 0.2, 0.005, 0.05),
            "steps": Slider("gradient steps a round", 1, 40, 1, 18),
            "rounds": Slider("rounds, each with new games", 1, 5, 1, 1),
            "start": Slider("start θ", LOW, 1.5, 0.1, START),
        },
        cliff,
    ),
    "clipped": Figure(
        "One sample's term of the objective, for a good and for a bad action; slopes by automatic differentiation.",
        {
            "ratio": Slider("ratio ρ = π'(a|s) / π(a|s)", 0.3, 1.9, 0.01, 1.3),
            "epsilon": Slider("clip range ε", 0.05, 0.6, 0.01, 0.2),
        },
        clipped,
    ),
    "trust": Figure(
        "One state with two actions. Small probabilities show the difference.",
        {
            "probability": Slider("old probability of the action", 0.02, 0.98, 0.01, 0.3),
            "epsilon": Slider("clip range ε", 0.02, 0.6, 0.02, 0.2),
            "delta": Slider("KL bound δ", 0.001, 0.1, 0.001, 0.01),
        },
        trust,
    ),
}
