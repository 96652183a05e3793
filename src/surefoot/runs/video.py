"""Film an episode with the policy's action probabilities and value beside every frame, as mp4 or gif."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from surefoot.envs.interface import EnvSpec
from surefoot.envs.spaces import blank
from surefoot.errors import UserError
from surefoot.models.distributions import DiagonalGaussian, Distribution, MultiCategorical
from surefoot.rng import Purpose, integer, stream
from surefoot.runs.files import read_named, replace_file
from surefoot.runs.policy_file import load_policy

Picture = NDArray[np.uint8]
PANEL = 200
FPS = 15
INK, PALE, BLUE, ORANGE = (40, 40, 40), (225, 225, 225), (31, 111, 139), (200, 90, 40)


def video(
    source: Path | str,
    out: Path | str | None = None,
    seed: int = 0,
    greedy: bool = False,
    every: int = 0,
    max_steps: int = 0,
    env: EnvSpec | None = None,
    trust: bool = False,
) -> Path:
    """Play one full game with the policy of a run (or policy file) and film it.

    `out` ends in .mp4 or .gif (default: game.mp4 beside the policy); `every`: film each so many decisions (0: 1 for
    mp4, 4 for gif); `max_steps`: stop early; `env`, `trust`: as for `load_policy`. Returns `out`, whole or absent.
    """
    source = Path(source)
    out = Path(out or (source if source.is_dir() else source.parent) / "game.mp4")
    if min(seed, every, max_steps) < 0 or seed >= 2**63:
        raise UserError(f"seed {seed}, every {every}, max_steps {max_steps}: allowed are whole numbers from 0")
    if out.suffix not in (".mp4", ".gif"):
        raise UserError(f"'{out}' must end in .mp4 or .gif")
    policy, own, _ = load_policy(source, env=env, trust=trust)
    every = every or (4 if out.suffix == ".gif" else 1)
    game = (env or own).make(render=True)
    obs = blank(game.observation_space)
    game.reset(integer(seed, Purpose.EVALUATION, 2), obs)
    noise = stream(seed, Purpose.EVALUATION, 3)
    score, step, over = 0.0, 0, False
    values: list[float] = []
    try:
        with TemporaryDirectory() as private:  # others cannot write into it
            film_file = Path(private, f"film{out.suffix}")
            with _writer(film_file) as film:
                while not over and not (max_steps and step >= max_steps):
                    with torch.no_grad():
                        dist, value, _ = policy(torch.from_numpy(obs[None]))
                    values.append(float(value))
                    u = torch.from_numpy(noise.random((1, *policy.noise_shape), np.float32))
                    action = (dist.greedy() if greedy else dist.sample(u))[0].tolist()
                    if step % every == 0:
                        odds, taken = _bars(dist, action)
                        film.append_data(_frame(game.render(), game.action_names, odds, taken, values, score, step))
                    reward, terminated, truncated = game.step(action, obs)
                    score, step, over = score + reward, step + 1, (terminated or truncated) and not game.life_lost
            replace_file(out, read_named(film_file))
    except (OSError, RuntimeError) as error:  # the latter where there is no ffmpeg
        raise UserError(f"'{out}' cannot be written: {error}") from error
    finally:
        game.close()
    return out


class Gif:
    """A gif with one palette for all frames, which is many times faster than one for each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames: list[Image.Image] = []

    def __enter__(self) -> Gif:
        return self

    def append_data(self, frame: Picture) -> None:
        """Add a frame."""
        picture = Image.fromarray(frame)
        base = self.frames[0] if self.frames else picture.quantize(64)
        self.frames.append(picture.quantize(palette=base, dither=Image.Dither.NONE))

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            first, *rest = self.frames
            first.save(self.path, "GIF", save_all=True, append_images=rest, duration=1000 // FPS, loop=0)


def _bars(dist: Distribution, action: Any) -> tuple[list[float], set[int]]:
    """Every action's probability and the taken ones; for continuous actions their position between the bounds."""
    if isinstance(dist, DiagonalGaussian):
        return [min(1.0, max(0.0, (a + 1) / 2)) for a in action], set()
    odds = dist.probabilities()[0].tolist()
    if not isinstance(dist, MultiCategorical):
        return odds, {action}
    sizes = [choice.params.shape[-1] for choice in dist.choices]
    return odds, {sum(sizes[:d]) + a for d, a in enumerate(action)}


def _writer(path: Path) -> Any:
    import imageio.v2 as imageio

    if path.suffix == ".gif":
        return Gif(path)
    return imageio.get_writer(path, fps=FPS, macro_block_size=2, codec="libx264", quality=7)


def _frame(
    screen: Picture,
    names: tuple[str, ...],
    odds: list[float],
    taken: set[int],
    values: list[float],
    score: float,
    step: int,
) -> Picture:
    """The screen at a height of 420 pixels, with bars for the actions and the value's last 200 decisions."""
    import cv2

    height = 420
    width = int(screen.shape[1] * height / screen.shape[0]) // 2 * 2
    panel = np.full((height, PANEL, 3), 250, np.uint8)

    def write(text: str, x: int, y: int, color: tuple[int, int, int] = INK, size: float = 0.42) -> None:
        cv2.putText(panel, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)

    write(f"score {score:+g}", 10, 24, size=0.6)
    write(f"step {step}", 10, 44)
    room = min(40, 200 // len(names))
    for i, (name, p) in enumerate(zip(names, odds, strict=True)):
        y = 62 + i * room
        color = ORANGE if i in taken else BLUE
        write(name, 10, y + 12, color if i in taken else INK)
        write(f"{p:.2f}", PANEL - 44, y + 12)
        cv2.rectangle(panel, (10, y + 17), (PANEL - 10, y + 25), PALE, -1)
        cv2.rectangle(panel, (10, y + 17), (10 + int(p * (PANEL - 20)), y + 25), color, -1)
    top, bottom = 300, height - 12
    write(f"value {values[-1]:+.2f}", 10, top - 10)
    cv2.rectangle(panel, (10, top), (PANEL - 10, bottom), PALE, 1)
    last = np.array(values[-200:])
    limit = max(1.0, float(np.abs(values).max()))
    cv2.line(panel, (10, (top + bottom) // 2), (PANEL - 10, (top + bottom) // 2), PALE, 1)
    x = 10 + np.arange(len(last)) * (PANEL - 20) / 200
    heights = (top + bottom) / 2 - last / limit * (bottom - top) / 2
    cv2.polylines(panel, [np.stack((x, heights), 1).astype(np.int32)], False, BLUE, 1, cv2.LINE_AA)
    return np.concatenate((cv2.resize(screen, (width, height), interpolation=cv2.INTER_NEAREST), panel), 1)
