"""`surefoot duel`: two-player Pong, its emulator behind the single player's calls, and a point played by keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("multi_agent_ale_py", reason="pip install 'surefoot[duel]'")

import ale_py

from browser import chromium, needs_chromium, served
from surefoot.envs.atari import Atari, Pong
from surefoot.envs.interface import make
from surefoot.errors import UserError
from surefoot.lesson.duel import Duel, TwoPlayers
from surefoot.models.policy import build_policy
from surefoot.presets import CARTPOLE, PONG, find
from surefoot.runs.policy_file import policy_bytes

FAST = 1e9  # frames a second: as fast as it goes


def write_policy(file: Path, cfg: Any) -> Path:
    env = make(cfg.env)
    file.write_bytes(policy_bytes(build_policy(cfg, env.observation_space, env.action_space), cfg, 0))
    return file


def test_the_screen_is_the_single_players() -> None:
    """The same palette and places: a policy sees what it saw. Right and left paddle go where they are sent."""
    two, one = TwoPlayers(str(ale_py.roms.get_rom_path("pong")), FAST), ale_py.ALEInterface()
    one.loadROM(str(ale_py.roms.get_rom_path("pong")))
    for _ in range(150):
        two.act(0)
        one.act(0)
    assert set(np.unique(two.getScreen())) == set(np.unique(one.getScreen()))
    walls = np.s_[24:34, :]
    assert np.array_equal(two.getScreen()[walls], one.getScreen()[walls])
    assert np.array_equal(two.getScreenGrayscale()[walls], one.getScreenGrayscale()[walls])

    def paddles() -> tuple[float, float]:
        field = two.getScreenRGB()[34:194]
        rows = [np.flatnonzero((field[:, x] != field[0, 80]).any(-1)).mean() for x in (17, 141)]
        return float(rows[0]), float(rows[1])

    two.move = 4
    for _ in range(40):
        two.act(3)  # the right one up, the left one down
    left, right = paddles()
    assert left > 120
    assert right < 40


@pytest.mark.parametrize("env", [Pong(), pytest.param(Atari("pong"), marks=pytest.mark.long)], ids=["pong", "atari"])
def test_a_policy_plays_and_points_are_counted(env: Pong | Atari, tmp_path: Path) -> None:
    cfg = find("ALE/Pong-v5") if isinstance(env, Atari) else PONG
    duel = Duel(write_policy(tmp_path / "policy.safetensors", cfg), pace=FAST)
    plain, points = duel.game.act, [0.0]

    def act(action: Any) -> float:
        points[0] += (point := plain(action))
        if duel.game.frame > 2500:
            duel.left.set()
        return point

    duel.game.act = act  # type: ignore[method-assign]
    duel.play()
    you, policy = duel.game.scores()
    assert points[0] == policy - you
    assert you + policy > 0
    message = duel.message()
    assert (message["you"], message["policy"], message["says"]) == (you, policy, "")
    assert message["frame"].startswith("data:image/")


def test_another_games_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a duel needs a policy that plays Pong from pixels"):
        Duel(write_policy(tmp_path / "policy.safetensors", CARTPOLE))


@pytest.mark.long
@needs_chromium
def test_a_point_is_played_by_keys(tmp_path: Path) -> None:
    from playwright.sync_api import expect

    file = write_policy(tmp_path / "policy.safetensors", PONG)
    with served("duel", str(file)) as address, chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#frame")).to_have_attribute("src", re.compile("^data:image/"), timeout=90_000)

        def rows() -> list[int]:
            """The rows of the left paddle's column that are not background."""
            script = """() => { const i = document.getElementById('frame'), c = document.createElement('canvas');
                c.width = 160; c.height = 210; const x = c.getContext('2d'); x.drawImage(i, 0, 0, 160, 210);
                const d = x.getImageData(17, 34, 1, 160).data, base = x.getImageData(80, 40, 1, 1).data[0];
                return [...Array(160).keys()].filter((y) => Math.abs(d[4 * y] - base) > 30) }"""
            found: list[int] = page.evaluate(script)
            return found

        page.keyboard.down("ArrowDown")
        for _ in range(200):
            page.wait_for_timeout(50)
            if (seen := rows()) and min(seen) > 100:
                break
        assert min(seen) > 100
        page.keyboard.up("ArrowDown")
        page.screenshot(path=tmp_path / "duel.png")
        expect(page.locator(".score")).not_to_contain_text("you 0 : 0", timeout=90_000)
