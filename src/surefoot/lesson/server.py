"""The lesson's server: pages, figures, quiz and exercises, for one reader on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import torch
from anyio import CapacityLimiter, to_thread
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from surefoot.errors import UserError
from surefoot.lesson import exercises, live, quiz, source
from surefoot.lesson.figures_records import of_run
from surefoot.lesson.pages import FIGURES, HERE, body, pages
from surefoot.lesson.widgets import Figure

TEMPLATES = Environment(loader=FileSystemLoader(HERE / "static"), autoescape=select_autoescape(["html"]))
MOST_BYTES = 100_000  # of a request
FIRST = "reinforce"  # the page at /
CHECKS = 2  # exercises that are checked at the same time; others wait


@dataclass
class Lesson:
    """What the pages show for one reader."""

    figures: dict[str, Figure]
    has_run: bool  # whether the reader has named a run

    def show(self, request: Request) -> Response:
        """A page of the course."""
        page = pages().get(request.path_params.get("name", FIRST))
        if page is None:
            raise HTTPException(404, "The lesson has no such page.")
        order = list(pages().values())
        at = order.index(page)
        slots = {
            "figure": lambda name: self.figures[name].html(name),
            "quiz": lambda _: quiz.html(0),
            "loop": source.html,
            "exercise": exercise_html,
            "own": self.own_html,
            "film": film_html,
            "live": live.html,
        }
        text = TEMPLATES.get_template("page.html").render(
            page=page,
            pages=order,
            number=at + 1,
            body=body(page, slots),
            before=order[at - 1] if at else None,
            after=order[at + 1] if at + 1 < len(order) else None,
        )
        return HTMLResponse(text)

    def own_html(self, _: str) -> str:
        """The reader's own run, or how to name one."""
        if self.has_run:
            try:
                return self.figures["own"].html("own")
            except UserError as error:
                return f'<p class="wrong">{escape(str(error))}</p>'
        return "<p><code>surefoot lesson --run RUN</code> shows the curves of a run of yours here.</p>"

    def figure(self, request: Request) -> Response:
        """What a figure shows for the controls in the query."""
        known = self.figures.get(request.path_params["name"])
        if known is None:
            raise HTTPException(404, "The lesson has no such figure.")
        return JSONResponse(known.compute(request.query_params))


def film_html(name: str) -> str:
    """A film in `static/`, which plays when the reader wants it."""
    return f'<video controls muted loop preload="metadata" src="/static/{name}.mp4" aria-label="a game"></video>'


def exercise_html(name: str) -> str:
    """An editor for an exercise, with its template, and a button that checks what is in it."""
    text = exercises.template(name)
    id, rows = f"exercise-{name}", text.count("\n") + 6
    return (
        f'<form class="exercise" data-exercise="{name}"><label for="{id}">{name}: {exercises.EXERCISES[name]}</label>'
        f'<textarea id="{id}" name="source" rows="{rows}" spellcheck="false" autocapitalize="off" autocomplete="off">'
        f"{escape(text)}</textarea><p><button>check</button> "
        '<button type="button" class="reset">begin anew</button></p><ul class="verdicts" role="status"></ul></form>'
    )


async def sent(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings; raises HTTPException."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise HTTPException(413, "That is too long.")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise HTTPException(400, "That is no JSON object.")
    return body


async def check_quiz(request: Request) -> Response:
    """The verdict on the quiz's fields."""
    given = await sent(request)
    seed = quiz_seed(str(given.pop("seed", "")))
    verdicts = quiz.check(seed, {name: str(value) for name, value in given.items()})
    return JSONResponse({name: {"right": right, "says": says} for name, (right, says) in verdicts.items()})


def quiz_seed(text: str) -> int:
    """The number of a game; raises UserError."""
    if not (text.isascii() and text.isdecimal() and int(text) < 2**31):
        raise UserError(f"'{text[:20]}' is no number of a game")
    return int(text)


def show_quiz(request: Request) -> Response:
    """Another game's quiz, as HTML."""
    return HTMLResponse(quiz.html(quiz_seed(request.path_params["seed"])))


async def check_exercise(request: Request, limiter: CapacityLimiter) -> Response:
    """The verdicts on a reader's function, which runs in a process of its own."""
    given = await sent(request)
    check = partial(exercises.check, request.path_params["name"], str(given.get("source", "")))
    return JSONResponse([asdict(verdict) for verdict in await to_thread.run_sync(check, limiter=limiter)])


def failed(_: Request, error: Exception) -> Response:
    """A mistake in a request as a sentence."""
    if isinstance(error, HTTPException):
        return HTMLResponse(escape(str(error.detail)), error.status_code)
    return HTMLResponse(escape(str(error)), 400)


def lesson_app(run: Path | None = None) -> Starlette:
    """The lesson as an ASGI application, still without its Guard; `run`: a run of the reader's, to be shown."""
    torch.set_num_threads(1)
    limiter = CapacityLimiter(CHECKS)
    lesson = Lesson(FIGURES | ({"own": of_run(run)} if run else {}), run is not None)
    routes: list[BaseRoute] = [
        Route("/", lesson.show),
        Mount("/static", StaticFiles(directory=HERE / "static")),
        Route("/figure/{name}", lesson.figure),
        Route("/quiz", check_quiz, methods=["POST"]),
        Route("/quiz/{seed}", show_quiz),
        Route("/exercise/{name}", partial(check_exercise, limiter=limiter), methods=["POST"]),
        WebSocketRoute("/live", live.Live().serve),
        Route("/{name}", lesson.show),
    ]
    return Starlette(routes=routes, exception_handlers={UserError: failed, HTTPException: failed})
