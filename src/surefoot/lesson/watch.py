"""`surefoot watch`: a run's policy at play in the browser. It reads the run's directory, and never writes to it."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from surefoot.envs.interface import EnvSpec
from surefoot.errors import UserError
from surefoot.lesson.figures_records import of_run
from surefoot.lesson.pages import HERE
from surefoot.lesson.player import Player, sentence
from surefoot.lesson.server import TEMPLATES, failed

SPEED, FASTEST = 30.0, 240.0  # steps a second
VIEWERS = 4  # at the same time; each has an environment and a policy of its own


@dataclass
class Controls:
    """What one reader has set."""

    speed: float = SPEED
    paused: bool = False
    steps: int = 0
    """steps to take although it is paused"""
    seed: int | None = None
    """begin an episode of this seed"""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, text: str, player: Player) -> None:
        """Apply a message: {"paused": true, "speed": 60, "step": 1, "seed": 7, "greedy": true, "saliency": true}."""
        try:
            given = dict(json.loads(text))
            for name in ("greedy", "saliency"):
                if name in given:
                    setattr(player, name, bool(given[name]))
            self.paused = bool(given.get("paused", self.paused))
            self.speed = min(FASTEST, max(1.0, float(given.get("speed", self.speed))))
            self.steps += bool(given.get("step"))
            if "seed" in given:
                self.seed = min(2**31, max(0, int(given["seed"])))
        except (ValueError, TypeError, RecursionError, OverflowError):
            return  # no message of ours
        self.changed.set()


@dataclass
class Watch:
    """What is watched, and by how many."""

    run: Path
    env: EnvSpec | None
    trust: bool
    viewers: int = 0

    def page(self, _: Request) -> Response:
        """The page."""
        figure = of_run(self.run)
        with suppress(UserError):
            return HTMLResponse(
                TEMPLATES.get_template("watch.html").render(run=self.run.name, curves=figure.html("own"))
            )
        return HTMLResponse(TEMPLATES.get_template("watch.html").render(run=self.run.name, curves=""))

    def figure(self, request: Request) -> Response:
        """The run's curves as they are now."""
        return JSONResponse(of_run(self.run).compute(request.query_params))

    async def play(self, websocket: WebSocket) -> None:
        """Play for one reader, until they leave."""
        await websocket.accept()
        if self.viewers >= VIEWERS:
            await websocket.send_json({"says": f"{VIEWERS} pages are watching already: close one, and reload"})
            await websocket.close()
            return
        self.viewers += 1
        player = Player(self.run, self.env, self.trust)
        thread = ThreadPoolExecutor(1, "player")  # one and the same: some environments can only draw in one thread
        controls = Controls()
        listening = asyncio.create_task(listen(websocket, controls, player))
        try:
            await play(websocket, player, controls, thread, listening)
        except (WebSocketDisconnect, RuntimeError, OSError):
            pass  # the reader has left
        finally:
            self.viewers -= 1
            listening.cancel()
            thread.submit(player.close)
            thread.shutdown(wait=False)


async def listen(websocket: WebSocket, controls: Controls, player: Player) -> None:
    """Take the reader's messages until they leave."""
    try:
        while True:
            controls.take(await websocket.receive_text(), player)
    except (WebSocketDisconnect, RuntimeError, KeyError):
        controls.changed.set()


async def play(
    websocket: WebSocket, player: Player, controls: Controls, thread: ThreadPoolExecutor, listening: asyncio.Task[None]
) -> None:
    """Step at the reader's speed and send each step; a slow browser makes this slower, and nothing else."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while not listening.done():
        if controls.seed is not None:
            seed, controls.seed = controls.seed, None
            await loop.run_in_executor(thread, player.begin, seed)
            controls.steps += controls.paused
        if controls.paused and not controls.steps:
            controls.changed.clear()
            await controls.changed.wait()
            due = loop.time()
            continue
        controls.steps = max(0, controls.steps - 1)
        try:
            message = await loop.run_in_executor(thread, player.play)
        except Exception as error:  # of the policy's file or the environment
            await websocket.send_json({"says": sentence(error), "failed": True})
            return
        await websocket.send_text(json.dumps(message))
        wait = 1.0 if message.get("waiting") else 1 / controls.speed
        due = max(due + wait, loop.time() - wait)
        await asyncio.sleep(max(0.0, due - loop.time()))


def watch_app(run: Path, env: EnvSpec | None = None, trust: bool = False) -> Starlette:
    """The pages as an ASGI application, still without its Guard."""
    torch.set_num_threads(1)
    watch = Watch(run, env, trust)
    routes: list[Any] = [
        Route("/", watch.page),
        Mount("/static", StaticFiles(directory=HERE / "static")),
        Route("/figure/own", watch.figure),
        WebSocketRoute("/play", watch.play),
    ]
    return Starlette(routes=routes, exception_handlers={UserError: failed, HTTPException: failed})
