"""A policy at play, step by step: the frame, what the network sees, its decision, and which inputs decided it."""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from surefoot.envs.interface import EnvSpec, make
from surefoot.envs.spaces import blank, parts
from surefoot.errors import Fault, UserError
from surefoot.models.layers import Palette
from surefoot.models.policy import Policy
from surefoot.rng import Purpose, integer, stream
from surefoot.runs.pictures import HEIGHT, Picture, Screen, to_picture
from surefoot.runs.policy_file import load_policy
from surefoot.runs.video import bars, naming_what_fails

Array = NDArray[Any]
CHECK_EVERY = 1.0  # seconds between looks for a newer policy
LARGE = 160 * 210 * 3  # bytes of a picture, from which on PNG takes long
MOST_NUMBERS = 32  # of a vector observation and of actions, that are shown


def policy_file(run: Path) -> Path:
    """What is played: the policy of the newest checkpoint, or the file itself."""
    newest = run / "policy.safetensors"
    return newest if newest.exists() else run


def saliency(policy: Policy, obs: Tensor, action: Tensor, memory: Tensor | None = None) -> Array | None:
    """|d log pi(action|s) / d input| of an observation [...], in its shape; None where inputs are no numbers.

    Palette indices are no numbers: for them it is the derivative by the colours. Source: Simonyan et al. 2013.
    """
    x = policy.preprocess(obs[None]) if isinstance(policy.preprocess, Palette) else obs[None].float()
    x = x.detach().requires_grad_()
    with torch.enable_grad(), suppress(RuntimeError, ValueError):  # a network of indices has no such derivative
        dist, *_ = policy.step(x if isinstance(policy.preprocess, Palette) else policy.preprocess(x), memory)
        (gradient,) = torch.autograd.grad(dist.log_prob(action[None]).sum(), x)
        return np.asarray(gradient[0].abs().numpy())
    return None


def channels(image: Array) -> Array:
    """An image observation with its channels first, [C, H, W]."""
    if image.ndim == 2:
        return image[None]
    return image if image.shape[0] <= image.shape[-1] else image.transpose(2, 0, 1)


def as_url(picture: Array) -> str:
    """A picture [H, W] grey, [H, W, 3] RGB or [H, W, 4] RGBA as a data: address; a large RGB one as JPEG."""
    large = picture.ndim == 3 and picture.shape[2] == 3 and picture.size > LARGE
    kind = "jpeg" if large else "png"
    Image.fromarray(picture).save(data := io.BytesIO(), kind, quality=85, compress_level=1)
    return f"data:image/{kind};base64," + base64.b64encode(data.getvalue()).decode()


class Frames:
    """The pictures that render() gives, small ones as they are, large ones at a film's size."""

    def __init__(self) -> None:
        self.screen = Screen()

    def show(self, frame: Any) -> Picture:
        """A frame as a picture; raises Fault where it is none."""
        if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape[0] <= HEIGHT:
            return to_picture(frame)
        return self.screen.show(frame)


