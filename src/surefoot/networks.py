"""Networks: from observations to (policy distribution, value, memory).

A Config holds one of these frozen descriptions; `build` turns it into a `policy.Policy` for given spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gymnasium import spaces
    from torch import nn

    from surefoot.policy import Policy


@dataclass(frozen=True)
class LessonCNN:
    """The lesson's network: conv 2->4 6x6/2 without bias, conv 4->16 6x6/4, 1296->256->1, P(RIGHT) by a sigmoid."""

    critic: bool = False
    """add a value head on the 256 features; without it the value is 0"""

    def build(self, observation: spaces.Box, action: spaces.Discrete) -> Policy:
        """334,897 parameters (and 257 with the critic); PyTorch's default initialisation, as in the lesson."""
        from torch import nn

        from surefoot.envs.atari import lesson_table
        from surefoot.policy import Palette, Policy

        _require(observation.shape == (2, 80, 80), f"LessonCNN sees two 80x80 frames, not {observation.shape}")
        _require(int(action.n) == 2, f"LessonCNN has one output for two actions, not {int(action.n)}")
        body = nn.Sequential(
            nn.Conv2d(2, 4, 6, 2, bias=False),
            nn.ReLU(),
            nn.Conv2d(4, 16, 6, 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1296, 256),
            nn.ReLU(),
        )
        critic = nn.Linear(256, 1) if self.critic else None
        return Policy(Palette(lesson_table()), body, nn.Linear(256, 1), critic, bernoulli=True)


@dataclass(frozen=True)
class SmallCNN:
    """Two convolutions and a hidden layer, ReLU, policy and critic on top; orthogonal initialisation.

    The shape is that of the first deep Q-network (Mnih et al. 2013); its knobs say how fine it looks.
    """

    filters: tuple[int, int] = (16, 32)
    """channels after each convolution"""
    kernel: tuple[int, int] = (8, 4)
    """edge of each convolution's window"""
    stride: tuple[int, int] = (4, 2)
    """step of each convolution"""
    hidden: int = 256
    """units of the hidden layer"""
    background: float = 78.0
    """subtracted from every pixel"""
    scale: float = 64.0
    """then divided by this"""

    def build(self, observation: spaces.Box, action: spaces.Discrete) -> Policy:
        """For images [channels, height, width] and any number of actions."""
        shape = tuple(zip(self.filters, self.kernel, self.stride, strict=True))
        return _convolutional("SmallCNN", observation, action, shape, self.hidden, self.background, self.scale)


@dataclass(frozen=True)
class NatureCNN:
    """The network of the Atari literature: 32 8x8/4, 64 4x4/2, 64 3x3/1, 512 units, ReLU; orthogonal initialisation.

    Source: Mnih et al. 2015; with policy and value heads as in Schulman et al. 2017.
    """

    scale: float = 255.0
    """pixels are divided by this"""

    def build(self, observation: spaces.Box, action: spaces.Discrete) -> Policy:
        """For images [channels, height, width] and any number of actions; 1,687,719 parameters for Pong's six."""
        shape = (32, 8, 4), (64, 4, 2), (64, 3, 1)
        return _convolutional("NatureCNN", observation, action, shape, 512, 0.0, self.scale)


def _convolutional(
    name: str,
    observation: spaces.Box,
    action: spaces.Discrete,
    shape: Sequence[tuple[int, int, int]],
    hidden: int,
    background: float,
    scale: float,
) -> Policy:
    """Convolutions (filters, kernel, stride), a hidden layer, policy and critic."""
    from torch import nn

    from surefoot.policy import Patches, PixelConv, Policy, orthogonal

    _require(len(observation.shape) == 3, f"{name} sees images [channels, height, width], not {observation.shape}")
    channels, *edges = observation.shape
    (first, kernel, size), *others = shape
    _require(kernel % size == 0, f"{name}'s first window {kernel} is no multiple of its stride {size}")
    layers: list[nn.Module] = [PixelConv(channels * size**2, first, kernel // size, background, scale)]
    for (before, *_), (filters, window, stride) in zip(shape, others, strict=False):
        layers.append(nn.Conv2d(before, filters, window, stride))
    for _, window, stride in shape:
        edges = [(edge - window) // stride + 1 for edge in edges]
    _require(min(edges) > 0, f"{name}'s windows do not fit into images of {observation.shape}")
    layers += [nn.Flatten(), nn.Linear(shape[-1][0] * edges[0] * edges[1], hidden)]
    body = nn.Sequential()
    for layer in layers:
        body.append(layer)
        if not isinstance(layer, nn.Flatten):
            body.append(nn.ReLU(inplace=True))
    actor, critic = nn.Linear(hidden, int(action.n)), nn.Linear(hidden, 1)
    return orthogonal(Policy(Patches(size), body, actor, critic))


@dataclass(frozen=True)
class MLP:
    """Fully connected layers with tanh, for vectors; policy and critic have bodies of their own."""

    hidden: tuple[int, ...] = (64, 64)
    """units of each hidden layer"""

    def build(self, observation: spaces.Box, action: spaces.Discrete) -> Policy:
        """For vectors of any length and any number of actions."""
        from torch import nn

        from surefoot.policy import Policy, Vector, orthogonal

        _require(len(observation.shape) == 1, f"MLP sees vectors, not {observation.shape}")

        def body() -> nn.Sequential:
            sizes = (observation.shape[0], *self.hidden)
            layers = [(nn.Linear(a, b), nn.Tanh()) for a, b in zip(sizes, self.hidden, strict=False)]
            return nn.Sequential(*(layer for pair in layers for layer in pair))

        last = self.hidden[-1]
        return orthogonal(
            Policy(Vector(), body(), nn.Linear(last, int(action.n)), nn.Linear(last, 1), critic_body=body())
        )


Network = LessonCNN | SmallCNN | NatureCNN | MLP


def _require(condition: bool, message: str) -> None:
    from surefoot.errors import UserError

    if not condition:
        raise UserError(message)
