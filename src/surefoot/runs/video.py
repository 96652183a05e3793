"""Film an episode with the policy's action probabilities and value beside every frame, as mp4 or gif."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from surefoot.envs.interface import Environment, EnvSpec, make
from surefoot.envs.screen import drawing_hint
from surefoot.envs.spaces import blank
from surefoot.errors import Fault, UserError, needs_extra, note
from surefoot.models.distributions import DiagonalGaussian, Distribution, Mixed, MultiCategorical
from surefoot.models.policy import Policy
from surefoot.output import doing
from surefoot.parallel.guard import callers_settings, guarded
from surefoot.paths import absolute, shown
from surefoot.rng import Purpose, integer, stream
from surefoot.runs.files import read_named, replace_file
from surefoot.runs.gif import Gif
from surefoot.runs.pictures import HEIGHT, PAPER, Picture, Screen
from surefoot.runs.policy_file import load_policy

PANEL = 200
FPS = 15.0  # steps in a second of film where the environment does not say how many it has
MOST_ROWS = 12  # actions that are shown
INK, PALE, BLUE, ORANGE = (40, 40, 40), (225, 225, 225), (31, 111, 139), (200, 90, 40)


@guarded()
@callers_settings()
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

    `out` ends in .mp4 or .gif (default: game.mp4 beside the policy); `every`: film each so many steps (0: so many that
    motion is smooth); `max_steps`: stop early; `env`, `trust`: as for `load_policy`. Where the environment has
    metadata["render_fps"], a film takes as long as what it shows. Returns `out`, whole or absent.
    """
    source = absolute(source)
    out = absolute(out or (source if source.is_dir() else source.parent) / "game.mp4")
    if min(seed, every, max_steps) < 0 or seed >= 2**63:
        raise UserError(f"seed {seed}, every {every}, max_steps {max_steps}: allowed are whole numbers from 0")
    if out.suffix not in (".mp4", ".gif"):
        raise UserError(f"'{shown(out)}' must end in .mp4 or .gif")
    with naming_what_fails("constructor"):
        policy, trained_in, _ = load_policy(source, env=env, trust=trust)
        game = make(env or trained_in, render=True)
    every, fps = speed(game, out.suffix, every)
    values: list[float] = []
    bound = f" of at most {max_steps:,}" if max_steps else " (--max-steps ends it)"
    try:
        with TemporaryDirectory() as private:  # others cannot write into it
            film_file = Path(private, f"film{out.suffix}")
            with _writer(film_file, fps) as film, doing(lambda: f"filming: step {len(values):,}{bound}"):
                play(policy, game, film, values, seed, greedy, every, max_steps)
            replace_file(out, read_named(film_file))
    except (OSError, RuntimeError) as error:  # the latter where there is no ffmpeg
        raise UserError(f"'{shown(out)}' cannot be written: {error}") from error
    finally:
        game.close()
    return out


def play(
    policy: Policy,
    game: Environment,
    film: Any,
    values: list[float],
    seed: int,
    greedy: bool,
    every: int,
    max_steps: int,
) -> None:
    """Film an episode; where the environment fails in the middle, the film ends there, with a note.

    `values`: gets the value of every step's observation.
    """
    obs, screen = blank(game.observation_space), Screen()
    with naming_what_fails("reset"):
        game.reset(integer(seed, Purpose.EVALUATION, 2), obs)
    noise = stream(seed, Purpose.EVALUATION, 3)
    score, step, over, memory = 0.0, 0, False, None
    while not over and not (max_steps and step >= max_steps):
        with torch.no_grad():
            dist, value, memory = policy(torch.from_numpy(obs[None]), memory)
        values.append(float(value))
        u = torch.from_numpy(noise.random((1, *policy.noise_shape), np.float32))
        action = (dist.greedy() if greedy else dist.sample(u))[0].tolist()
        try:
            if step % every == 0:
                with naming_what_fails("render"):
                    picture = screen.show(game.render())
                odds, taken = bars(dist, action)
                film.append_data(_frame(picture, game.action_names, odds, taken, values, score, step))
            with naming_what_fails("step"):
                reward, terminated, truncated = game.step(action, obs)
        except Fault as fault:
            if not step:
                raise
            note(f"{fault}; the film ends after {step} steps")
            return
        score, step, over = score + reward, step + 1, (terminated or truncated) and not game.life_lost
        memory = None if terminated or truncated else memory


