"""The lesson's live training: the real loop in a process, its settings, its curves, and its end with the reader's."""

from __future__ import annotations

import re
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient

from surefoot.algorithm.objectives import ClippedSurrogate, Reinforce, Surrogate
from surefoot.errors import UserError
from surefoot.lesson import live
from surefoot.lesson.guard import Guard
from surefoot.lesson.server import lesson_app
from surefoot.presets import CARTPOLE

PORT, TOKEN = 8421, "the-token"
HOME = f"http://127.0.0.1:{PORT}"
HEADERS = {"origin": HOME, "cookie": f"surefoot_{PORT}={TOKEN}"}


def connect(app: Any) -> Any:
    return TestClient(Guard(app, PORT, TOKEN), HOME).websocket_connect(f"ws://127.0.0.1:{PORT}/live", headers=HEADERS)


def workers() -> list[psutil.Process]:
    found = [child for child in psutil.Process().children() if "surefoot.lesson.live_worker" in child.cmdline()]
    return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]


def test_settings_become_a_config() -> None:
    plain = live.config(live.read({}))
    assert plain.objective == ClippedSurrogate(0.2) == CARTPOLE.objective
    assert plain.advantage == CARTPOLE.advantage
    given = {
        "objective": "surrogate",
        "rate": "0.01",
        "epochs": "20",
        "entropy": "0.05",
        "gamma": "0.5",
        "gae_lambda": "0",
    }
    cfg = live.config(live.read(given))
    assert (cfg.objective, cfg.learning_rate.initial, cfg.num_epochs) == (Surrogate(), 0.01, 20)
    assert (cfg.entropy.coef, cfg.advantage.gamma, cfg.advantage.gae_lambda) == (0.05, 0.5, 0)
    reinforce = live.config(live.read({"objective": "REINFORCE"}))
    assert (reinforce.objective, reinforce.minibatch_size) == (Reinforce(), 0)
    with pytest.raises(UserError, match=r"rate is '5'; allowed is 0\.003"):
        live.read({"rate": "5"})


@pytest.mark.long
def test_a_training_is_started_paused_changed_and_comes_to_its_end(monkeypatch) -> None:
    monkeypatch.setattr(live, "STEPS", 3072)  # six iterations
    monkeypatch.setattr(live, "EVERY", 0.0)
    with connect(lesson_app()) as browser:
        browser.send_json({"start": {"seeds": 0}})
        assert browser.receive_json() == {"says": "seeds is '0'; allowed is 1 to 9"}
        browser.send_json({"start": {"seeds": 2, "epochs": 1}, "width": 350})
        assert "Starting" in browser.receive_json()["says"]
        browser.send_json({"set": {"epochs": 3}})
        message = browser.receive_json()
        browser.send_json({"paused": True})
        browser.send_json({"paused": False})
        while not message.get("ended"):
            message = browser.receive_json()
        assert message["says"] == "Done: 2 times 3,072 steps."
        assert message["pictures"].count('<path class="line thin a"') == 2 * len(live.PLOTS)
        numbers = re.findall(r"<dd>([\d.]+)</dd>", message["values"])
        assert len(numbers) == len(live.PLOTS)
        assert 0.5 < float(numbers[3]) <= 0.694  # the entropy of two actions is at most ln 2
        assert 'viewBox="0 0 350 210"' in message["pictures"]
    assert workers() == []


def test_the_training_ends_when_its_reader_leaves_and_there_is_a_most(monkeypatch) -> None:
    monkeypatch.setattr(live, "TRAININGS", 1)
    app = lesson_app()
    with connect(app) as first:
        first.send_json({"start": {"seeds": 1}})
        first.receive_json()
        assert len(workers()) == 1
        with connect(app) as second:
            second.send_json({"start": {}})
            assert second.receive_json()["says"].startswith("1 trainings are running on this server")
        first.send_json({"start": {"seeds": 1}})  # anew, instead of the one before
        while not first.receive_json()["says"].startswith("Starting"):
            pass
        assert len(workers()) == 1
    assert workers() == []
    for nonsense in ("{", "[]", '"start"'):
        with connect(app) as browser:
            browser.send_text(nonsense)


def test_a_seed_that_breaks_down_says_why() -> None:
    training = live.Training(2)
    row = '{"seed": 1, "step": 512, "score": null, "kl": 0.5, "clip_fraction": 0.25, "entropy": 0.5}'
    training.take(row.encode())
    training.take(b'{"seed": 2, "failed": "the gradient is not finite"}')
    shown = training.draw(640)
    assert shown["says"] == "Seed 2 has broken down: the gradient is not finite."
    assert "none yet" in shown["values"]
    assert ">0.25<" in shown["values"]
