"""What a policy remembers of its episode: nothing, or the state of a recurrent unit. A Config holds one of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from surefoot.errors import require_range
from surefoot.models.networks import MAX_UNITS

if TYPE_CHECKING:
    from surefoot.models.policy import Policy


@dataclass(frozen=True)
class NoMemory:
    """The policy decides by the present observation alone."""

    def build(self, policy: Policy) -> Policy:
        """The policy as it is."""
        return policy


@dataclass(frozen=True)
class Unit:
    """What GRU and LSTM have in common."""

    units: int = 128
    """units of the memory"""
    length: int = 0
    """steps that gradients go back, a sequence; 0: all that one environment has in a minibatch"""

    def __post_init__(self) -> None:
        require_range(self, "units", low=1, high=MAX_UNITS)
        require_range(self, "length")

    def build(self, policy: Policy) -> Policy:
        """The policy with this memory."""
        from surefoot.models.recurrent import Recurrent

        policy.memory = Recurrent(policy, isinstance(self, LSTM), self.units)
        return policy


@dataclass(frozen=True)
class GRU(Unit):
    """A gated recurrent unit between the network's body and its heads. Source: Cho et al. 2014."""


@dataclass(frozen=True)
class LSTM(Unit):
    """A long short-term memory between the network's body and its heads. Source: Hochreiter & Schmidhuber 1997."""


Memory = NoMemory | GRU | LSTM
