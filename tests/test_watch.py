"""`surefoot watch`: what a player shows of a policy, the newest one, and what a browser gets and may set."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import websockets.sync.client
from starlette.testclient import TestClient

from browser import chromium, needs_chromium, served
from surefoot.commands.cli import main
from surefoot.config import Config
from surefoot.envs.gym import Gymnasium
from surefoot.envs.interface import make
from surefoot.lesson import player as players
from surefoot.lesson import watch as watching
from surefoot.lesson.guard import Guard
from surefoot.lesson.player import Player, saliency
from surefoot.lesson.watch import watch_app
from surefoot.models.policy import build_policy
from surefoot.presets import CARTPOLE, LESSON, PONG
from surefoot.runs.metrics import NUMBERS
from surefoot.runs.policy_file import policy_bytes

PORT, TOKEN = 8431, "the-token"
HOME = f"http://127.0.0.1:{PORT}"
HEADERS = {"origin": HOME, "cookie": f"surefoot_{PORT}={TOKEN}"}


def write_policy(run: Path, cfg: Config, steps: int = 1000) -> None:
    """A policy of first weights, written as a run writes it."""
    env = make(cfg.env)
    policy = build_policy(cfg, env.observation_space, env.action_space)
    env.close()
    run.mkdir(exist_ok=True)
    (run / ".new").write_bytes(policy_bytes(policy, cfg, steps))
    os.replace(run / ".new", run / "policy.safetensors")


@pytest.fixture
def pong(tmp_path: Path) -> Path:
    write_policy(tmp_path / "pong", PONG)
    return tmp_path / "pong"


def picture(url: str) -> np.ndarray:
    data = base64.b64decode(url.partition(",")[2])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_a_step_of_pong_shows_game_input_and_decision(pong: Path) -> None:
    player = Player(pong, saliency=True)
    first, second = player.play(), player.play()
    assert picture(first["frame"]).shape == (210, 160, 3)
    assert picture(first["image"]).shape == (80, 160)  # two frames side by side
    assert picture(first["overlay"]).shape == (80, 160, 4)
    assert [name for name, _, _ in first["actions"]] == ["NOOP", "LEFT", "RIGHTFIRE"]
    assert sum(p for _, p, _ in first["actions"]) == pytest.approx(1, abs=0.01)
    assert sum(taken for _, _, taken in first["actions"]) == 1
    assert (first["step"], second["step"], first["says"]) == (0, 1, "policy after 1,000 steps")
    assert "overlay" not in Player(pong).play()
    player.close()


def test_an_episode_depends_on_its_seed_alone(pong: Path) -> None:
    def shown(seed: int) -> list[Any]:
        player = Player(pong, seed=seed)
        played = [(m["frame"], m["actions"], m["value"]) for m in (player.play() for _ in range(15))]
        player.begin(seed)
        assert [(m["frame"], m["actions"], m["value"]) for m in (player.play() for _ in range(15))] == played
        return played

    assert shown(1) != shown(2)


def test_greedy_takes_the_most_probable_action(tmp_path: Path) -> None:
    write_policy(tmp_path / "run", CARTPOLE)
    player = Player(tmp_path / "run", greedy=True, saliency=True)
    for _ in range(40):
        message = player.play()
        assert next(p for _, p, taken in message["actions"] if taken) == max(p for _, p, _ in message["actions"])
    assert len(message["numbers"]) == len(message["weights"]) == 4
    assert max(message["weights"]) == 1
    assert picture(message["frame"]).shape[2] == 3


def test_after_an_ending_the_next_seeds_episode_begins(tmp_path: Path) -> None:
    write_policy(tmp_path / "run", CARTPOLE)
    player = Player(tmp_path / "run", seed=3)
    messages = [player.play() for _ in range(120)]
    ends = [i for i, message in enumerate(messages) if message["over"]]
    assert ends
    assert messages[ends[0]]["score"] == ends[0] + 1  # a point a step, this step's included
    assert (messages[ends[0] + 1]["seed"], messages[ends[0] + 1]["step"], messages[ends[0] + 1]["score"]) == (4, 0, 1)


def test_saliency_is_the_slope_of_the_actions_log_probability() -> None:
    env = make(PONG.env)
    policy = build_policy(replace(PONG, bf16=False), env.observation_space, env.action_space).double()
    obs = torch.randint(0, 200, (2, 80, 80), dtype=torch.uint8)
    found = saliency(policy, obs, torch.tensor(1))
    assert found is not None
    t, row, column = np.unravel_index(found.argmax(), found.shape)

    def logp(change: float) -> float:
        moved = obs.double()
        moved[t, row, column] += change
        return float(policy.evaluate(policy.preprocess(moved[None]))[0].log_prob(torch.tensor([1])).detach())

    assert found.max() == pytest.approx(abs(logp(1e-3) - logp(-1e-3)) / 2e-3, rel=1e-3)


def test_palette_frames_are_shown_in_their_colours(tmp_path: Path) -> None:
    write_policy(tmp_path / "run", LESSON)
    message = Player(tmp_path / "run", saliency=True).play()
    assert len(np.unique(picture(message["image"]))) > 1
    assert picture(message["overlay"])[..., 3].max() > 100
    assert message["value"] is None  # no critic


def test_the_newest_policy_plays_while_the_run_trains(pong: Path, monkeypatch) -> None:
    monkeypatch.setattr(players, "CHECK_EVERY", 0.0)
    player = Player(pong)
    before = player.play()
    write_policy(pong, replace(PONG, seed=9), 2_000_000)
    after = player.play()
    assert (before["says"], after["says"]) == ("policy after 1,000 steps", "policy after 2,000,000 steps")
    assert after["step"] == 1  # the game goes on
    shutil.rmtree(pong)
    assert player.play()["says"] == f"'{pong}' is gone; its last policy plays on"


def test_an_empty_run_is_waited_for_and_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(players, "CHECK_EVERY", 0.0)
    run = tmp_path / "run"
    run.mkdir()
    player = Player(run)
    waiting = {
        "says": "The run has saved no policy yet: the first one comes with its first checkpoint.",
        "waiting": True,
    }
    assert player.play() == player.play() == waiting
    assert list(run.iterdir()) == []
    write_policy(run, PONG)
    assert "frame" in player.play()
    assert [path.name for path in run.iterdir()] == ["policy.safetensors"]
    assert Player(tmp_path / "nowhere").play() == {"says": f"'{tmp_path / 'nowhere'}' is gone", "waiting": True}


def connect(app: Any) -> Any:
    return TestClient(Guard(app, PORT, TOKEN), HOME).websocket_connect(f"ws://127.0.0.1:{PORT}/play", headers=HEADERS)


def test_a_reader_pauses_steps_and_chooses(pong: Path) -> None:
    with connect(watch_app(pong)) as browser:
        assert browser.receive_json()["step"] == 0
        browser.send_json({"paused": True, "speed": 1000})
        browser.send_json({"seed": 7, "saliency": True})
        while (message := browser.receive_json())["seed"] != 7:
            pass
        assert message["step"] == 0
        assert "overlay" in message
        for step in (1, 2):  # one at a time, and no other in between
            browser.send_json({"step": 1})
            assert browser.receive_json()["step"] == step
        for nonsense in ("{", "[]", "1", '{"speed": "fast"}', '{"seed": 1e999}'):
            browser.send_text(nonsense)
        browser.send_json({"paused": False})
        assert [browser.receive_json()["step"] for _ in range(3)] == [3, 4, 5]


def test_too_many_readers_are_told_so_and_leave_room_when_they_go(pong: Path, monkeypatch) -> None:
    monkeypatch.setattr(watching, "VIEWERS", 1)
    app = watch_app(pong)
    with connect(app) as first:
        first.receive_json()
        with connect(app) as second:
            assert second.receive_json() == {"says": "1 pages are watching already: close one, and reload"}
    with connect(app) as third:
        assert "frame" in third.receive_json()


def test_a_file_that_names_code_is_refused_in_a_sentence(tmp_path: Path) -> None:
    write_policy(tmp_path / "run", replace(CARTPOLE, env=Gymnasium("worlds:Catch-v0")))
    with connect(watch_app(tmp_path / "run")) as browser:
        message = browser.receive_json()
    assert message["failed"]
    assert "asks to import worlds" in message["says"]
    with connect(watch_app(tmp_path / "run", trust=True)) as browser:  # and this one cannot be drawn
        assert "render" in browser.receive_json()["says"]


def test_the_page_shows_the_curves_of_the_run(pong: Path) -> None:
    client = TestClient(Guard(watch_app(pong), PORT, TOKEN), HOME)
    assert "has not finished its first iteration" in client.get("/", params={"token": TOKEN}).text
    (pong / "metrics.jsonl").write_text(
        json.dumps(dict.fromkeys(NUMBERS, 1) | {"step": 4096, "return_mean": -20.5}) + "\n"
    )
    assert client.get("/figure/own").json()["says"] == "score is −20.5 after 4,096 steps."
    assert client.get("/static/watch.js").status_code == 200
    file = TestClient(Guard(watch_app(pong / "policy.safetensors"), PORT, TOKEN), HOME)  # a policy without its run
    assert file.get("/", params={"token": TOKEN}).status_code == 200


def test_a_run_that_is_none_is_a_users_mistake(capsys) -> None:
    assert main(["watch", "nowhere"]) == 2
    assert "there is no run 'nowhere'" in capsys.readouterr().err


@pytest.mark.slow  # two processes that load PyTorch
def test_a_training_with_watch_is_watched_as_long_as_it_lasts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "surefoot", "train", "cartpole", "--watch", "--run-dir", str(tmp_path / "run")]
    more = ["--total-steps", "1000000000", "--quiet", "--save-every", "0.1"]
    with subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True) as training:
        assert training.stderr is not None
        address = next(line for line in training.stderr if line.startswith("open http")).split()[1]
        home, _, token = address.partition("/?token=")
        headers = {"origin": home, "cookie": f"surefoot_{home.rsplit(':')[-1]}={token}"}
        with websockets.sync.client.connect(
            f"ws{home[4:]}/play", additional_headers=headers, open_timeout=60
        ) as browser:
            while "frame" not in (message := json.loads(browser.recv())):
                assert message["waiting"]
        with socket.create_connection(("127.0.0.1", int(home.rsplit(":")[-1]))):
            training.send_signal(signal.SIGINT)
            assert training.wait() == 130
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(home.rsplit(":")[-1])))
    assert main(["train", "cartpole", "--watch", "--seeds", "2"]) == 2


@pytest.mark.long
@needs_chromium
def test_frames_arrive_in_a_browser(pong: Path) -> None:
    from playwright.sync_api import expect

    with served("watch", str(pong), "--port", "18600") as address, chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.get_by_label("what decided it").check()
        page.wait_for_selector("#overlay:not([hidden])")
        page.wait_for_function("() => Number(document.getElementById('at').textContent) > 20")
        page.get_by_role("button", name="pause").click()
        page.get_by_role("spinbutton", name="seed").fill("11")
        page.keyboard.press("Tab")
        expect(page.locator("#at")).to_have_text("0")
        page.get_by_role("button", name="one step").click()
        expect(page.locator("#at")).to_have_text("1")
        assert page.locator("#frame").evaluate("image => image.naturalHeight") == 210
        assert page.locator("#actions > div").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert wrong == []
