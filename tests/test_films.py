"""Films: whatever render() gives, at the environment's own speed, and never at a result's cost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image, ImageSequence

import surefoot
from surefoot.config import Config
from surefoot.envs import screen
from surefoot.envs.closing import close_env
from surefoot.envs.gym import describe
from surefoot.errors import Fault
from surefoot.models.networks import MLP
from surefoot.runs.gif import Gif
from surefoot.runs.pictures import HEIGHT, Screen, to_picture
from surefoot.runs.policy_file import policy_bytes
from surefoot.runs.video import speed

RED = np.zeros((6, 8, 3), np.uint8) + np.array([200, 0, 0], np.uint8)
GREY = np.full((6, 8), 100, np.uint8)
HALF = np.concatenate((RED, np.full((6, 8, 1), 51, np.uint8)), 2)  # a fifth of it


@pytest.mark.parametrize(
    ("frame", "color"),
    [
        (RED, [200, 0, 0]),
        (RED.tolist(), [200, 0, 0]),
        ([GREY, None, RED], [200, 0, 0]),
        ((RED[:3], RED), [200, 0, 0]),
        ({"front": RED, "top": GREY}, [200, 0, 0]),
        (RED[None], [200, 0, 0]),
        (torch.from_numpy(RED).float().requires_grad_(), [200, 0, 0]),
        (Image.fromarray(RED), [200, 0, 0]),
        (RED.transpose(2, 0, 1), [200, 0, 0]),
        (RED.astype(np.int64) * 3 - 1, [255, 0, 0]),
        (RED.astype(np.uint16) * 257, [200, 0, 0]),
        (RED.astype(np.float32), [200, 0, 0]),
        (RED / 250, [204, 0, 0]),
        (np.where(RED > 0, np.nan, 0.5), [0, 128, 128]),
        (RED > 0, [255, 0, 0]),
        (GREY, [100, 100, 100]),
        (GREY[:, :, None], [100, 100, 100]),
        (GREY[None], [100, 100, 100]),
        (GREY == 100, [255, 255, 255]),
        (HALF, [244, 204, 204]),  # on white: 200 / 5 + 255 * 4 / 5
        (np.concatenate((RED, 0 * GREY[:, :, None]), 2), [200, 0, 0]),  # a transparency that nobody has set
        (np.stack((GREY, GREY * 0 + 255), 2), [100, 100, 100]),
    ],
    ids=lambda x: None if isinstance(x, list) and len(x) == 3 else type(x).__name__,
)
def test_whatever_is_a_picture_becomes_one(frame: Any, color: list[int]) -> None:
    picture = to_picture(frame)
    assert picture.dtype == np.uint8
    assert picture.shape == (6, 8, 3)
    assert (picture == color).all()


@pytest.mark.parametrize(
    "frame", [None, [], "+---+\n|T: |\n+---+", 3, np.zeros((0, 8, 3)), np.zeros((9, 9, 9)), [None]]
)
def test_what_is_no_picture_is_said(frame: Any) -> None:
    with pytest.raises(Fault, match=r"its render\(\) gives .*, and a picture \[height, width, 3\] is needed"):
        to_picture(frame)


def test_all_pictures_of_a_film_have_the_size_of_the_first() -> None:
    show = Screen().show
    assert show(RED).shape == (HEIGHT, 560, 3)
    wide, tall = show(np.zeros((6, 80, 3), np.uint8)), show(np.zeros((600, 8, 3), np.uint8))
    assert wide.shape == tall.shape == (HEIGHT, 560, 3)
    dark = (wide == 0).all(2)
    assert dark.any(0).all()  # all of its width is seen
    assert dark[dark.any(1)].shape == (42, 560)  # in its own shape
    assert (tall == 0).all(2).sum(1).min() == 4


@pytest.mark.parametrize("shape", [(2, 1000), (1000, 1), (1, 1), (3000, 4000)])
def test_pictures_of_any_shape_fit_a_film(shape: tuple[int, int]) -> None:
    height, width, _ = Screen().show(np.zeros((*shape, 3), np.uint8)).shape
    assert height == HEIGHT
    assert 64 <= width <= 1260


def test_a_dark_picture_of_floats_stays_dark() -> None:
    show = Screen().show
    assert show(np.full((6, 8, 3), 200.0)).max() == 200
    assert show(np.full((6, 8, 3), 1.0)).max() == 1


class Painter(gymnasium.Env):
    """Shows a red picture; fails where and when it is told to. Five steps an episode."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 5}
    observation_space, action_space = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(50)
    fails: ClassVar[tuple[str, int, type[BaseException]]] = ("", 0, OSError)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.t = render_mode, 0

    def may_fail(self, where: str) -> None:
        what, when, error = self.fails
        if (what, when) == (where, self.t):
            raise error("the viewer\nhas gone")

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.t = 0
        self.may_fail("reset")
        return np.zeros(2, np.float32), {}

    def step(self, action: int):
        self.t += 1
        self.may_fail("step")
        return np.zeros(2, np.float32), 1.0, self.t == 5, False, {}

    def render(self):
        self.may_fail("render")
        return RED

    def close(self) -> None:
        self.may_fail("close")


