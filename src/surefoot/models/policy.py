"""The module that acts and learns: preprocess, body, a policy head, and a critic head where there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from surefoot.envs.actions import action_converter
from surefoot.envs.spaces import own_row
from surefoot.errors import UserError
from surefoot.models.distributions import MASKED_LOGIT, Bernoulli, Distribution, Head
from surefoot.models.layers import ActorCriticLinear, Residual
from surefoot.rng import Purpose, integer

if TYPE_CHECKING:
    from gymnasium import spaces

    from surefoot.config import Config
    from surefoot.models.recurrent import Recurrent, Sequences

MICROBATCH = 512  # samples: what fits the cache is computed twice as fast
KEPT_BYTES = 1 << 25  # malloc maps larger blocks anew each time, which is slow
IN_FILES = (
    ("preprocess.", "prepare."),
    (".image_encoders.", ".eyes."),
)  # names of modules here, and in policy files, whose format stays


class DistinctWindows(Protocol):
    """Images as the distinct windows that convolutions see (`fast.windows`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, which: Any) -> DistinctWindows: ...

    def convolve(self, layers: nn.Sequential, dtype: torch.dtype) -> tuple[Tensor, nn.Sequential]:
        """The images after the first layers [B, C, height, width], and the layers that are left."""
        ...


