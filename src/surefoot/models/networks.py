"""Networks: from observations to (policy distribution, value, memory).

A Config holds one of these frozen descriptions; `build` turns it into a `policy.Policy` for given spaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surefoot.errors import UserError, note, require, require_range

if TYPE_CHECKING:
    from gymnasium import spaces
    from torch import nn

    from surefoot.envs.spaces import Part
    from surefoot.models.policy import Policy

    Space = spaces.Space[Any]

LARGE = 20_000_000  # parameters of one layer that are announced before it is made
MAX_UNITS = 16_384  # of a layer; more is a typing error and takes all memory


@dataclass(frozen=True)
class LessonCNN:
    """The lesson's network: conv 2->4 6x6/2 without bias, conv 4->16 6x6/4, 1296->256->1, P(RIGHT) by a sigmoid."""

    critic: bool = False
    """add a value head on the 256 features; without it the value is 0"""
    separate_critic: bool = False
    """that value head has layers of its own below it"""

    def build(self, observation: Space, action: Space) -> Policy:
        """334,897 parameters (and 257 with the critic); PyTorch's default initialisation, as in the lesson."""
        from gymnasium import spaces
        from torch import nn

        from surefoot.envs.atari import lesson_table
        from surefoot.models.distributions import Bernoulli, Head
        from surefoot.models.layers import Palette
        from surefoot.models.policy import Policy

        _require(observation.shape == (2, 80, 80), f"LessonCNN sees two 80x80 frames, not {observation.shape}")
        two = isinstance(action, spaces.Discrete) and int(action.n) == 2
        _require(two, f"LessonCNN has one output for two actions, not {action}")
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
        own = deepcopy(body) if self.critic and self.separate_critic else None
        head = Head(1, (), Bernoulli)
        return Policy(Palette(lesson_table()), body, nn.Linear(256, 1), critic, head, critic_body=own)


@dataclass(frozen=True)
class SmallCNN:
    """Two convolutions and a hidden layer with ReLU, shared by policy and value; orthogonal initialisation.

    By default the shape of the first deep Q-network (Mnih et al. 2013).
    """

    filters: tuple[int, int] = (16, 32)
    """filters of each convolution"""
    kernel: tuple[int, int] = (8, 4)
    """kernel size of each convolution"""
    stride: tuple[int, int] = (4, 2)
    """stride of each convolution"""
    hidden: int = 256
    """units of the hidden layer"""
    background: float = 78.0
    """subtracted from each pixel"""
    scale: float = 64.0
    """divisor of each pixel after that"""
    separate_critic: bool = False
    """the critic has layers of its own"""

    def __post_init__(self) -> None:
        require_range(self, "filters", "kernel", "stride", "hidden", low=1, high=MAX_UNITS)
        for name in ("filters", "kernel", "stride"):
            require(len(getattr(self, name)) == 2, f"SmallCNN.{name}", getattr(self, name), "two numbers")
        require_range(self, "background")
        require_range(self, "scale", above=True)

    def build(self, observation: Space, action: Space) -> Policy:
        """For images and Dicts with images in them, and any actions."""
        shape = tuple(zip(self.filters, self.kernel, self.stride, strict=True))
        look = _plain("SmallCNN", shape, self.background, self.scale)
        return _convolutional(self, observation, action, self.stride[0], look, self.hidden)


@dataclass(frozen=True)
class NatureCNN:
    """The network of the Atari literature: 32 8x8/4, 64 4x4/2, 64 3x3/1, 512 units, ReLU; orthogonal initialisation.

    Source: Mnih et al. 2015; with policy and value heads as in Schulman et al. 2017.
    """

    scale: float = 255.0
    """divisor of each pixel"""
    separate_critic: bool = False
    """the critic has layers of its own"""

    def __post_init__(self) -> None:
        require_range(self, "scale", above=True)

    def build(self, observation: Space, action: Space) -> Policy:
        """For images and Dicts with images in them, and any actions; 1,687,719 parameters for Pong's six."""
        look = _plain("NatureCNN", ((32, 8, 4), (64, 4, 2), (64, 3, 1)), 0.0, self.scale)
        return _convolutional(self, observation, action, 4, look, 512)


@dataclass(frozen=True)
class ImpalaCNN:
    """IMPALA's residual network: 16, 32 and 32 filters 3x3, each halved and with two residual units, 256 units, ReLU.

    Source: Espeholt et al. 2018, figure 3, the deep one without its LSTM; initialised as the others.
    """

    separate_critic: bool = False
    """the critic has layers of its own"""

    def build(self, observation: Space, action: Space) -> Policy:
        """For images and Dicts with images in them, and any actions; 1,090,517 parameters for Breakout's four."""

        def look(channels: int) -> list[nn.Module]:
            from torch import nn

            from surefoot.models.layers import PixelConv, Residual

            layers: list[nn.Module] = []
            for before, filters in ((channels, 16), (16, 32), (32, 32)):
                first = nn.Conv2d(before, filters, 3, padding=1) if layers else PixelConv(before, filters, 3, padding=1)
                layers += [first, nn.MaxPool2d(3, 2, 1), Residual(filters), Residual(filters)]
            return [*layers, nn.ReLU()]

        return _convolutional(self, observation, action, 1, look, 256)


