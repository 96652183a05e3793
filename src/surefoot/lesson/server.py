"""The lesson's server: pages, figures, quiz and exercises, for one reader on this machine."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from surefoot.errors import UserError
from surefoot.lesson import quiz, source
from surefoot.lesson.guard import serve
from surefoot.lesson.pages import FIGURES, HERE, body, pages

TEMPLATES = Environment(loader=FileSystemLoader(HERE / "static"), autoescape=select_autoescape(["html"]))
MOST_BYTES = 100_000  # of a request
SLOTS = {"quiz": lambda _: quiz.html(0), "loop": source.html}


def show(request: Request) -> Response:
    """A page of the course."""
    page = pages().get(request.path_params["name"])
    if page is None:
        raise HTTPException(404, "The lesson has no such page.")
    order = list(pages().values())
    at = order.index(page)
    text = TEMPLATES.get_template("page.html").render(
        page=page,
        pages=order,
        number=at + 1,
        body=body(page, SLOTS),
        before=order[at - 1] if at else None,
        after=order[at + 1] if at + 1 < len(order) else None,
    )
    return HTMLResponse(text)


def figure(request: Request) -> Response:
    """What a figure shows for the controls in the query."""
    known = FIGURES.get(request.path_params["name"])
    if known is None:
        raise HTTPException(404, "The lesson has no such figure.")
    return JSONResponse(known.compute(request.query_params))


async def sent(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings; raises HTTPException."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise HTTPException(413, "That is too long.")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise HTTPException(400, "That is no JSON object.")
    return found


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


def failed(_: Request, error: Exception) -> Response:
    """A mistake in a request as a sentence."""
    if isinstance(error, HTTPException):
        return HTMLResponse(escape(str(error.detail)), error.status_code)
    return HTMLResponse(escape(str(error)), 400)


def lesson_app() -> Starlette:
    """The lesson as an ASGI application, still without its Guard."""
    torch.set_num_threads(1)
    first = next(iter(pages()))
    routes: list[BaseRoute] = [
        Route("/", lambda _: RedirectResponse(f"/{first}")),
        Mount("/static", StaticFiles(directory=HERE / "static")),
        Route("/figure/{name}", figure),
        Route("/quiz", check_quiz, methods=["POST"]),
        Route("/quiz/{seed}", show_quiz),
        Route("/{name}", show),
    ]
    return Starlette(routes=routes, exception_handlers={UserError: failed, HTTPException: failed})


def lesson(port: int) -> None:
    """Serve the lesson until Ctrl-C."""
    serve(lesson_app(), port, next(iter(pages())))
