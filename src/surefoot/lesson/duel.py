"""`surefoot duel`: two-player Pong against a policy, in the browser.

The policy has the right paddle and sees what it saw in training; the reader has the left one. The emulator is
multi-agent-ale-py's, with the ROM that ale-py brings, behind the calls of ALE that `PongEnv` and `AtariEnv` make.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from surefoot.envs.atari import Atari, Pong
from surefoot.envs.spaces import blank
from surefoot.errors import UserError
from surefoot.lesson.pages import HERE
from surefoot.lesson.player import as_url
from surefoot.lesson.server import TEMPLATES, failed
from surefoot.models.policy import Policy
from surefoot.runs.policy_file import load_policy

FPS = 60.0  # frames that the console shows in a second
EVERY = 2  # of which so many are one picture in the browser
TWO_PLAYERS = 4  # the game's mode
SERVING = {0: 1, 3: 11, 4: 12}  # stay, up, down with the button pressed: who waits to serve is punished
MOVES = {"none": 0, "up": 3, "down": 4}
SCORES = 13, 14  # of the left and of the right player, in the console's memory
PAGES = 2  # that may be open at the same time; each has a game and a policy of its own


class TwoPlayers:
    """An emulator for two, with the calls of one for one: `act` is the right player's, `move` the left one's."""

    def __init__(self, rom: str, pace: float = FPS) -> None:
        from multi_agent_ale_py import ALEInterface

        ALEInterface.setLoggerMode("error")
        self.ale = ALEInterface()
        self.ale.setInt("random_seed", 0)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.setInt("frame_skip", 1)
        self.ale.loadROM(rom)
        self.ale.setMode(TWO_PLAYERS)
        self.ale.reset_game()
        self.move, self.frame, self.pace, self.due = 0, 0, pace, 0.0
        self.shown = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ale, name)

    def act(self, action: Any) -> float:
        """One frame, not sooner than a console would show it; the right player's points."""
        now = time.monotonic()
        self.due = max(self.due + 1 / self.pace, now - 0.1)
        time.sleep(max(0.0, self.due - now))
        moves = (int(getattr(action, "value", action)), self.move)
        points = self.ale.act([SERVING.get(move, move) for move in moves])
        self.frame += 1
        if self.frame % EVERY == 0:
            self.shown.set()
        return float(points[0])

    def getScreen(self) -> NDArray[np.uint8]:
        """Palette indices [210, 160]."""
        screen: NDArray[np.uint8] = self.ale.getScreen().reshape(210, 160)
        return screen

    def getScreenGrayscale(self, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Brightness [210, 160]."""
        screen: NDArray[np.uint8] = self.ale.getScreenGrayscale().reshape(210, 160)
        if out is not None:
            out[...] = screen
        return screen

    def scores(self) -> tuple[int, int]:
        """Points of the left and of the right player."""
        memory = self.ale.getRAM()
        return int(memory[SCORES[0]]), int(memory[SCORES[1]])


class Duel:
    """A game between a policy and a person."""

    def __init__(self, run: Path, trust: bool = False, pace: float = FPS) -> None:
        import ale_py

        policy, spec, facts = load_policy(run, trust=trust)
        if not (isinstance(spec, Pong) or (isinstance(spec, Atari) and spec.game == "pong")):
            raise UserError(f"'{run}' has learned {facts['task']}: a duel needs a policy that plays Pong from pixels")
        self.policy: Policy = policy
        self.env: Any = replace(spec, noop_max=0, sticky=0.0).make()
        self.game: Any = TwoPlayers(str(ale_py.roms.get_rom_path("pong")), pace)
        vars(self.env)["ale"] = self.game
        self.left = threading.Event()
        self.rng = np.random.default_rng()

    def play(self) -> None:
        """One game, to 21 points or until the person has left; in a thread of its own."""
        assert self.policy.spaces is not None
        obs = np.array(blank(self.policy.spaces[0]))
        self.policy.reset()
        self.env.reset(0, obs)
        over = False
        while not over and not self.left.is_set():
            over = self.env.step(self.policy.act(obs, rng=self.rng), obs)[1]
        self.game.shown.set()

    def message(self) -> dict[str, Any]:
        """What the browser shows."""
        you, policy = self.game.scores()
        says = "" if max(you, policy) < 21 else "You have won." if you > policy else "The policy has won."
        return {"frame": as_url(self.game.getScreenRGB()), "you": you, "policy": policy, "says": says}


class Table:
    """Who plays at the moment."""

    def __init__(self, run: Path, trust: bool) -> None:
        self.run, self.trust, self.players = run, trust, 0

    def page(self, _: Request) -> Response:
        """The page."""
        return HTMLResponse(TEMPLATES.get_template("duel.html").render(run=self.run.name))

    async def play(self, websocket: WebSocket) -> None:
        """Games for one reader, one after another, until they leave."""
        await websocket.accept()
        if self.players >= PAGES:
            await websocket.send_json({"says": f"{PAGES} games are on already: close one of their pages, and reload"})
            await websocket.close()
            return
        self.players += 1
        loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(2, "duel")
        listening, duel = None, None
        try:
            duel = await loop.run_in_executor(pool, Duel, self.run, self.trust)
            again = asyncio.Event()
            listening = asyncio.create_task(listen(websocket, duel, again))
            while not listening.done():
                game = loop.run_in_executor(pool, duel.play)
                while not game.done():
                    await loop.run_in_executor(pool, duel.game.shown.wait, 1.0)
                    duel.game.shown.clear()
                    await websocket.send_text(json.dumps(duel.message()))
                await game
                await websocket.send_text(json.dumps(duel.message()))
                again.clear()
                await again.wait()
        except UserError as error:
            await websocket.send_json({"says": str(error)})
        except (WebSocketDisconnect, RuntimeError, OSError):
            pass  # the reader has left
        finally:
            self.players -= 1
            if duel is not None:
                duel.left.set()
            if listening is not None:
                listening.cancel()
            pool.shutdown(wait=False)


async def listen(websocket: WebSocket, duel: Duel, again: asyncio.Event) -> None:
    """Take the reader's moves, {"move": "up"}, and their wish for another game, {"again": true}, until they leave."""
    try:
        while True:
            with suppress(ValueError, TypeError, RecursionError):
                given = dict(json.loads(await websocket.receive_text()))
                duel.game.move = MOVES.get(str(given.get("move")), duel.game.move)
                if given.get("again"):
                    again.set()
    except (WebSocketDisconnect, RuntimeError, KeyError):
        duel.left.set()
        again.set()


def duel_app(run: Path, trust: bool = False) -> Starlette:
    """The page as an ASGI application, still without its Guard."""
    torch.set_num_threads(1)
    table = Table(run, trust)
    routes: list[Any] = [
        Route("/", table.page),
        Mount("/static", StaticFiles(directory=HERE / "static")),
        WebSocketRoute("/play", table.play),
    ]
    return Starlette(routes=routes, exception_handlers={UserError: failed, HTTPException: failed})