def _plain(
    name: str, shape: Sequence[tuple[int, int, int]], background: float, scale: float
) -> Callable[[int], list[nn.Module]]:
    """Convolutions (filters, kernel, stride) over patches of the first one's stride, with so many channels."""
    (first, kernel, step), *others = shape
    _require(kernel % step == 0, f"{name}'s first window {kernel} is no multiple of its stride {step}")

    def look(channels: int) -> list[nn.Module]:
        from torch import nn

        from surefoot.models.layers import PixelConv

        layers: list[nn.Module] = [PixelConv(channels, first, kernel // step, background, scale)]
        for (before, *_), (filters, window, stride) in zip(shape, others, strict=False):
            layers += [nn.ReLU(inplace=True), nn.Conv2d(before, filters, window, stride)]
        return [*layers, nn.ReLU(inplace=True)]

    return look


def _convolutional(
    network: SmallCNN | NatureCNN | ImpalaCNN,
    observation: Space,
    action: Space,
    step: int,
    look: Callable[[int], list[nn.Module]],
    hidden: int,
) -> Policy:
    """`look` over patches of `step` pixels, a hidden layer, policy and critic; a Dict's other parts join them."""
    import torch
    from torch import nn

    from surefoot.envs.spaces import MASK, MIN_IMAGE, blank, image_axes, masked, parts
    from surefoot.models.distributions import head
    from surefoot.models.layers import DictEncoder, VectorEncoder
    from surefoot.models.policy import Policy, orthogonal

    name, layout, mask, top = type(network).__name__, parts(observation), masked(observation, action), head(action)
    pictures = [part for part in layout if len(part.shape) == 3 or part.is_image()]
    images = [part for part in pictures if min(image_axes(part.shape)[:2]) >= MIN_IMAGE] or pictures
    _require(len(images) > 0, f"{name} sees images [channels, height, width], not {observation.shape or observation}")
    image_encoders = [_image_encoder(part, step, look) for part in images]
    prepare, body = image_encoders[0]
    if images[0].path:
        rest = VectorEncoder([part for part in layout if part not in images and not (mask and part.path == MASK)])
        joined = DictEncoder(
            images, [nn.Sequential(first, *convolutions) for first, convolutions in image_encoders], rest
        )
        prepare, body = nn.Identity(), nn.Sequential(joined)
    try:
        width = body(prepare(torch.from_numpy(blank(observation))[None])).shape[1]
    except RuntimeError as error:
        sizes = " and ".join(str(part.shape) for part in images)
        raise UserError(f"{name}'s windows do not fit into images of {sizes}") from error
    _announce(width, hidden, observation)
    body.append(nn.Linear(width, hidden)).append(nn.ReLU(inplace=True))
    actor, critic = nn.Linear(hidden, top.outputs), nn.Linear(hidden, 1)
    own = deepcopy(body) if network.separate_critic else None
    return orthogonal(Policy(prepare, body, actor, critic, top, mask, critic_body=own))


def _image_encoder(part: Part, step: int, look: Callable[[int], list[nn.Module]]) -> tuple[nn.Module, nn.Sequential]:
    """What cuts an image into patches, and the convolutions; floats are scaled by their announced bounds."""
    from torch import nn

    from surefoot.envs.spaces import image_axes
    from surefoot.models.layers import FlattenChannelsLast, Patches

    _, _, channels, last = image_axes(part.shape)
    first, *others = look(channels * step**2)
    if scale := part.pixel_scale():
        vars(first).update(background=0.0, scale=scale)
    return Patches(step, last), nn.Sequential(first, *others, FlattenChannelsLast())


@dataclass(frozen=True)
class MLP:
    """Fully connected layers with tanh, for flat observations; policy and value have separate layers."""

    hidden: tuple[int, ...] = (64, 64)
    """units of each hidden layer"""
    running: bool = False
    """normalise observations by their running mean and standard deviation"""
    std: float = 0.6
    """initial standard deviation of continuous actions, in units of half their range"""

    def __post_init__(self) -> None:
        require_range(self, "hidden", low=1, high=MAX_UNITS)
        require_range(self, "std", above=True)

    def build(self, observation: Space, action: Space) -> Policy:
        """For any observations and actions."""
        from torch import nn

        from surefoot.envs.spaces import masked, parts
        from surefoot.models.distributions import head
        from surefoot.models.layers import ActorCriticLinear, VectorEncoder
        from surefoot.models.policy import Policy, orthogonal

        mask, top, prepare = masked(observation, action), head(action), VectorEncoder(parts(observation), self.running)
        _require(prepare.width > mask, f"there is nothing to see in {observation}")
        sizes, last = (prepare.width - mask, *self.hidden), self.hidden[-1]
        _announce(sizes[0], 2 * self.hidden[0], observation)
        layers = [(ActorCriticLinear(a, b), nn.Tanh()) for a, b in zip(sizes, self.hidden, strict=False)]
        body = nn.Sequential(*(layer for both in layers for layer in both))
        actor, critic = nn.Linear(last, top.outputs), nn.Linear(last, 1)
        return orthogonal(Policy(prepare, body, actor, critic, top, mask, self.std))


Network = LessonCNN | SmallCNN | NatureCNN | ImpalaCNN | MLP


def _announce(inputs: int, units: int, observation: Space) -> None:
    """Say before a large layer is made what makes it large."""
    if inputs * units > LARGE:
        size = f"{inputs * units:,} parameters ({inputs:,} inputs times {units:,} units)"
        note(f"a layer of {size}: observations are {observation}; a wrapper makes them smaller")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