@pytest.mark.parametrize("metadata", [None, {}, {"render_modes": []}], ids=repr)
def test_a_mode_that_is_taken_need_not_be_listed(metadata: Any) -> None:
    game = describe(type("Unlisted", (Painter,), {"metadata": metadata})).make(render=True)
    assert game.render() is RED


@pytest.fixture
def painter(tmp_path: Path) -> Path:
    env = describe(lambda **how: Painter(**how))
    game = env.make()
    policy = MLP((4,)).build(game.observation_space, game.action_space)
    path = tmp_path / "policy"
    path.write_bytes(policy_bytes(policy, Config(env=env, network=MLP((4,)), task="mine"), 0))
    return path


@pytest.mark.parametrize("error", [OSError, RuntimeError, ValueError, SystemExit])
@pytest.mark.parametrize("where", ["reset", "step", "render"])
def test_what_fails_before_anything_was_filmed_is_a_sentence(
    where: str, error: type[BaseException], painter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Painter, "fails", (where, int(where == "step"), error))
    with pytest.raises(Fault, match="the viewer"):
        surefoot.video(painter, painter.with_name("film.gif"), trust=True)
    assert not painter.with_name("film.gif").exists()


@pytest.mark.parametrize(("where", "pictures"), [("step", 3), ("render", 3), ("close", 5)])
def test_what_fails_later_leaves_the_film_until_then(
    where: str, pictures: int, painter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Painter, "fails", (where, 5 if where == "close" else 3, AttributeError))
    film = surefoot.video(painter, painter.with_name("film.gif"), trust=True)
    with Image.open(film) as gif:
        assert gif.n_frames == pictures
    said = capsys.readouterr().err
    assert "AttributeError: the viewer has gone" in said
    assert ("the film ends after" in said) == (where != "close")


def test_a_film_lasts_as_long_as_what_it_shows(painter: Path) -> None:
    film = surefoot.video(painter, painter.with_name("film.mp4"), trust=True)
    with imageio.get_reader(film) as reader:
        assert reader.get_meta_data()["fps"] == pytest.approx(5)
    with Image.open(surefoot.video(painter, painter.with_name("film.gif"), every=2, trust=True)) as gif:
        assert gif.n_frames == 3
        assert gif.info["duration"] == 400


