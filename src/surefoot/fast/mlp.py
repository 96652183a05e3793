"""An MLP in NumPy: acting, evaluation, and the gradient of `update.ppo_loss`, on the policy's own parameters.

An MLP of 64 units is so small that most of its time is calls, and autograd's bookkeeping takes longer than the
arithmetic. The chain rule is therefore written out here, and nowhere else; a test holds it to autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surefoot.fast.distributions import NumpyHead
from surefoot.models.actor import Actor, Decisions
from surefoot.models.distributions import standard_normal
from surefoot.models.layers import VectorEncoder
from surefoot.models.policy import MICROBATCH, Policy

if TYPE_CHECKING:
    from surefoot.algorithm.update import Batch
    from surefoot.config import Config

Array = NDArray[Any]
GradObjective = Callable[[Any, Array, Array, Array], Array]  # (objective, logp, logp_old, advantage) to [B]


class FastMLP:
    """The twin of an MLP policy on a processor; where its parameters have gradients, `backward` writes them."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.head, self.dtype = policy, NumpyHead(policy), policy.actor.weight.detach().numpy().dtype
        layers: Any = [*policy.hidden, policy.actor, policy.critic]
        *hidden, self.actor, self.critic = ((_array(x.weight), _array(x.bias)) for x in layers)
        self.hidden = [(weight, bias.reshape(2, -1)) for weight, bias in hidden]
        self.log_std = None if policy.log_std is None else _array(policy.log_std)
        if policy.actor.weight.grad is not None:
            *hidden, self.grad_actor, self.grad_critic = ((_array(x.weight.grad), _array(x.bias.grad)) for x in layers)
            self.grad_hidden = [(weight, bias.reshape(2, -1)) for weight, bias in hidden]
            self.grad_log_std: Any = None if policy.log_std is None else _array(policy.log_std.grad)

    @staticmethod
    def of(policy: Policy) -> FastMLP | None:
        """The twin of a policy, where it is an MLP on a processor that chooses alternatives or numbers, not both."""
        plain = policy.hidden and policy.memory is None and not policy.is_mixed
        return FastMLP(policy) if plain and policy.actor.weight.is_cpu else None

    def split_mask(self, preprocessed: Array) -> tuple[Array, Array | None]:
        """`Policy.split_mask`."""
        x, allowed = preprocessed, None
        if masks := self.policy.masks:
            x, allowed = x[:, :-masks], x[:, -masks:] > 0
        return x.astype(self.dtype, copy=False), allowed

    def forward(self, x: Array) -> tuple[Array, Array, list[Array]]:
        """Actor's output [B, K], value [B], and the input of every layer; both networks side by side, [2, B, units]."""
        inputs = [x]
        for weight, bias in self.hidden:
            x = np.matmul(x, np.ascontiguousarray(weight.mT))  # a sixth faster, the copy included
            x += bias[:, None]
            inputs.append(np.tanh(x, x))
        (actor, actor_bias), (critic, critic_bias) = self.actor, self.critic
        return x[0] @ actor.T + actor_bias, x[1] @ critic[0] + critic_bias, inputs

    def evaluate_all(self, preprocessed: Tensor) -> tuple[Tensor, Tensor]:
        """`Policy.evaluate_all`: parameters of the distributions and values, computed as updates compute them."""
        params, values = [], []
        for part in torch.split(preprocessed, MICROBATCH):
            x, allowed = self.split_mask(part.numpy())
            output, value, _ = self.forward(x)
            params.append(torch.from_numpy(self.head.params(output, allowed)))
            values.append(torch.from_numpy(value))
        return torch.cat(params), torch.cat(values)

    def backward(
        self, grad_objective: GradObjective, true_entropy: bool, cfg: Config, batch: Batch, scale: float, add: bool
    ) -> tuple[Any, Any, Array, Array]:
        """Write (or add) the gradient of scale * ppo_loss into the parameters' gradients.

        `grad_objective`: the derivative of the Config's objective by log pi(a|s); `true_entropy`: the Config's bonus is
        the entropy, otherwise the cross entropy with the old policy. Returns the new and the old distribution, log
        pi(a|s) and the value loss per sample.
        """
        x, allowed = self.split_mask(batch.obs)
        output, value, inputs = self.forward(x)
        dist, old = (self.head.distribution(x) for x in (self.head.params(output, allowed), batch.params_old))
        logp, each = dist.log_prob(batch.action), scale / len(value)
        grad_logp = grad_objective(cfg.objective, logp, batch.logp_old, batch.advantage) * -each
        grad = dist.grad_log_prob(grad_logp)
        if cfg.entropy.coef:
            grad = grad - each * (cfg.entropy.coef * dist.grad_cross_entropy(dist if true_entropy else old))
        if cfg.kl_penalty.coef:
            grad = grad + each * (cfg.kl_penalty.coef * dist.grad_kl(old))
        value_loss, grad_value = value_loss_and_grad(value, batch.value_old, batch.returns, cfg.value_clip)
        self.backpropagate(inputs, grad, grad_value * (cfg.value_coef * each), add)
        return dist, old, logp, value_loss

    def backpropagate(self, inputs: list[Array], grad: Array, grad_value: Array, add: bool) -> None:
        """The parameters' gradients from those by the distribution's parameters [B, K] and by the value [B]."""

        def write(gradient: Array, a: Array, b: Array) -> None:
            if add:
                gradient += a @ b
            else:
                np.matmul(a, b, gradient)

        grad_output = grad
        if self.log_std is not None:
            grad_output, grad_log_std = grad[:, : len(self.log_std)], grad[:, len(self.log_std) :].sum(0)
            self.grad_log_std[...] = grad_log_std + self.grad_log_std if add else grad_log_std
        last = inputs[-1]
        ones, grad_input = np.ones(last.shape[1], last.dtype), np.empty_like(last)
        for (weight, bias), by, x in zip(
            (self.grad_actor, self.grad_critic), (grad_output, grad_value[:, None]), last, strict=True
        ):
            write(weight, by.T, x)
            write(bias, ones, by)
        np.matmul(grad_output, self.actor[0], grad_input[0])
        np.dot(grad_value[:, None], self.critic[0], grad_input[1])
        for i in reversed(range(len(self.hidden))):
            grad_input *= 1 - inputs[i + 1] * inputs[i + 1]  # of tanh
            write(self.grad_hidden[i][0], grad_input.mT, inputs[i])
            write(self.grad_hidden[i][1], ones, grad_input)
            if i:
                grad_input = grad_input @ self.hidden[i][0]


