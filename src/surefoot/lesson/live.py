"""The page with a live training: its controls, its process, and its curves."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from surefoot.algorithm.advantages import GAE
from surefoot.algorithm.objectives import ClippedSurrogate, Entropy, Objective, Reinforce, Surrogate
from surefoot.algorithm.schedules import FixedRate
from surefoot.config import Config
from surefoot.errors import UserError
from surefoot.lesson.svg import Axis, Mark, axis, half_of, number, plot
from surefoot.lesson.widgets import Choice, Control, Slider
from surefoot.presets import CARTPOLE

STEPS = 40_000  # of each seed
TRAININGS = 2  # on this server at the same time
EVERY = 0.2  # seconds from one drawing to the next
CONTROLS: dict[str, Control] = {
    "objective": Choice("objective", ("clipped surrogate", "surrogate", "REINFORCE")),
    "clip_range": Slider("clip range ε", 0.02, 1, 0.02, 0.2),
    "rate": Choice("learning rate", ("0.003", "0.0001", "0.0003", "0.001", "0.01", "0.03", "0.1")),
    "epochs": Slider("epochs over each rollout", 1, 20, 1, 4),
    "entropy": Slider("entropy coefficient", 0, 0.1, 0.005, 0),
    "gamma": Slider("discount γ", 0.5, 1, 0.01, 0.98),
    "gae_lambda": Slider("GAE's λ", 0, 1, 0.05, 0.9),
    "seeds": Slider("seeds side by side", 1, 9, 1, 3),
}
PLOTS = {
    "score": "score, mean of 20 episodes",
    "kl": "KL(old ‖ new), nats",
    "clip_fraction": "clip fraction",
    "entropy": "entropy, nats",
}


def read(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a page sends; raises UserError for one out of range."""
    return {name: c.read(str(given[name]), name) if name in given else c.value for name, c in CONTROLS.items()}


def config(settings: Mapping[str, Any]) -> Config:
    """The Config for these settings: `cartpole` with a fixed learning rate."""
    chosen: dict[str, Objective] = {"surrogate": Surrogate(), "REINFORCE": Reinforce()}
    return replace(
        CARTPOLE,
        objective=chosen.get(settings["objective"], ClippedSurrogate(settings["clip_range"])),
        minibatch_size=0 if settings["objective"] == "REINFORCE" else CARTPOLE.minibatch_size,
        learning_rate=FixedRate(float(settings["rate"])),
        num_epochs=int(settings["epochs"]),
        entropy=Entropy(settings["entropy"]),
        advantage=GAE(settings["gamma"], settings["gae_lambda"]),
        total_steps=STEPS,
    )


def html(_: str = "") -> str:
    """The controls and the room for the curves."""
    controls = "".join(f'<div class="control">{c.html(name, f"live-{name}")}</div>' for name, c in CONTROLS.items())
    return (
        f'<form class="live"><div class="controls">{controls}</div><p><button>start</button> '
        '<button type="button" class="pause" disabled aria-pressed="false">pause</button></p>'
        '<p class="says" role="status">Press start.</p><div class="pictures"></div><dl class="values"></dl></form>'
    )


