"""The old lesson's `pong_utils`, of the package's own functions: what its notebooks import, by the same names.

T steps, n games, an image [2, 80, 80] for each: the frame after an action and the one after the NOOP that follows it.
`policy` is any module from [B, 2, 80, 80] to the probability of RIGHT, [B] or [B, 1].
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from surefoot.algorithm.advantages import future_return, normalize_over_games
from surefoot.algorithm.objectives import ClippedSurrogate, Objective, OldPolicyCrossEntropy
from surefoot.algorithm.objectives import Surrogate as PlainSurrogate
from surefoot.envs.atari import BACKGROUND, CROP
from surefoot.errors import UserError, needs_extra
from surefoot.models.distributions import Bernoulli
from surefoot.models.networks import LessonCNN

Array = NDArray[Any]
PolicyNet = Callable[[Tensor], Tensor]

RIGHT, LEFT, FIRE, NOOP = 4, 5, 1, 0  # RIGHTFIRE and LEFTFIRE among the six actions of Pong
device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
PART = 128  # images: an update of 2,560 takes less than half the time of one batch
SMALLEST = 1e-7  # probabilities are kept so far from 0 and 1


class Policy(nn.Module):
    """The lesson's network: [B, 2, 80, 80] to P(RIGHT), [B, 1]. `presets.LESSON` trains the same one."""

    def __init__(self) -> None:
        from gymnasium import spaces

        super().__init__()
        built = LessonCNN().build(spaces.Box(0, 255, (2, 80, 80), np.uint8), spaces.Discrete(2))
        self.body, self.actor = built.body, built.actor

    def forward(self, images: Tensor) -> Tensor:
        """The probability of RIGHT, [B, 1]."""
        probability: Tensor = self.actor(self.body(images)).sigmoid()
        return probability


def preprocess_single(image: Array, bkg_color: Any = BACKGROUND) -> Array:
    """A frame [210, 160, 3] as [80, 80]: the playing field, every second pixel, mean over RGB less the background."""
    return _field(np.asarray(image), bkg_color)


def _field(images: Array, background: Any) -> Array:
    if images.shape[-3:] != (210, 160, 3):
        raise UserError(f"frames have the shape [..., 210, 160, 3], not {list(images.shape)}")
    red, green, blue = np.moveaxis(images[..., *CROP, :], -1, 0).astype(np.int32)  # four times as fast as a mean
    field: Array = (red + green + blue - np.broadcast_to(background, 3).sum()) / 765
    return field


def preprocess_batch(images: Any, bkg_color: Any = BACKGROUND) -> Tensor:
    """Two frames of n games, [2, n, 210, 160, 3] (or of one game, [2, 210, 160, 3]), as float32 [n, 2, 80, 80]."""
    frames = np.asarray(images)
    if frames.ndim < 5:
        frames = frames[:, None]
    return torch.from_numpy(_field(frames, bkg_color).swapaxes(0, 1).copy()).float().to(device)


def _probabilities(policy: PolicyNet, images: Tensor) -> Tensor:
    """The policy's probabilities of RIGHT, [B]."""
    out = policy(images)
    if not isinstance(out, Tensor) or out.numel() != len(images):
        shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(
            f"the policy gave {shape} for {len(images)} images: it should give P(RIGHT), [{len(images)}, 1]"
        )
    lowest, highest = float(out.detach().min()), float(out.detach().max())
    if not 0 <= lowest <= highest <= 1:
        cause = "lower the learning rate" if lowest != lowest else "is the sigmoid at its end missing?"
        raise UserError(f"the policy's probabilities lie between {lowest:.3g} and {highest:.3g}: {cause}")
    return out.reshape(-1)


@torch.no_grad()
def collect_trajectories(
    envs: Any, policy: PolicyNet, tmax: int = 200, nrand: int = 5
) -> tuple[list[Array], list[Tensor], list[Array], list[Array]]:
    """Play from a reset for `tmax` steps, or until the first game is over, after `nrand` random steps.

    Returns lists of T: probabilities of the actions taken [n], images [n, 2, 80, 80], actions [n] (RIGHT or LEFT),
    rewards [n]. Random numbers are NumPy's global ones, as in the lesson.
    """
    n = len(envs.ps)
    if tmax < 1:
        raise UserError(f"tmax is {tmax}; allowed is at least 1")
    envs.reset()
    first = second = envs.step([FIRE] * n)[0]
    for _ in range(nrand):
        first = envs.step(np.random.choice([RIGHT, LEFT], n))[0]
        second = envs.step([NOOP] * n)[0]
    probs: list[Array] = []
    states: list[Tensor] = []
    actions: list[Array] = []
    rewards: list[Array] = []
    for _ in range(tmax):
        images = preprocess_batch([first, second])
        right = _probabilities(policy, images).cpu().numpy()
        action = np.where(np.random.rand(n) < right, RIGHT, LEFT)
        first, reward, over, _ = envs.step(action)
        second, more, later, _ = envs.step([NOOP] * n)
        probs.append(np.where(action == RIGHT, right, 1.0 - right))
        states.append(images)
        actions.append(action)
        rewards.append(reward + more)
        if np.any(over | later):
            break
    return probs, states, actions, rewards


def states_to_prob(policy: PolicyNet, states: Sequence[Tensor] | Tensor) -> Tensor:
    """The probability of RIGHT in T x n images, [T, n], with its gradient; the policy sees PART images at a time."""
    images = states if isinstance(states, Tensor) else torch.stack(list(states))
    parts = [_probabilities(policy, part) for part in torch.split(images.flatten(0, 1), PART)]
    return torch.cat(parts).view(images.shape[:2])