def _array(x: Tensor | None) -> Array:
    assert x is not None
    return x.detach().numpy()


def grad_reinforce(_: Any, __: Array, ___: Array, advantage: Array) -> Array:
    """d/d logp of logp A: A, [B]."""
    return advantage


def grad_surrogate(_: Any, logp: Array, logp_old: Array, advantage: Array) -> Array:
    """d/d logp of r A: r A, [B], as dr / d logp = r."""
    gain: Array = np.exp(logp - logp_old) * advantage
    return gain


def grad_clipped(objective: Any, logp: Array, logp_old: Array, advantage: Array) -> Array:
    """d/d logp of min(r A, clip(r) A): r A, or 0 above (1 + eps) A for A > 0, (1 - eps) A for A < 0; [B]."""
    gain: Array = np.exp(logp - logp_old) * advantage
    return np.where(gain > advantage + objective.clip_range * abs(advantage), 0.0, gain)


def grad_dual_clip(objective: Any, logp: Array, logp_old: Array, advantage: Array) -> Array:
    """d/d logp of DualClip: as `grad_clipped`, and 0 where r A < c A for A < 0; [B]."""
    grad = grad_clipped(objective, logp, logp_old, advantage)
    return np.where(grad < objective.dual_clip * np.minimum(advantage, 0), 0.0, grad)