@contextmanager
def naming_what_fails(what: str) -> Iterator[None]:
    """Turn what an environment raises in its `what` into a Fault."""
    try:
        yield
    except Fault as error:
        raise Fault(f"{error}{drawing_hint()}") from error
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        failure = f"its {what} fails with {type(error).__name__}: {' '.join(str(error).split())}"
        raise Fault(f"the environment cannot be filmed: {failure}{drawing_hint()}") from error


def speed(game: Environment, suffix: str, every: int) -> tuple[int, float]:
    """How many steps there are from one picture of the film to the next, and how many pictures it has in a second."""
    said = (getattr(getattr(game, "env", None), "metadata", None) or {}).get("render_fps")
    known = isinstance(said, int | float | np.number) and 0 < said < math.inf
    steps = float(np.clip(float(said), 0.1, 1000)) if known else FPS  # type: ignore[arg-type]
    smooth = math.ceil(steps / 60) if suffix == ".mp4" else max(1, round(steps / 12.5)) if known else 4
    every = every or smooth
    return every, steps / every if known else FPS


def bars(dist: Distribution, action: Any) -> tuple[list[float], set[int]]:
    """Every action's probability and the taken ones; for continuous actions their position between the bounds."""
    if isinstance(dist, Mixed):
        count = len(dist.choices.choices)
        odds, taken = bars(dist.choices, [int(a) for a in action[:count]])
        return odds + bars(dist.numbers, action[count:])[0], taken
    if isinstance(dist, DiagonalGaussian):
        return [min(1.0, max(0.0, (a + 1) / 2)) for a in action], set()
    odds = dist.probabilities()[0].tolist()
    if not isinstance(dist, MultiCategorical):
        return odds, {action}
    sizes = [choice.params.shape[-1] for choice in dist.choices]
    return odds, {sum(sizes[:d]) + a for d, a in enumerate(action)}


def _writer(path: Path, fps: float) -> Any:
    if path.suffix == ".gif":
        return Gif(path, fps)
    with needs_extra("mp4"):
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401 (imageio says it in its own words, later)
    return imageio.get_writer(path, fps=fps, macro_block_size=2, codec="libx264", quality=7)


def _frame(
    screen: Picture,
    names: tuple[str, ...],
    odds: list[float],
    taken: set[int],
    values: list[float],
    score: float,
    step: int,
) -> Picture:
    """A picture with bars for the actions (the most probable ones of many) and the value's last 200 decisions."""
    panel = Image.new("RGB", (PANEL, HEIGHT), (PAPER,) * 3)
    draw = ImageDraw.Draw(panel)

    def write(text: str, x: int, y: int, color: tuple[int, int, int] = INK, size: int = 12) -> None:
        draw.text((x, y), text, color, ImageFont.load_default(size), anchor="ls")

    write(f"score {score:+g}", 10, 24, size=18)
    write(f"step {step}", 10, 44)
    order = sorted(range(len(names)), key=lambda i: (i not in taken, -odds[i]))
    shown = range(len(names)) if len(names) <= 2 * MOST_ROWS else sorted(order[:MOST_ROWS])
    room = min(40, 200 // len(shown))
    for row, i in enumerate(shown):
        y, name, p = 62 + row * room, names[i], odds[i]
        color = ORANGE if i in taken else BLUE
        write(name, 10, y + 12, color if i in taken else INK)
        write(f"{p:.2f}", PANEL - 36, y + 12)
        draw.rectangle((10, y + 17, PANEL - 10, y + 25), PALE)
        draw.rectangle((10, y + 17, 10 + int(p * (PANEL - 20)), y + 25), color)
    top, bottom = 300, HEIGHT - 12
    write(f"value {values[-1]:+.2f}", 10, top - 10)
    draw.rectangle((10, top, PANEL - 10, bottom), outline=PALE)
    last = np.array(values[-200:])
    limit = max(1.0, float(np.abs(values).max()))
    draw.line((10, (top + bottom) // 2, PANEL - 10, (top + bottom) // 2), PALE)
    x = 10 + np.arange(len(last)) * (PANEL - 20) / 200
    heights = (top + bottom) / 2 - last / limit * (bottom - top) / 2
    draw.line(np.stack((x, heights), 1).ravel().tolist(), BLUE)
    return np.concatenate((screen, np.asarray(panel)), 1)
