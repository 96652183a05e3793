"""Policies that Stable-Baselines3's PPO has saved, as surefoot's; none of the pickles in its zip is read."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surefoot.envs.actions import box_scale
from surefoot.envs.spaces import blank
from surefoot.errors import DAMAGE, UserError
from surefoot.models.layers import FlattenChannelsLast
from surefoot.models.networks import MLP, NatureCNN
from surefoot.models.policy import Policy
from surefoot.presets import find

if TYPE_CHECKING:
    import gymnasium

LARGEST = 1 << 30  # bytes of weights


def load_policy(file: Path | str, env: str | gymnasium.Env[Any, Any] | Callable[..., Any]) -> Policy:
    """The policy in a zip that PPO.save() wrote, with the spaces of `env`.

    MlpPolicy (Tanh, policy and critic of one size) and CnnPolicy (NatureCNN). `VecNormalize` keeps its statistics in a
    pickle of its own: feed such a policy normalised observations. Raises UserError for what is none of these.
    """
    tensors, activation = read(Path(file))
    made = find(env).env.make()
    spaces = made.observation_space, made.action_space
    made.close()
    if activation not in ("", "Tanh"):
        raise UserError(f"'{file}' has {activation} in its layers: only Tanh can be taken")
    images = "features_extractor.cnn.0.weight" in tensors
    network = NatureCNN() if images else MLP(hidden_sizes(tensors, file))
    policy = network.build(*spaces)
    policy.spaces = spaces
    try:
        with torch.no_grad():
            (fill_images if images else fill_layers)(policy, tensors)
            fill_heads(policy, tensors, spaces[1])
    except (KeyError, RuntimeError, IndexError) as error:
        raise UserError(f"the policy in '{file}' does not fit the environment's spaces {spaces}: {error}") from error
    return policy.eval()


def read(file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of policy.pth, and the name of the activation where the settings tell it. Raises UserError."""
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.getinfo("policy.pth").file_size > LARGEST:
                raise UserError(f"'{file}' has more than 1 GB of weights")
            data = io.BytesIO(archive.read("policy.pth"))
            settings = json.loads(archive.read("data"))
        tensors = torch.load(data, map_location="cpu", weights_only=True)
        kind = re.search(r"activation\.(\w+)", str(settings.get("policy_kwargs", {}).get("activation_fn", "")))
    except (*DAMAGE, zipfile.BadZipFile, RuntimeError, EOFError, NotImplementedError) as error:
        raise UserError(f"'{file}' is no zip that Stable-Baselines3 has saved ({type(error).__name__})") from error
    except pickle.UnpicklingError as error:  # of torch.load, which makes nothing but tensors of it
        raise UserError(f"'{file}' has more in it than tensors, which is not read") from error
    if not isinstance(tensors, dict) or "action_net.weight" not in tensors:
        raise UserError(f"'{file}' is no policy of PPO or A2C")
    return tensors, kind[1] if kind else ""


def layers(tensors: dict[str, Tensor], net: str) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of an extractor's layers, first to last."""
    names = sorted((n for n in tensors if n.startswith(f"mlp_extractor.{net}.") and n.endswith("weight")),
                   key=lambda n: int(n.split(".")[2]))  # fmt: skip
    return [(tensors[n], tensors[n.replace("weight", "bias")]) for n in names]


def hidden_sizes(tensors: dict[str, Tensor], file: Path | str) -> tuple[int, ...]:
    """Units of the hidden layers, which policy and critic must share."""
    actor, critic = ([len(bias) for _, bias in layers(tensors, net)] for net in ("policy_net", "value_net"))
    if actor != critic or not actor:
        raise UserError(f"'{file}' has layers {actor} for its policy and {critic} for its critic: they must be alike")
    return tuple(actor)


def fill_layers(policy: Policy, tensors: dict[str, Tensor]) -> None:
    """The layers of an MLP: the policy's and the critic's side by side."""
    both = zip(layers(tensors, "policy_net"), layers(tensors, "value_net"), strict=True)
    for layer, (actor, critic) in zip(policy.hidden, both, strict=True):
        layer.weight.copy_(torch.stack((actor[0], critic[0])))
        layer.bias.copy_(torch.cat((actor[1], critic[1])))


def fill_images(policy: Policy, tensors: dict[str, Tensor]) -> None:
    """Convolutions and the layer after them: the first sees patches of 4x4 pixels, the last one channels last."""
    convolutions = [layer for layer in policy.body.modules() if isinstance(layer, torch.nn.Conv2d)]
    for layer, number in zip(convolutions, (0, 2, 4), strict=True):
        weight = tensors[f"features_extractor.cnn.{number}.weight"]
        if layer is convolutions[0]:
            filters, channels, height, width = weight.shape
            cut = weight.view(filters, channels, height // 4, 4, width // 4, 4)
            weight = cut.permute(0, 1, 3, 5, 2, 4).reshape(filters, channels * 16, height // 4, width // 4)
        layer.weight.copy_(weight)
        layer.bias.copy_(tensors[f"features_extractor.cnn.{number}.bias"])  # type: ignore[union-attr]
    last = next(layer for layer in policy.body if isinstance(layer, torch.nn.Linear))
    weight = tensors["features_extractor.linear.0.weight"]
    assert policy.spaces is not None
    seen = policy.preprocess(torch.from_numpy(blank(policy.spaces[0])[None]))
    flatten = next(i for i, layer in enumerate(policy.body) if isinstance(layer, FlattenChannelsLast))
    _, *shape = policy.body[:flatten](seen).shape
    last.weight.copy_(weight.view(-1, *shape).permute(0, 2, 3, 1).flatten(1))
    last.bias.copy_(tensors["features_extractor.linear.0.bias"])


def fill_heads(policy: Policy, tensors: dict[str, Tensor], action: Any) -> None:
    """Action and value heads; continuous actions in units of half their range, from its middle."""
    weight, bias = tensors["action_net.weight"], tensors["action_net.bias"]
    if policy.log_std is not None:
        middle, half = (torch.from_numpy(x).to(weight.dtype) for x in box_scale(action)[:2])
        weight, bias = weight / half[:, None], (bias - middle) / half
        policy.log_std.copy_(tensors["log_std"] - half.log())
    policy.actor.weight.copy_(weight)
    policy.actor.bias.copy_(bias)
    assert policy.critic is not None
    policy.critic.weight.copy_(tensors["value_net.weight"])
    policy.critic.bias.copy_(tensors["value_net.bias"])
