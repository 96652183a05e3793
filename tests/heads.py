"""A policy for each kind of head, far from where it begins, and samples of one that is close to it."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces

from surefoot.algorithm.update import Batch
from surefoot.models.networks import MLP
from surefoot.models.policy import Policy

VECTOR = spaces.Box(-1, 1, (4,), np.float32)
MASKED = spaces.Dict(x=VECTOR, action_mask=spaces.MultiBinary(5))
HEADS = {
    "categorical": (VECTOR, spaces.Discrete(3)),
    "masked": (MASKED, spaces.Discrete(5)),
    "multi-categorical": (VECTOR, spaces.MultiDiscrete([2, 3])),
    "gaussian": (VECTOR, spaces.Box(-2, 2, (3,))),
}
COUNT = 23


def policy_for(head: str) -> Policy:
    torch.default_generator.manual_seed(0)
    policy = MLP((8, 6), running=True).build(*HEADS[head]).double()
    square = torch.tensor([9.0, 3.0, 20.0, 6.0])  # observations have statistics: std 1.2, 0.7, 1.8, 1
    policy.preprocess.moments.assign(torch.tensor(6.0), torch.tensor([0.3, -0.2, 0.1, 0.5]), square)
    for parameter in policy.parameters():  # far from where everything starts
        parameter.data += 0.3 * torch.randn_like(parameter)
    return policy


def batch_for(policy: Policy, head: str) -> Batch:
    """Samples of a policy that is close to this one, so that some ratios are clipped and some are not."""
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    obs = normal(COUNT, 4)
    if head == "masked":
        allowed = torch.rand(COUNT, 5, generator=draw) < 0.6
        allowed[:, 2] = True
        obs = torch.cat((obs, allowed.double()), 1)
    with torch.no_grad():
        params = policy.evaluate(obs)[0].params
    old = policy.distribution(policy.distribution(params + 0.2 * normal(*params.shape)).params, stored=True)
    action = old.sample(torch.rand(COUNT, *policy.noise_shape, generator=draw))
    logp = old.log_prob(action)
    return Batch(obs, action, logp, old.params, normal(COUNT), normal(COUNT), normal(COUNT))