class Policy(nn.Module):
    """preprocess -> body -> features -> (policy distribution, value).

    `preprocess` has no parameters: it is applied once to a rollout, not once in every epoch. `masks`: how many of its
    last columns are an action mask; `std`: standard deviation of continuous actions at the start.
    """

    def __init__(
        self,
        preprocess: nn.Module,
        body: nn.Sequential,
        actor: nn.Linear,
        critic: nn.Linear | None,
        head: Head,
        masks: int = 0,
        std: float = 0.6,
        critic_body: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        self.preprocess, self.body = preprocess, body
        self.actor, self.critic, self.critic_body = actor, critic, critic_body
        self.hidden = [layer for layer in body if isinstance(layer, ActorCriticLinear)]
        """an MLP's layers between observation and heads; empty for other networks"""
        self.shares = not self.hidden and critic_body is None
        """whether actor and critic have the same features [B, H]; others are side by side, [2, B, H]"""
        self.distribution, self.noise_shape, self.masks = head.distribution, head.noise_shape, masks
        """distribution: from parameters, as a rollout stores them; noise_shape: of the noise for one action"""
        self.log_std = nn.Parameter(torch.full((head.numbers,), math.log(std))) if head.numbers else None
        """of an action's continuous numbers, the same for every observation"""
        self.is_mixed = 0 < head.numbers < head.outputs
        """whether an action is choices and numbers"""
        self.spaces: tuple[spaces.Space[Any], spaces.Space[Any]] | None = None
        """the environment's observations and actions, for `act`"""
        self.memory: Recurrent | None = None
        """what it remembers of an episode; None: nothing"""
        self.remembered: Tensor | None = None
        """its memory between two calls of `act`"""
        self.bf16 = False
        """compute the body in bfloat16; the heads stay as exact as their weights"""
        self.register_state_dict_post_hook(_to_names_in_files)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_names_in_files)  # type: ignore[no-untyped-call]

    def forward(self, obs: Tensor, memory: Tensor | None = None) -> tuple[Distribution, Tensor, Tensor | None]:
        """`obs` [B, ...] to (distribution over B actions, value [B], memory); V = 0 for a policy without a critic.

        `memory` [B, M]: what was returned for the observations before; rows of 0, or None, where an episode begins.
        """
        return self.step(self.preprocess(obs), memory)

    def step(self, preprocessed: Tensor, memory: Tensor | None = None) -> tuple[Distribution, Tensor, Tensor | None]:
        """`forward` for preprocessed observations."""
        features, allowed = self.encode(preprocessed)
        if self.memory is not None:
            start = self.no_memory(len(preprocessed)) if memory is None else memory
            assert start is not None
            features, memory = self.memory.step(features, start)
        return *self.heads(features, allowed), memory

    def evaluate(
        self, preprocessed: Tensor | DistinctWindows, sequences: Sequences | None = None
    ) -> tuple[Distribution, Tensor]:
        """Distribution over B actions and value [B] for preprocessed observations; a memory needs whole sequences."""
        features, allowed = self.encode(preprocessed)
        if self.memory is not None:
            assert sequences is not None
            features = self.memory.over(features, sequences)
        return self.heads(features, allowed)

    def encode(self, preprocessed: Tensor | DistinctWindows) -> tuple[Tensor, Tensor | None]:
        """What the body makes of observations, in the heads' precision, and which actions are allowed."""
        x, allowed = self.split_mask(preprocessed)
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext():
            return self.features(x).to(self.actor.weight.dtype), allowed

    def heads(self, features: Tensor, allowed: Tensor | None) -> tuple[Distribution, Tensor]:
        """Distribution over B actions, value [B]."""
        actor, critic = (features, features) if self.shares else features
        value = actor.new_zeros(actor.shape[0]) if self.critic is None else self.critic(critic)[:, 0]
        return self.distribution_of(self.actor(actor), allowed), value

    @torch.no_grad()
    def act(self, obs: Any, greedy: bool = False, mask: Any = None, rng: np.random.Generator | None = None) -> Any:
        """The environment's own action for one of its own observations, as `reset` and `step` give them.

        `greedy`: the most probable action; otherwise one is sampled, with `rng` where one is given; `mask`:
        info["action_mask"], where the environment has one there. Raises UserError where the policy cannot see `obs`.
        A policy with a memory remembers its earlier calls: `reset` where an episode begins.
        """
        if self.spaces is None:
            raise UserError("this policy knows no environment: surefoot.load_policy gives one that does")
        row = torch.from_numpy(own_row(*self.spaces, obs, mask)[None]).to(self.actor.weight.device)
        dist, _, self.remembered = self(row, self.remembered)
        if greedy:
            action = dist.greedy()[0].tolist()
        else:
            noise = (rng or np.random.default_rng()).random((1, *self.noise_shape), np.float32)
            action = dist.sample(torch.from_numpy(noise).to(row.device))[0].tolist()
        return action_converter(self.spaces[1])(action)

    def reset(self) -> None:
        """Forget the episode that `act` has seen so far."""
        self.remembered = None

    def no_memory(self, count: int) -> Tensor | None:
        """The memory of `count` episodes that begin, zeros [count, M]; None for a policy without one."""
        return None if self.memory is None else self.actor.weight.new_zeros(count, self.memory.width)

    def memory_of(self, episodes: Sequence[Tensor | None]) -> Tensor | None:
        """Memories [M] of several episodes as one; None: that episode begins."""
        memory = self.no_memory(len(episodes))
        for row, known in zip(() if memory is None else memory, episodes, strict=False):
            if known is not None:
                row.copy_(known)
        return memory

    @torch.no_grad()
    def evaluate_all(
        self, preprocessed: Tensor | DistinctWindows, sequences: Sequences | None = None
    ) -> tuple[Tensor, Tensor]:
        """Parameters of the distributions and values for any number of preprocessed observations."""
        size = self.microbatch(preprocessed)
        parts: Any = ((slice(i, i + size), None) for i in range(0, len(preprocessed), size))
        outputs = (self.evaluate(preprocessed[i], some) for i, some in (sequences.split(size) if sequences else parts))
        params, values = zip(*((dist.params, value) for dist, value in outputs), strict=True)
        return torch.cat(params), torch.cat(values)

    def features(self, obs: Tensor | DistinctWindows | dict[Any, Tensor]) -> Tensor:
        """The body's output for preprocessed observations without their mask, and that of the critic's own body."""
        outputs = list[Tensor]()
        for body in self.bodies():
            x, layers = obs, body
            if not isinstance(x, Tensor | dict):
                x, layers = x.convolve(layers, torch.bfloat16 if self.bf16 else self.actor.weight.dtype)
            outputs.append(layers(x))
        return torch.stack(outputs) if len(outputs) > 1 else outputs[0]

    def bodies(self) -> list[nn.Sequential]:
        """The body, and the critic's own where it has one."""
        return [self.body] if self.critic_body is None else [self.body, self.critic_body]

    def split_mask(self, preprocessed: Tensor | DistinctWindows) -> tuple[Tensor | DistinctWindows, Tensor | None]:
        """What the body gets, and which actions a mask allows, bool [B, A]."""
        if not isinstance(preprocessed, Tensor):
            return preprocessed, None
        x, allowed = preprocessed, None
        if self.masks:
            x, allowed = x[:, : -self.masks], x[:, -self.masks :] > 0
        return x if x.dtype == torch.uint8 else x.to(self.actor.weight.dtype), allowed

    def distribution_of(self, output: Tensor, allowed: Tensor | None) -> Distribution:
        """The distribution from the actor's output [B, K] and the allowed actions."""
        if allowed is not None:
            choices = torch.where(allowed, output[:, : self.masks], MASKED_LOGIT)
            output = torch.cat((choices, output[:, self.masks :]), -1) if self.log_std is not None else choices
        if self.log_std is not None:
            output = torch.cat((output, self.log_std.expand(output.shape[0], -1)), -1)
        dist: Distribution = self.distribution(output[:, 0] if self.distribution is Bernoulli else output)
        return dist

    def microbatch(self, preprocessed: Any) -> int:
        """How many samples are computed at once: their activations fit the cache, and their inputs KEPT_BYTES."""
        if not hasattr(preprocessed, "shape"):
            return MICROBATCH
        row: int = math.prod(preprocessed.shape[1:]) * (2 if self.bf16 else 4)
        return max(1, min(MICROBATCH, KEPT_BYTES // row))


def _to_names_in_files(_: nn.Module, state_dict: dict[str, Tensor], *__: Any) -> None:
    for here, in_file in IN_FILES:
        for name in [name for name in state_dict if here in name]:
            state_dict[name.replace(here, in_file)] = state_dict.pop(name)


def _from_names_in_files(_: nn.Module, state_dict: dict[str, Tensor], *__: Any) -> None:
    for here, in_file in IN_FILES:
        for name in [name for name in state_dict if in_file in name]:
            state_dict[name.replace(in_file, here)] = state_dict.pop(name)


def build_policy(cfg: Config, observation: spaces.Space[Any], action: spaces.Space[Any]) -> Policy:
    """The Config's policy with its first weights, on its device."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(integer(cfg.seed, Purpose.WEIGHTS))
        policy = cfg.build(observation, action)
        policy.spaces = observation, action
    try:
        large = not policy.hidden  # an MLP's layers are too small to gain
        policy.bf16 = cfg.bf16 and large and torch.device(cfg.device).type == "cpu" and bf16_units() != ""
        return policy.to(cfg.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{cfg.device}' cannot be used: {str(error).splitlines()[0]}") from error


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
    `numbers` and `gradient` [P]: the memory to use; None: new memory.
    """
    first = matrices(policy)
    ids = {id(p) for p in first}
    parameters = first + [p for p in policy.parameters() if id(p) not in ids]
    start_values = torch.cat([p.detach().flatten() for p in parameters])
    flat = nn.Parameter(start_values if numbers is None else numbers.copy_(start_values))
    flat.grad = torch.zeros_like(flat) if gradient is None else gradient
    start = 0
    for p in parameters:
        end = start + p.numel()
        p.data, p.grad = flat.data[start:end].view_as(p), flat.grad[start:end].view_as(p)
        start = end
    return flat