@dataclass
class Training:
    """What has come of a training so far."""

    seeds: int
    rows: dict[int, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[int, str] = field(default_factory=dict)
    changes: list[int] = field(default_factory=list)
    """steps at which the reader changed something"""

    def take(self, line: bytes) -> None:
        """Add what the process has written."""
        row = json.loads(line)
        if "failed" in row:
            self.failed[row["seed"]] = row["failed"]
        else:
            self.rows[row["seed"]].append(row)

    @property
    def step(self) -> int:
        """Steps of the seed that is furthest."""
        return max((rows[-1]["step"] for rows in self.rows.values()), default=0)

    def draw(self, width: int) -> dict[str, str]:
        """Four plots with a line for each seed and their mean, and the last means as numbers."""
        half = half_of(width)
        pictures, values = [], {}
        for name, label in PLOTS.items():
            lines = [
                np.array([(row["step"], math.nan if row[name] is None else row[name]) for row in rows]).T
                for rows in self.rows.values()
            ]
            marks = [Mark("thin", x, y, "a", "one seed" if i == 0 else "") for i, (x, y) in enumerate(lines)]
            length = min((len(x) for x, _ in lines), default=0)
            if len(lines) > 1 and length:
                mean = np.mean([y[:length] for _, y in lines], 0)
                marks.append(Mark("line", lines[0][0][:length], mean, "b", "mean"))
            marks += [Mark("rule", self.changes, None, "grey", "changed")] if self.changes else []
            y = axis(label, *[y for _, y in lines], low=0.0)
            pictures.append(plot(marks, Axis("steps", 0, STEPS), y, half, height=210))
            last = [y[-1] for _, y in lines if len(y) and math.isfinite(y[-1])]
            values[label] = number(float(np.mean(last))) if last else "none yet"
        numbers = "".join(f"<div><dt>{escape(k)}</dt><dd>{v}</dd></div>" for k, v in values.items())
        return {"pictures": "".join(pictures), "values": numbers, "says": escape(self.says())}

    def says(self) -> str:
        """Where it stands."""
        if self.failed:
            seed, why = next(iter(self.failed.items()))
            return f"Seed {seed} has broken down: {why}."
        ended = sum(rows[-1]["step"] >= STEPS for rows in self.rows.values())
        if ended == self.seeds:
            return f"Done: {self.seeds} times {self.step:,} steps."
        return f"{self.step:,} of {STEPS:,} steps."


class Live:
    """The trainings of all readers."""

    def __init__(self) -> None:
        self.running = 0

    async def serve(self, websocket: WebSocket) -> None:
        """One reader's trainings, until they leave: {"start": settings}, {"set": settings}, {"paused": true}."""
        await websocket.accept()
        session = Session(websocket)
        try:
            while True:
                given = json.loads(await websocket.receive_text())
                try:
                    await self.obey(session, dict(given))
                except UserError as error:
                    await websocket.send_json({"says": str(error)})
        except (WebSocketDisconnect, RuntimeError, ValueError, TypeError, KeyError, OSError, RecursionError):
            pass  # the reader has left, or it is no page of ours
        finally:
            self.end(session)

    async def obey(self, session: Session, given: dict[str, Any]) -> None:
        """Do what a page asks; raises UserError."""
        if "width" in given:
            session.width = int(Slider("", 240, 1200, 1, 640).read(str(given["width"]), "width"))
        if "start" in given:
            settings = read(given["start"])
            self.end(session)
            if self.running >= TRAININGS:
                raise UserError(f"{TRAININGS} trainings are running on this server: end one, by closing its page")
            self.running += 1
            await session.start(settings)
        elif "set" in given:
            session.change(read(given["set"]))
        elif "paused" in given:
            session.tell({"paused": bool(given["paused"])})

    def end(self, session: Session) -> None:
        """End the reader's training, if there is one."""
        self.running -= session.end()


@dataclass
class Session:
    """One reader's training, and the process that does it."""

    websocket: WebSocket
    width: int = 640
    training: Training | None = None
    process: subprocess.Popen[bytes] | None = None
    pump: asyncio.Task[None] | None = None

    async def start(self, settings: Mapping[str, Any]) -> None:
        """Begin a training."""
        self.training = Training(int(settings["seeds"]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "surefoot.lesson.live_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        seeds = list(range(1, self.training.seeds + 1))
        self.tell({"config": config(settings).to_json(), "seeds": seeds})
        await self.websocket.send_json({"says": "Starting: PyTorch takes a few seconds to load."})
        self.pump = asyncio.create_task(self.show(self.process, self.training))

    def change(self, settings: Mapping[str, Any]) -> None:
        """Go on with other settings; the number of seeds stays."""
        if self.training and self.training.step < STEPS:
            self.tell({"config": config(settings).to_json()})
            self.training.changes.append(self.training.step)

    def tell(self, order: dict[str, Any]) -> None:
        """Give the process an order: a short line, for which its pipe has room."""
        if self.process and self.process.stdin:
            with suppress(OSError):
                self.process.stdin.write(json.dumps(order).encode() + b"\n")
                self.process.stdin.flush()

    async def show(self, process: subprocess.Popen[bytes], training: Training) -> None:
        """Read what the process writes, until it ends, and send the curves a few times a second."""
        assert process.stdout is not None
        loop = asyncio.get_running_loop()
        shown = loop.time()
        with process.stdout, suppress(WebSocketDisconnect, RuntimeError, OSError):
            while line := await asyncio.to_thread(process.stdout.readline):
                training.take(line)
                if loop.time() - shown > EVERY:
                    await self.websocket.send_json(training.draw(self.width))
                    shown = loop.time()
            if self.process is process:  # by itself
                await self.websocket.send_json(training.draw(self.width) | {"ended": True})

    def end(self) -> bool:
        """End the process; returns whether there was one."""
        process, self.process = self.process, None
        if process is None:
            return False
        process.kill()
        process.wait()
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        return True
