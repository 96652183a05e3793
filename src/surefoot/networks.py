"""Networks: from observations to (policy distribution, value, memory).

A Config holds one of these frozen descriptions; `build` turns it into a `policy.Policy` for given spaces.
"""

from __future__ import annotations

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
    """Two convolutions and a hidden layer, policy and critic on top; orthogonal initialisation.

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
        from torch import nn

        from surefoot.policy import Patches, PixelConv, Policy, orthogonal

        _require(
            len(observation.shape) == 3, f"SmallCNN sees images [channels, height, width], not {observation.shape}"
        )
        channels, *edges = observation.shape
        for kernel, stride in zip(self.kernel, self.stride, strict=True):
            edges = [(edge - kernel) // stride + 1 for edge in edges]
        _require(min(edges) > 0, f"SmallCNN's windows {self.kernel} do not fit into images of {observation.shape}")
        size = self.stride[0]
        _require(
            self.kernel[0] % size == 0, f"SmallCNN's first window {self.kernel[0]} is no multiple of its stride {size}"
        )
        first, second = self.filters
        body = nn.Sequential(
            PixelConv(channels * size**2, first, self.kernel[0] // size, self.background, self.scale),
            nn.ELU(),
            nn.Conv2d(first, second, self.kernel[1], self.stride[1]),
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(second * edges[0] * edges[1], self.hidden),
            nn.ELU(),
        )
        actor, critic = nn.Linear(self.hidden, int(action.n)), nn.Linear(self.hidden, 1)
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


Network = LessonCNN | SmallCNN | MLP


def _require(condition: bool, message: str) -> None:
    from surefoot.errors import UserError

    if not condition:
        raise UserError(message)
