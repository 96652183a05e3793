"""The module that plays and learns: a body, a policy head, and a critic head where there is one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from surefoot.arrays import Array, namespace
from surefoot.envs.spaces import MASK, Part
from surefoot.fast.windows import Shape, Windows, windows
from surefoot.models.distributions import FORBIDDEN, Bernoulli, DiagonalGaussian, Distribution, Head

PIECE = 512  # rows; what fits the cache is judged and learned from twice as fast
KEPT = 1 << 25  # bytes; what is larger the C library takes from the system, and gives back, every time


class Palette(nn.Module):
    """A float for each of 256 palette indices: exact colours from uint8 observations."""

    table: Tensor

    def __init__(self, table: NDArray[np.float64]) -> None:
        super().__init__()
        self.register_buffer("table", torch.from_numpy(table).float())

    def forward(self, obs: Tensor) -> Tensor:
        """uint8 [B, channels, height, width] to float of the same shape, channels-last: fastest for convolutions."""
        x = obs.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return self.table.index_select(0, x.flatten().int()).view(x.shape).permute(0, 3, 1, 2)


class Patches(nn.Module):
    """Cut images into squares of `size` pixels: [B, C, H, W] to [B, H/size, W/size, C size size].

    A convolution with this stride then has stride 1 and many channels, which matrix units are fastest on.
    `channels_last`: the images are [B, H, W, C].
    """

    def __init__(self, size: int, channels_last: bool = False) -> None:
        super().__init__()
        self.size, self.channels_last = size, channels_last

    def forward(self, obs: Tensor) -> Tensor:
        """Same dtype out as in; pixels that fill no whole square are dropped."""
        if obs.ndim == 3:
            obs = obs[:, None]
        if self.channels_last:
            obs = obs.permute(0, 3, 1, 2)
        n, channels, height, width = obs.shape
        k, rows, columns = self.size, height // self.size, width // self.size
        if obs.dtype == torch.uint8 and obs.is_contiguous() and obs.is_cpu and k % 4 == width % 4 == 0:
            # four pixels of a line stay together, moved as one word: a third of the time
            words = obs.numpy().reshape(n, -1).view(np.int32).take(_order(channels, height, width, k), 1)
            return torch.from_numpy(words.view(np.uint8).reshape(n, rows, columns, -1))
        squares = obs[:, :, : rows * k, : columns * k].reshape(n, channels, rows, k, columns, k)
        return squares.permute(0, 2, 4, 1, 3, 5).reshape(n, rows, columns, -1)

    def extra_repr(self) -> str:
        """Shown by `surefoot summary`."""
        return f"size={self.size}"


@functools.cache
def _order(channels: int, height: int, width: int, size: int) -> NDArray[np.intp]:
    """Where an image's patches have their words of four pixels from."""
    rows, columns = height // size, width // size
    words = np.arange(channels * height * width // 4).reshape(channels, height, width // 4)
    whole = words[:, : rows * size, : columns * size // 4].reshape(channels, rows, size, columns, size // 4)
    return whole.transpose(1, 3, 0, 2, 4).ravel()


class PixelConv(nn.Conv2d):
    """A convolution of (pixel - background) / scale over Patches.

    Both are folded into weights and bias, which is the same function and spares two passes over the pixels. Padding is
    black: it goes with a background of 0.
    """

    def __init__(
        self, channels: int, filters: int, kernel: int, background: float = 0.0, scale: float = 255.0, padding: int = 0
    ) -> None:
        super().__init__(channels, filters, kernel, padding=padding)
        self.background, self.scale = background, scale
        self.folded: tuple[Tensor, Tensor] | None = None

    def fold(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias for pixels as they are."""
        assert self.bias is not None
        weight = (self.weight / self.scale).to(dtype)
        bias = self.bias - self.background * weight.sum((1, 2, 3), dtype=self.bias.dtype)  # of the rounded weights
        return weight, bias.to(dtype)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, rows, columns, C] of any dtype to [B, filters, rows', columns']."""
        fast = torch.is_autocast_enabled("cpu")
        weight, bias = self.folded or self.fold(torch.bfloat16 if fast else self.weight.dtype)
        return F.conv2d(patches.to(weight.dtype).permute(0, 3, 1, 2), weight, bias, padding=self.padding)


class Residual(nn.Module):
    """x + last(relu(first(relu(x)))), both 3x3 convolutions. Source: He et al. 2016."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, height, width] to the same."""
        return torch.add(x, self.last(F.relu(self.first(F.relu(x)))))


class FlattenChannelsLast(nn.Module):
    """[B, C, H, W] to [B, H W C]: the order in which convolutions leave their numbers, so nothing moves."""

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers, as rows."""
        return x.permute(0, 2, 3, 1).flatten(1)


class Moments(nn.Module):
    """Running mean and variance of some numbers, in double precision; what is seen is (x - mean) / deviation.

    They are frozen while games are played and learned from, and are part of the policy: saved with it, and frozen in
    evaluation. Before there are any, numbers are seen as they are. Source: Schulman et al. 2016, appendix.
    """

    count: Tensor
    mean: Tensor
    square: Tensor
    factor: Tensor
    shift: Tensor
    LIMIT = 10.0  # deviations

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(size, dtype=torch.float64))  # sum of (x - mean)^2
        self.register_buffer("factor", torch.ones(size), persistent=False)
        self.register_buffer("shift", torch.zeros(size), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())  # type: ignore[no-untyped-call]
        self.refresh()

    def forward(self, x: Array) -> Array:
        """[B, size] to [B, size], nowhere beyond LIMIT."""
        factor, shift = self.arrays if isinstance(x, np.ndarray) else (self.factor, self.shift)
        return (x * factor + shift).clip(-self.LIMIT, self.LIMIT)

    def take(self, count: Tensor, mean: Tensor, square: Tensor) -> None:
        """Become these moments."""
        self.count.copy_(count)
        self.mean.copy_(mean)
        self.square.copy_(square)
        self.refresh()

    def refresh(self) -> None:
        """Make factor and shift those of the moments."""
        if self.count > 0:
            factor = (self.square / self.count + 1e-8).rsqrt()
            self.factor.copy_(factor)
            self.shift.copy_(-self.mean * factor)
        self.arrays = self.factor.numpy(force=True), self.shift.numpy(force=True)


def part_of(row: Tensor, part: Part) -> Tensor:
    """One part of observations [B, ...], in its own dtype and shape; `row` itself where there is only one."""
    if not part.path:
        return row
    dtype = torch.from_numpy(np.zeros(0, part.dtype)).dtype
    own = row[:, part.start : part.stop].clone(memory_format=torch.contiguous_format)  # a single row keeps its stride
    return own.view(dtype).view(len(row), *part.shape)


class Vector(nn.Module):
    """Observations as one row of floats: numbers as they are, or as their running moments have them; bytes / 255;
    choices one-hot; a mask, as it is, last.
    """

    def __init__(self, layout: Sequence[Part], running: bool = False) -> None:
        super().__init__()
        self.layout = [part for part in layout if part.dtype != np.float32]
        self.floats = [part for part in layout if part.dtype == np.float32]
        size = sum(int(np.prod(part.shape)) for part in self.floats)
        self.width = size + sum(self._width(part) for part in self.layout)
        self.moments = Moments(size) if running and size else None

    @staticmethod
    def _width(part: Part) -> int:
        return int(part.space.n) if isinstance(part.space, spaces.Discrete) else int(np.prod(part.shape))

    def numbers(self, obs: Tensor) -> Tensor:
        """What running moments are about, [B, K]."""
        return torch.cat([part_of(obs, part).reshape(len(obs), -1) for part in self.floats], 1)

    def forward(self, obs: Array) -> Array:
        """Observations [B, ...] to [B, width]."""
        if self.floats and not self.layout and not self.floats[0].path:
            x = obs if obs.ndim == 2 else obs.reshape(len(obs), -1)
            return x if self.moments is None else self.moments.forward(x)
        if isinstance(obs, np.ndarray):
            return self.forward(torch.from_numpy(obs)).numpy()
        rows = []
        if self.floats:
            x = self.numbers(obs)
            rows.append(x if self.moments is None else self.moments(x))
        for part in self.layout:
            x = part_of(obs, part)
            if isinstance(part.space, spaces.Discrete):
                rows.append(F.one_hot(x[:, 0], int(part.space.n)).float())
            else:
                x = x.reshape(len(x), -1).float()
                rows.append(x if isinstance(part.space, spaces.MultiBinary) or part.path == MASK else x / 255)
        return torch.cat([row.to(rows[0].dtype) for row in rows], 1)

    def extra_repr(self) -> str:
        """Shown by `surefoot summary`."""
        return f"width={self.width}"


class DictEncoder(nn.Module):
    """The parts of a Dict, each embedded, side by side: images by `image_encoders`, all else by one Vector."""

    def __init__(self, images: Sequence[Part], image_encoders: Sequence[nn.Module], rest: Vector) -> None:
        super().__init__()
        self.images, self.rest = images, rest
        self.image_encoders = nn.ModuleList(image_encoders)

    def forward(self, row: Tensor) -> Tensor:
        """Bytes [B, row] to floats [B, all widths]."""
        seen = [eye(part_of(row, part)) for part, eye in zip(self.images, self.image_encoders, strict=True)]
        rest = [self.rest(row).to(seen[0].dtype)] if self.rest.width else []  # a mask is not seen
        return torch.cat([*seen, *rest], 1)


class ActorCriticLinear(nn.Module):
    """Two fully connected layers side by side, the actor's and the critic's, computed at once."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(2 * outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs], which both see, or [2, B, inputs] to [2, B, outputs]."""
        return torch.baddbmm(self.bias.view(2, 1, -1), x.expand(2, -1, -1), self.weight.mT)

    def extra_repr(self) -> str:
        """Shown by `surefoot summary`."""
        return f"2 x {self.weight.shape[2]} to {self.weight.shape[1]}"


class Bound(NamedTuple):
    """An MLP's parameters as arrays, each with its gradient: weight, bias, and theirs."""

    hidden: Sequence[tuple[NDArray[Any], ...]]
    actor: tuple[NDArray[Any], ...]
    critic: tuple[NDArray[Any], ...]
    log_std: tuple[NDArray[Any], ...]
    """() where actions are not continuous"""
    gradient: NDArray[Any]
    """of all of them, flat"""


class Policy(nn.Module):
    """prepare -> body -> features -> (policy distribution, value).

    `prepare` has no parameters: learning applies it once to a rollout, not once in every pass. `masks`: how many of
    its last columns say which actions are allowed; `std`: deviation of continuous actions at the start.
    """

    def __init__(
        self,
        prepare: nn.Module,
        body: nn.Sequential,
        actor: nn.Linear,
        critic: nn.Linear | None,
        head: Head,
        masks: int = 0,
        std: float = 0.6,
    ) -> None:
        super().__init__()
        self.preprocess, self.body = prepare, body
        self.actor, self.critic = actor, critic
        self.pairs = [layer for layer in body if isinstance(layer, ActorCriticLinear)]
        """of an MLP: the layers between observation and heads"""
        self.distribution, self.draws, self.masks = head.distribution, head.draws, masks
        """distribution: that with some parameters, as a rollout stores them; draws: shape of the noise for an action"""
        gaussian = head.distribution is DiagonalGaussian
        self.log_std = nn.Parameter(torch.full((head.outputs,), math.log(std))) if gaussian else None
        """of a DiagonalGaussian, the same wherever it is"""
        self.bound: Bound | None = None
        self.bf16 = False
        """compute the body in bfloat16; the heads stay as exact as their weights"""
        self.heads: tuple[NDArray[Any], ...] | None = None
        """of a player: weight and bias of actor and critic together; what they put out is of NumPy"""

    def forward(self, obs: Tensor, memory: None = None) -> tuple[Distribution, Tensor, None]:
        """`obs` [B, ...] to (distribution over B actions, value [B], memory); a policy without a critic has V = 0."""
        return self.judge(self.preprocess(obs), memory)

    def judge(self, preprocessed: Tensor | Windows, memory: None = None) -> tuple[Distribution, Tensor, None]:
        """`forward` for observations that went through `prepare`."""
        x, allowed = self._see(preprocessed)
        out, value = self._heads(x)
        return self._choose(out, allowed), value, memory

    def windows(self, *parts: Tensor) -> Windows | None:
        """Prepared images [..., rows, columns, C] as convolutions see them; None where that is of no use."""
        if not isinstance(self.preprocess, Patches) or not parts[0].is_cpu:
            return None
        images, convolutions = [x.flatten(0, -4) for x in parts], list[Shape]()
        for layer in self.body:
            if isinstance(layer, nn.Conv2d) and (layer.padding, layer.dilation, layer.groups) == ((0, 0), (1, 1), 1):
                convolutions.append((layer.kernel_size, layer.stride))
            elif not isinstance(layer, nn.ReLU):
                break
        small = self.piece(images[0]) >= PIECE // 4  # windows of large images are many times their size
        return windows(images, convolutions) if convolutions and small else None

    @torch.no_grad()
    def judged(self, preprocessed: Tensor | Windows) -> tuple[Tensor, Tensor]:
        """The distributions' numbers and the values for many preprocessed observations, as an update will find them."""
        size = self.piece(preprocessed)
        rows: Any = (preprocessed[i : i + size] for i in range(0, len(preprocessed), size))
        pieces = (self.traced(x.numpy()) if self.bound else self.judge(x) for x in rows)
        params, values = zip(*((dist.params, value) for dist, value, _ in pieces), strict=True)
        return torch.cat([*map(torch.as_tensor, params)]), torch.cat([*map(torch.as_tensor, values)])

    def piece(self, preprocessed: Array | Windows) -> int:
        """How many rows of preprocessed observations are judged or learned from at once."""
        if isinstance(preprocessed, Windows):
            return PIECE
        row: int = math.prod(preprocessed.shape[1:]) * (2 if self.bf16 else 4)
        return max(1, min(PIECE, KEPT // row))

    def _heads(self, x: Tensor, rounded: dict[str, Tensor] | None = None) -> tuple[Array, Array]:
        """The actor's numbers [B, K] and the value [B]; `rounded` stand in for the body's parameters of these names."""
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext():
            features = self._features(x, rounded or {}).to(self.actor.weight.dtype)
        if self.heads is not None:
            both = features.numpy() @ self.heads[0].T + self.heads[1]
            return both[:, :-1], both[:, -1]
        features, own = features if self.pairs else (features, features)
        return self.actor(features), features.new_zeros(len(x)) if self.critic is None else self.critic(own)[:, 0]

    def _features(self, x: Any, rounded: dict[str, Tensor]) -> Tensor:
        """What the body makes of preprocessed observations, or of their windows."""
        dtype = torch.bfloat16 if self.bf16 else self.actor.weight.dtype
        for i, layer in enumerate(self.body):
            if isinstance(x, Windows) and isinstance(layer, nn.ReLU):
                x = x.each(layer)
            elif isinstance(x, Windows) and isinstance(layer, nn.Conv2d) and len(x.tables) > 1:
                own = layer.fold(dtype) if isinstance(layer, PixelConv) else (layer.weight.to(dtype), layer.bias)
                x = x.convolved(*own)
            else:
                x, weight = x.images() if isinstance(x, Windows) else x, rounded.get(f"{i}.weight")
                x = layer(x) if weight is None else functional_call(layer, {"weight": weight}, x)
        features: Tensor = x
        return features

    def acting(self) -> Callable[[Array, Array], Array] | None:
        """For an MLP on the processor: observations and noise to actions, by the actor's layers alone.

        The noise is uniform, or `normal` where actions are continuous. Between two steps of environments each call
        finds the caches cold: there are as few as can be.
        """
        if self.bound is None:
            return None
        layers = [(np.ascontiguousarray(w[0].T), b[0]) for w, b, _, _ in self.bound.hidden]
        weight, bias, *_ = self.bound.actor
        top, prepare, masks = np.ascontiguousarray(weight.T), self.preprocess.forward, self.masks
        sigma = np.exp(self.bound.log_std[0]) if self.bound.log_std else None

        def act(obs: Array, noise: Array) -> Array:
            x, allowed = self._see(prepare(obs)) if masks else (prepare(obs), None)
            for w, b in layers:
                x = x @ w
                x += b
                np.tanh(x, x)
            x = x @ top
            x += bias
            return self._choose(x, allowed).sample(noise) if sigma is None else x + sigma * noise

        return act

    def traced(self, preprocessed: Array) -> tuple[Distribution, Array, Callable[..., None]]:
        """`judge` for learning: distribution and value, and what adds to the parameters' gradients, or sets them.

        It is given the loss's gradient by the distribution's numbers, as `score` has it, and by the values. From there
        on autograd goes back through a network; but an MLP's layers are so small that its notes would take longer than
        the arithmetic, so their chain rule is written out, over arrays.
        """
        x, allowed = self._see(preprocessed)
        out, value, back = self._pairs(x) if isinstance(x, np.ndarray) else self._layers(x)

        def pull(slope: Array, value_slope: Array, add: bool = True) -> None:
            size = out.shape[1]
            back(slope.reshape(out.shape) if self.log_std is None else slope[:, :size], value_slope, add)
            if self.log_std is not None:
                down = self.bound.log_std[1] if self.bound and isinstance(slope, np.ndarray) else _grad(self.log_std)
                down[...] = slope[:, size:].sum(0) + (down if add else 0)

        return self._choose(out, allowed), value, pull

    def bind(self, gradient: Tensor) -> None:
        """Take hold of an MLP's parameters and gradients as arrays; `flatten` has just moved them."""
        self.bound = None
        if self.pairs and gradient.is_cpu:
            layers: tuple[Any, ...] = (*self.pairs, self.actor, self.critic)
            parameters = ((p.weight, p.bias, _grad(p.weight), _grad(p.bias)) for p in layers)
            *hidden, actor, critic = (tuple(x.detach().numpy() for x in some) for some in parameters)
            pairs = [(w, b.reshape(2, -1), dw, db.reshape(2, -1)) for w, b, dw, db in hidden]
            log_std = () if self.log_std is None else (self.log_std.detach().numpy(), _grad(self.log_std).numpy())
            self.bound = Bound(pairs, actor, critic, log_std, gradient.numpy())

    def _layers(self, x: Tensor) -> tuple[Array, Array, Callable[..., None]]:
        """`_heads`, and the way back, by autograd."""
        wide = ((i, p.weight) for i, p in enumerate(self.body) if self.bf16 and isinstance(p, nn.Linear))
        # as autocast would round them, but their gradients go straight to where they belong
        rounded = {f"{i}.weight": p.detach().bfloat16().requires_grad_() for i, p in wide}
        with torch.enable_grad():
            ends = self._heads(x, rounded)

        def back(slope: Tensor, value_slope: Tensor, add: bool) -> None:
            own = {name: p for name, p in self.named_parameters() if p is not self.log_std}
            asked = [rounded.get(name.removeprefix("body."), p) for name, p in own.items()]
            count = sum(end.requires_grad for end in ends)  # without a critic, one
            found = torch.autograd.grad(ends[:count], asked, (slope, value_slope)[:count])
            for p, new in zip(own.values(), found, strict=True):  # less to write than if autograd added to zeros
                _grad(p).add_(new) if add else _grad(p).copy_(new)

        return ends[0].detach(), ends[1].detach(), back

    def _pairs(self, x: NDArray[Any]) -> tuple[Array, Array, Callable[..., None]]:
        """The same of an MLP's arrays."""
        assert self.bound is not None
        hidden, actor, critic = self.bound[:3]
        seen = [x]
        for w, b, _, _ in hidden:
            x = np.matmul(x, np.ascontiguousarray(w.mT))  # a sixth faster, the copy included
            x += b[:, None]
            seen.append(np.tanh(x, x))
        ones = np.ones(x.shape[1], x.dtype)

        def back(slope: NDArray[Any], value_slope: NDArray[Any], add: bool) -> None:
            def put(gradient: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> None:
                if add:
                    gradient += a @ b
                else:
                    np.matmul(a, b, gradient)

            both = np.empty_like(x)
            for (_, _, dw, db), by, last in zip((actor, critic), (slope, value_slope[:, None]), x, strict=True):
                put(dw, by.T, last)
                put(db, ones, by)
            np.matmul(slope, actor[0], both[0])
            np.multiply(value_slope[:, None], critic[0], both[1])
            for i, (w, _, dw, db) in reversed(list(enumerate(hidden))):
                both *= 1 - seen[i + 1] * seen[i + 1]
                put(dw, both.mT, seen[i])
                put(db, ones, both)
                if i:
                    both = both @ w

        return x[0] @ actor[0].T + actor[1], x[1] @ critic[0][0] + critic[1], back

    def _see(self, preprocessed: Array) -> tuple[Array, Array | None]:
        """What the body sees, and which actions are allowed, where a mask says so."""
        allowed = None
        if self.masks:
            preprocessed, allowed = preprocessed[:, : -self.masks], preprocessed[:, -self.masks :] > 0
        if isinstance(preprocessed, np.ndarray):
            assert self.bound is not None
            return preprocessed.astype(self.bound.gradient.dtype, copy=False), allowed
        asis = isinstance(preprocessed, Windows) or preprocessed.dtype == torch.uint8
        return preprocessed if asis else preprocessed.to(self.actor.weight.dtype), allowed

    def _choose(self, out: Array, allowed: Array | None) -> Distribution:
        """The distribution that the actor's numbers stand for."""
        xp = namespace(out)
        if allowed is not None:
            out = xp.where(allowed, out, FORBIDDEN)
        elif self.log_std is not None:
            own: Array = self.log_std
            if isinstance(out, np.ndarray):
                own = self.bound.log_std[0] if self.bound else own.numpy()
            out = DiagonalGaussian.joined(out, own)
        dist: Distribution = self.distribution(out[:, 0] if self.distribution is Bernoulli else out)
        return dist


def _grad(parameter: Tensor) -> Tensor:
    """A parameter's gradient, which `flatten` has given it."""
    assert parameter.grad is not None
    return parameter.grad


def orthogonal(policy: Policy) -> Policy:
    """Orthogonal weights, gain sqrt 2 in the body, 0.01 on the actions (nearly uniform), 1 on the value; biases 0.

    Residual units begin as the identity, or the first values would be many times larger. Sources: Andrychowicz et al.
    2021, section 3.2 (a small last policy layer matters most); Goyal et al. 2017, section 5.1 (residual units).
    """
    for layer in policy.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | ActorCriticLinear):
            gain = 0.01 if layer is policy.actor else 1.0 if layer is policy.critic else math.sqrt(2)
            for weight in layer.weight if isinstance(layer, ActorCriticLinear) else [layer.weight]:
                nn.init.orthogonal_(weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for unit in policy.modules():
        if isinstance(unit, Residual):
            nn.init.zeros_(unit.last.weight)
    return policy


def bf16_units() -> str:
    """What this processor multiplies bfloat16 matrices with; "" for none: bfloat16 gains nothing there."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return next((units for units in ("amx_bf16", "avx512_bf16") if known.get(units)), "")


def matrices(policy: nn.Module) -> list[nn.Parameter]:
    """The weights between layers, without the heads': the first dimension counts a layer's outputs."""
    heads = [id(p) for name, head in policy.named_children() if name in ("actor", "critic") for p in head.parameters()]
    return [p for p in policy.parameters() if p.ndim > 1 and id(p) not in heads]


def flatten(policy: Policy, numbers: Tensor | None = None, gradient: Tensor | None = None) -> nn.Parameter:
    """Make every parameter and gradient a view of one flat tensor: one optimizer step, one norm, one exchange.

    Returns it, the `matrices` first; its `.grad` is the flat gradient: zero it in place, never set it to None.
    `numbers` and `gradient` [P] are where to; None: in memory of their own.
    """
    first = matrices(policy)
    ids = {id(p) for p in first}
    parameters = first + [p for p in policy.parameters() if id(p) not in ids]
    own = torch.cat([p.detach().flatten() for p in parameters])
    flat = nn.Parameter(own if numbers is None else numbers.copy_(own))
    flat.grad = torch.zeros_like(flat) if gradient is None else gradient
    start = 0
    for p in parameters:
        end = start + p.numel()
        p.data, p.grad = flat.data[start:end].view_as(p), flat.grad[start:end].view_as(p)
        start = end
    policy.bind(flat.grad)
    return flat