def grad_spo(objective: Any, logp: Array, logp_old: Array, advantage: Array) -> Array:
    """d/d logp of r A - abs(A) (r - 1)^2 / (2 eps): r (A - abs(A) (r - 1) / eps), [B]."""
    ratio: Array = np.exp(logp - logp_old)
    grad: Array = ratio * (advantage - abs(advantage) * (ratio - 1) / objective.ratio_range)
    return grad


def value_loss_and_grad(value: Array, value_old: Array, returns: Array, clip_range: float) -> tuple[Array, Array]:
    """The value loss per sample, clipped where clip_range is finite, and its derivative by the value, [B]."""
    error = value - returns
    loss, grad = error * error, 2 * error
    if clip_range == math.inf:
        return loss, grad
    move = value - value_old
    clipped = value_old + move.clip(-clip_range, clip_range) - returns
    clipped *= clipped
    return np.maximum(loss, clipped), np.where((abs(move) > clip_range) & (clipped > loss), 0.0, grad)


class MLPActor(Actor):
    """`Actor` for an MLP: `act` computes the actions alone; everything else is computed for the whole rollout at once.

    Between two steps of environments each call finds the caches cold: there are as few calls as can be.
    """

    def __init__(self, twin: FastMLP, noise: Tensor) -> None:
        super().__init__(twin.policy, noise)
        self.twin, policy = twin, twin.policy
        self.layers = [(np.ascontiguousarray(weight[0].T), bias[0]) for weight, bias in twin.hidden]
        self.top, self.bias = np.ascontiguousarray(twin.actor[0].T), twin.actor[1]
        draws = noise if twin.log_std is None else standard_normal(noise).to(policy.actor.weight.dtype)
        self.draws, self.sigma = draws.numpy(), None if twin.log_std is None else np.exp(twin.log_std)
        encoder = policy.preprocess
        assert isinstance(encoder, VectorEncoder)
        self.encoder, self.norm = encoder, encoder.moments
        if self.norm is not None:
            self.factor, self.shift, self.limit = self.norm.factor.numpy(), self.norm.shift.numpy(), self.norm.LIMIT

    def preprocess(self, obs: Array) -> Array:
        """The policy's `preprocess`."""
        if not self.encoder.is_float_vector:
            return self.encoder(torch.from_numpy(obs)).numpy()  # type: ignore[no-any-return]
        x = obs if obs.ndim == 2 else obs.reshape(len(obs), -1)
        return x if self.norm is None else (x * self.factor + self.shift).clip(-self.limit, self.limit)

    def act(self, t: int, obs: Array) -> Any:
        """The actions of step t."""
        x, allowed = self.preprocess(obs), None
        if self.policy.masks:
            x, allowed = self.twin.split_mask(x)
        for weight, bias in self.layers:
            x = x @ weight
            x += bias
            np.tanh(x, x)
        x = x @ self.top
        x += self.bias
        if self.sigma is None:
            action = self.twin.head.sample(x, allowed, self.draws[t])
        else:
            action = x + self.sigma * self.draws[t]
        self.steps[t] = action
        return action.tolist() if action.ndim == 1 else action

    def decisions(self, obs: Array, bootstrap: Array, at: Sequence[tuple[int, int]] = ()) -> Decisions:
        """Distributions and values of the whole rollout, computed as the first update will compute them."""
        num_steps, n = obs.shape[:2]
        encode = self.policy.preprocess
        seen = encode(torch.from_numpy(obs.reshape(-1, *obs.shape[2:])))
        further = encode(torch.from_numpy(bootstrap))
        params, value = self.twin.evaluate_all(torch.cat((seen, further)))
        count, action = num_steps * n, torch.from_numpy(np.stack(self.steps[:num_steps]))
        rows = (x[:count].unflatten(0, (num_steps, n)) for x in (seen, params, value))
        seen, params, value_rows = rows
        return Decisions(seen, action, params, value_rows, further, value[count:])
