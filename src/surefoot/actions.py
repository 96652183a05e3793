"""Policy distributions over actions: sample from given noise, log probability, entropy, divergence.

Built straight from a network's output; `params` is what a rollout stores of the old policy, and a distribution made
from it again is the old policy's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Bernoulli:
    """Two actions from one number: P(a = 1) = sigmoid(logit). `logit` [...], actions int64 [...]."""

    def __init__(self, logit: Tensor) -> None:
        self.params = logit

    def probabilities(self) -> Tensor:
        """[..., 2]: probability of action 0, of action 1."""
        return torch.stack((self.params.neg().sigmoid(), self.params.sigmoid()), -1)

    def sample(self, noise: Tensor) -> Tensor:
        """Actions from uniform numbers in [0, 1) of the batch's shape: 1 where noise < P(1)."""
        return (noise < self.params.sigmoid()).long()

    def greedy(self) -> Tensor:
        """The likeliest action."""
        return (self.params > 0).long()

    def log_prob(self, action: Tensor) -> Tensor:
        """log pi(a|s) per sample."""
        return F.logsigmoid(torch.where(action == 1, self.params, -self.params))

    def cross_entropy(self, old: Distribution) -> Tensor:
        """H(pi', pi) = -sum_a pi'(a) log pi(a) per sample, in nats."""
        p = self.params.sigmoid()
        return -(p * F.logsigmoid(old.params) + (1 - p) * F.logsigmoid(-old.params))

    def entropy(self) -> Tensor:
        """H(pi') per sample, in nats."""
        return self.cross_entropy(self)

    def kl(self, old: Distribution) -> Tensor:
        """Exact KL(old || new) per sample, in nats."""
        return old.cross_entropy(self) - old.entropy()


class Categorical:
    """One of A actions by softmax. `logits` [..., A], actions int64 [...]."""

    def __init__(self, logits: Tensor) -> None:
        self.params = logits.log_softmax(-1)  # normalising twice changes nothing

    def probabilities(self) -> Tensor:
        """[..., A]: probability of each action."""
        return self.params.exp()

    def sample(self, noise: Tensor) -> Tensor:
        """Actions from uniform numbers in [0, 1) of the batch's shape, by the inverse of the cumulative sum."""
        total = self.params.exp().cumsum(-1)
        # times the last sum: rounding may leave it below 1, and the noise must not reach past it
        return (total[..., :-1] <= noise[..., None] * total[..., -1:]).sum(-1)

    def greedy(self) -> Tensor:
        """The likeliest action."""
        return self.params.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """log pi(a|s) per sample."""
        return self.params.gather(-1, action[..., None])[..., 0]

    def cross_entropy(self, old: Distribution) -> Tensor:
        """H(pi', pi) = -sum_a pi'(a) log pi(a) per sample, in nats."""
        return -(self.params.exp() * old.params).sum(-1)

    def entropy(self) -> Tensor:
        """H(pi') per sample, in nats."""
        return self.cross_entropy(self)

    def kl(self, old: Distribution) -> Tensor:
        """Exact KL(old || new) per sample, in nats."""
        return (old.params.exp() * (old.params - self.params)).sum(-1)


Distribution = Bernoulli | Categorical