def test_a_gif_holds_what_has_changed_and_shows_every_picture(tmp_path: Path) -> None:
    pictures = [np.full((90, 120, 3), 240, np.uint8) for _ in range(200)]
    for t, picture in enumerate(pictures):
        picture[30:40, t // 2 : t // 2 + 10] = (200, 30, 30)
    palette = Image.fromarray(pictures[0]).quantize(63)
    with Gif(tmp_path / "a.gif", 12.5) as film:
        for picture in pictures:
            film.append_data(picture)
        assert len(film.data.getvalue()) < pictures[0].size
    with Image.open(tmp_path / "a.gif") as gif:
        for shown, picture in zip(ImageSequence.Iterator(gif), pictures, strict=True):
            assert shown.info["duration"] == 80
            assert np.array_equal(
                shown.convert("RGB"), Image.fromarray(picture).quantize(palette=palette).convert("RGB")
            )


@pytest.mark.parametrize(
    ("said", "mp4", "gif"),
    [
        (50, (1, 50), (4, 12.5)),
        (4, (1, 4), (1, 4)),
        (np.float64(0.5), (1, 0.5), (1, 0.5)),
        (500, (9, 500 / 9), (40, 12.5)),
        *((unknown, (1, 15), (4, 15)) for unknown in (None, 0, -1, float("nan"), float("inf"), "fast")),
    ],
)
def test_the_speed_is_the_environments_own(said: Any, mp4: tuple[int, float], gif: tuple[int, float]) -> None:
    class Game:
        env = type("Env", (), {"metadata": {"render_fps": said}})

    assert speed(Game, ".mp4", 0) == pytest.approx(mp4)  # type: ignore[arg-type]
    assert speed(Game, ".gif", 0) == pytest.approx(gif)  # type: ignore[arg-type]
    assert speed(Game, ".gif", 3)[0] == 3  # type: ignore[arg-type]


def test_an_environment_that_cannot_be_closed_costs_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Viewer(Painter):
        def close(self) -> None:
            raise AttributeError("'NoneType' object has no attribute 'terminate'")

    tiny = {"num_envs": 2, "num_steps": (8,), "minibatch_size": 8, "num_epochs": 1, "total_steps": 32}
    run = surefoot.train(Viewer, run_dir=tmp_path / "run", quiet=True, eval_episodes=2, network=MLP((4,)), **tiny)
    assert run.evaluation is not None
    assert {"report.md", "game.gif", "evaluation.json"} <= {path.name for path in run.path.iterdir()}
    assert surefoot.evaluate(run.path, episodes=2, env=Viewer).mean == 5
    assert capsys.readouterr().err.count("closing Viewer fails") == 1
    close_env(Viewer())  # and nothing is raised


# Without a screen


@pytest.fixture
def no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "SDL_VIDEODRIVER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    screen.offscreen_library.cache_clear()
    yield
    screen.offscreen_library.cache_clear()


@pytest.mark.usefixtures("no_screen")
@pytest.mark.parametrize(
    ("libraries", "begins", "found"),
    [
        (["libEGL.so.1", "libOSMesa.so.8"], True, "egl"),
        (["libEGL.so.1", "libOSMesa.so.8"], False, "osmesa"),
        (["libOSMesa.so.6"], True, "osmesa"),
        (["libEGL.so.1"], False, None),
        ([], True, None),
    ],
)
def test_mujoco_draws_with_what_works_here(
    libraries: list[str], begins: bool, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> str:
        if name not in libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return name

    monkeypatch.setattr(screen.ctypes, "CDLL", load)
    monkeypatch.setattr(screen, "egl_works", lambda _: begins)
    monkeypatch.setattr(screen, "find_spec", lambda _: True)
    screen.draw_offscreen(mujoco=False)
    assert "MUJOCO_GL" not in os.environ
    assert os.environ["SDL_VIDEODRIVER"] == "dummy"
    screen.draw_offscreen(mujoco=True)
    assert os.environ.get("MUJOCO_GL") == found
    os.environ["MUJOCO_GL"] = "glfw"
    screen.draw_offscreen(mujoco=True)
    assert os.environ["MUJOCO_GL"] == "glfw"  # the user's word


@pytest.mark.usefixtures("no_screen")
def test_with_a_screen_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    screen.draw_offscreen(mujoco=True)
    assert "MUJOCO_GL" not in os.environ
    assert "SDL_VIDEODRIVER" not in os.environ


FILM = """
import sys, gymnasium, surefoot
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.models.networks import MLP
from surefoot.runs.policy_file import policy_bytes
env = Gymnasium(sys.argv[1])
game = env.make()
policy = MLP((4,)).build(game.observation_space, game.action_space)
open("policy", "wb").write(policy_bytes(policy, Config(env=env, network=MLP((4,)), task="mine"), 0))
try:
    surefoot.video("policy", "film.gif", max_steps=2)
    print("filmed")
except surefoot.errors.UserError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "library", "says"),
    [
        ("CartPole-v1", None, "filmed"),
        ("InvertedPendulum-v5", None, "filmed|MUJOCO_GL is not set"),
        ("InvertedPendulum-v5", "glfw", "MUJOCO_GL is glfw: without a screen"),
    ],
)
def test_a_film_or_a_sentence_without_a_screen(task: str, library: str | None, says: str, tmp_path: Path) -> None:
    if task != "CartPole-v1":
        pytest.importorskip("mujoco")
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "XDG_RUNTIME_DIR")
    env = {k: v for k, v in os.environ.items() if k not in hidden} | ({"MUJOCO_GL": library} if library else {})
    done = subprocess.run([sys.executable, "-c", FILM, task], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert re.search(says, done.stdout), done
    assert "XDG" not in done.stderr