@dataclass
class Player:
    """A policy and its environment. All calls must come from one thread: some environments can only draw there."""

    run: Path
    env: EnvSpec | None = None
    trust: bool = False
    seed: int = 0
    greedy: bool = False
    saliency: bool = False
    says: str = ""
    """what the reader should know"""
    episode: int = 0
    stamp: tuple[int, int, int] = (0, 0, 0)
    looked: float = -CHECK_EVERY
    policy: Policy | None = None
    game: Any = None
    frames: Frames = field(default_factory=Frames)

    def refresh(self) -> bool:
        """Load the policy where there is a newer one; returns whether there is one to play. Raises UserError."""
        if self.policy is not None and monotonic() - self.looked < CHECK_EVERY:
            return True
        self.looked = monotonic()
        file = policy_file(self.run)
        try:
            status = file.stat()
        except OSError:
            self.says = f"'{self.run}' is gone; its last policy plays on" if self.policy else f"'{self.run}' is gone"
            return self.policy is not None
        if file.is_dir():
            self.says = "The run has saved no policy yet: the first one comes with its first checkpoint."
            return self.policy is not None
        stamp = status.st_mtime_ns, status.st_size, status.st_ino
        if stamp != self.stamp:
            policy, trained_in, facts = load_policy(file, env=self.env, trust=self.trust)
            if self.game is None:
                with naming_what_fails("constructor"):
                    self.game = make(self.env or trained_in, render=True)
                self.parts = parts(self.game.observation_space)
                self.obs = blank(self.game.observation_space)
                self.policy = policy
                self.begin(self.seed)
            self.policy, self.stamp = policy, stamp
            self.says = f"policy after {facts['steps']:,} steps"
        return True

    def begin(self, seed: int) -> None:
        """Begin an episode of this seed, which decides all of it."""
        self.seed, self.score, self.step, self.over = seed, 0.0, 0, False
        self.memory: Tensor | None = None
        if self.game is not None:
            with naming_what_fails("reset"):
                self.game.reset(integer(seed, Purpose.EVALUATION, 2), self.obs)
            self.noise = stream(seed, Purpose.EVALUATION, 3)

    def play(self) -> dict[str, Any]:
        """Decide, show, step: one message for the browser. After an episode's end the next seed's episode begins."""
        if not self.refresh() or self.policy is None:
            return {"says": self.says, "waiting": True}
        if self.over:
            self.begin(self.seed + 1)
        obs, memory = torch.from_numpy(self.obs), self.memory
        with torch.no_grad():
            dist, value, self.memory = self.policy(obs[None], memory)
            noise = torch.from_numpy(self.noise.random((1, *self.policy.noise_shape), np.float32))
            action = (dist.greedy() if self.greedy else dist.sample(noise))[0]
        with naming_what_fails("render"):
            picture = self.frames.show(self.game.render())
        odds, taken = bars(dist, action.tolist())
        shown = range(len(odds)) if len(odds) <= MOST_NUMBERS else sorted(np.argsort(odds)[-MOST_NUMBERS:].tolist())
        names = self.game.action_names
        message = {
            "frame": as_url(picture),
            "actions": [[names[i], round(odds[i], 3), i in taken] for i in shown],
            "value": round(float(value), 4) if self.policy.critic is not None else None,
            "step": self.step,
            "seed": self.seed,
            **self.sight(obs, action, memory),
        }
        with naming_what_fails("step"):
            reward, terminated, truncated = self.game.step(action.tolist(), self.obs)
        self.score, self.step = self.score + reward, self.step + 1
        self.over = (terminated or truncated) and not self.game.life_lost
        self.memory = None if terminated or truncated else self.memory
        return message | {"score": self.score, "over": self.over, "says": self.says}

    def sight(self, obs: Tensor, action: Tensor, memory: Tensor | None = None) -> dict[str, Any]:
        """What the network sees: an image with what decided it laid over, or numbers beside their weight."""
        assert self.policy is not None
        if len(self.parts) > 1:
            return {"sees": "several parts, which are not shown"}
        gradient = saliency(self.policy, obs, action, memory) if self.saliency else None
        if self.parts[0].is_image():
            colours = isinstance(self.policy.preprocess, Palette)
            plain = self.policy.preprocess(obs[None])[0].numpy() if colours else obs.numpy()
            seen = channels(plain)
            if colours:
                seen = (255 * (seen - seen.min()) / max(float(np.ptp(seen)), 1e-9)).astype(np.uint8)
            strip = np.concatenate(list(seen), 1) if len(seen) != 3 else seen.transpose(1, 2, 0)
            message: dict[str, Any] = {"image": as_url(np.ascontiguousarray(strip))}
            if gradient is not None:
                message["overlay"] = as_url(heat(channels(gradient), len(seen) == 3))
            return message
        numbers = obs.numpy().ravel()[:MOST_NUMBERS]
        message = {"numbers": [round(float(x), 4) for x in numbers]}
        if gradient is not None:
            weight = gradient.ravel()[:MOST_NUMBERS]
            message["weights"] = [round(float(x), 4) for x in weight / max(float(weight.max()), 1e-12)]
        return message

    def close(self) -> None:
        """Close the environment."""
        if self.game is not None:
            with suppress(Exception):
                self.game.close()


def heat(gradient: Array, color: bool) -> Picture:
    """Where the derivative [C, H, W] is large, as orange of that strength, RGBA; the channels side by side."""
    rows = gradient.max(0) if color else np.concatenate(list(gradient), 1)
    soft = avg_pool2d(torch.from_numpy(rows).float()[None], 5, 1, 2)[0].numpy()
    strength = soft / max(float(np.percentile(soft, 99.5)), 1e-12)
    picture = np.zeros((*rows.shape, 4), np.uint8)
    picture[..., :3] = (255, 120, 30)
    picture[..., 3] = (230 * strength.clip(0, 1)).astype(np.uint8)
    return picture


def sentence(error: BaseException) -> str:
    """What a failure is told as."""
    return str(error) if isinstance(error, UserError | Fault) else f"{type(error).__name__}: {error}"