def _objective(
    formula: Objective,
    policy: PolicyNet,
    old_probs: Any,
    states: Sequence[Tensor],
    actions: Any,
    rewards: Any,
    discount: float,
    beta: float,
) -> Tensor:
    """Mean of the objective with normalised future rewards, and of the lesson's entropy times beta."""
    reward = torch.from_numpy(np.asarray(rewards, np.float32))
    right = torch.from_numpy(np.asarray(actions) == RIGHT).to(device)
    old = torch.from_numpy(np.asarray(old_probs, np.float32)).to(device)
    if not (reward.shape == right.shape == old.shape and len(states) == len(reward)):
        shapes = ", ".join(str(list(x.shape)) for x in (old, right, reward))
        raise UserError(
            f"old_probs, actions and rewards have the shapes {shapes}: all are [T, n], of {len(states)} states"
        )
    advantage = normalize_over_games(future_return(reward, torch.zeros(reward.shape, dtype=torch.bool), discount))
    probability = states_to_prob(policy, states)
    new = torch.where(right, probability, 1.0 - probability).clamp(SMALLEST, 1 - SMALLEST)
    old = old.clamp(SMALLEST, 1 - SMALLEST)
    gain = formula(new.log(), old.log(), advantage.to(device))
    return (gain + OldPolicyCrossEntropy(beta)(Bernoulli(new.logit()), Bernoulli(old.logit()))).mean()


def surrogate(
    policy: PolicyNet,
    old_probs: Any,
    states: Sequence[Tensor],
    actions: Any,
    rewards: Any,
    discount: float = 0.995,
    beta: float = 0.01,
) -> Tensor:
    """The surrogate objective of trajectories, to be maximised: mean of r A + beta H; a tensor without dimensions.

    A: future rewards, normalised over the games; H: the lesson's entropy (`objectives.OldPolicyCrossEntropy`).
    """
    return _objective(PlainSurrogate(), policy, old_probs, states, actions, rewards, discount, beta)


def clipped_surrogate(
    policy: PolicyNet,
    old_probs: Any,
    states: Sequence[Tensor],
    actions: Any,
    rewards: Any,
    discount: float = 0.995,
    epsilon: float = 0.1,
    beta: float = 0.01,
) -> Tensor:
    """PPO's objective of trajectories, to be maximised: `surrogate` with min(r A, clip(r, 1 - eps, 1 + eps) A)."""
    return _objective(ClippedSurrogate(epsilon), policy, old_probs, states, actions, rewards, discount, beta)


@torch.no_grad()
def play(
    env: Any,
    policy: PolicyNet,
    time: int = 2000,
    preprocess: Callable[[Array], Array] | None = None,
    nrand: int = 5,
) -> None:
    """Play a game and show its film in the notebook.

    `env`: of old Gym, `surefoot.lesson.old_gym.make(id)`, or of Gymnasium with RGB frames as observations;
    `preprocess`: for each frame that is shown, such as `preprocess_single`.
    """
    env.reset()
    first = second = _step(env, FIRE)[0]
    for _ in range(nrand):
        first, second = _step(env, random.choice((RIGHT, LEFT)))[0], _step(env, NOOP)[0]
    frames: list[Array] = []
    for _ in range(time):
        right = float(_probabilities(policy, preprocess_batch([first, second]))[0])
        first, over = _step(env, RIGHT if random.random() < right else LEFT)
        second, later = _step(env, NOOP)
        frames.append(first if preprocess is None else preprocess(first))
        if over or later:
            break
    animate_frames(frames)


def _step(env: Any, action: int) -> tuple[Array, bool]:
    """Frame, and whether the episode is over, of old Gym's four results or Gymnasium's five."""
    frame, _, *over, _ = env.step(action)
    return frame, any(over)


def animate_frames(frames: Sequence[Array]) -> None:
    """Show frames, RGB or gray, as a film in the notebook. Raises UserError outside of one."""
    try:
        from IPython import get_ipython
        from IPython.display import Video, display
    except ImportError as error:
        raise UserError("films are shown in a notebook: pip install 'surefoot[notebook]'") from error
    if get_ipython() is None:
        raise UserError("films are shown in a notebook; `surefoot video RUN` writes one into a file")
    display(Video(data=_film(frames), embed=True, mimetype="video/mp4", width=320))  # type: ignore[no-untyped-call]


def _film(frames: Sequence[Array]) -> bytes:
    """The frames as an mp4 file."""
    with needs_extra("notebook"):
        import imageio.v2 as imageio

    if not len(frames):
        raise UserError("there are no frames to show")
    pictures = np.stack(frames)
    if pictures.dtype != np.uint8:  # preprocessed: stretched to black and white
        low, high = float(pictures.min()), float(pictures.max())
        pictures = ((pictures - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    if pictures.ndim == 3:
        pictures = pictures[..., None].repeat(3, -1)
    with TemporaryDirectory() as folder:
        path = Path(folder, "film.mp4")
        try:
            writer: Any = imageio.get_writer(path, fps=30, macro_block_size=2, codec="libx264", quality=7)
            with writer as film:
                for picture in pictures.repeat(2, 1).repeat(2, 2):
                    film.append_data(picture)
        except (OSError, RuntimeError) as error:
            raise UserError(f"the film cannot be written: {error}") from error
        return path.read_bytes()
