"""Who may speak with the local server: Host, Origin and token are checked on every request and every WebSocket."""

from __future__ import annotations

import errno
import hmac
import os
import secrets
import socket
from collections.abc import Callable
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from surefoot.errors import UserError, note

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PORT, TRIES = 8421, 20


class Guard:
    """ASGI middleware; only a browser on this machine that has opened the address with its token gets through.

    Host: 127.0.0.1 or localhost with our port, so that no other name resolves to us (DNS rebinding). Origin: our own
    where there is one, and there must be one on a WebSocket and on every request that changes anything. Token: in the
    address once, from then on in a cookie that scripts cannot read and other sites do not send.
    """

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self.app, self.token, self.cookie = app, token, f"surefoot_{port}"
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        sources = " ".join(f"ws://{host}" for host in sorted(self.hosts))
        policy = (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
            "media-src 'self'; font-src 'self'; "
            f"connect-src 'self' {sources}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        self.headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        wrong, fresh = self.judge(scope)
        if wrong:
            return await self.refuse(scope, receive, send, wrong)
        extra = list(self.headers)
        if fresh:
            value = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            extra.append((b"set-cookie", value.encode()))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        return await self.app(scope, receive, answer)

    def judge(self, scope: Scope) -> tuple[str, bool]:
        """Why this request is refused, or empty; and whether its token is in the address."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self.hosts:
            return "This server answers to 127.0.0.1 and localhost alone.", False
        changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
        if origin != f"http://{host}" and (origin is not None or changes):
            return "This request comes from a page of another site.", False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self.right(given):
            return "", True
        try:
            known = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except Exception:  # a cookie of another server that is none
            known = None
        if not given and known is not None and self.right(known.value):
            return "", False
        return "Open the address with its token, as surefoot has printed it.", False

    def right(self, token: str) -> bool:
        """Whether this is the token, compared in constant time."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    async def refuse(self, scope: Scope, receive: Receive, send: Send, why: str) -> None:
        """Answer 403; a WebSocket is closed before it opens."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": why})
            return
        headers = [*self.headers, (b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": why.encode()})


def bind(port: int) -> socket.socket:
    """A socket on 127.0.0.1; where `port` is taken, on the next free one of 20, with a note."""
    for candidate in range(port, min(port + TRIES, 65536)):
        listener = socket.socket()
        if os.name == "posix":  # elsewhere it would let us share another program's port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", candidate))
            listener.listen(128)
        except OSError as error:
            listener.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise UserError(f"port {candidate} cannot be used: {error.strerror}") from error
            continue
        if candidate != port:
            note(f"port {port} is taken: using {candidate}")
        return listener
    raise UserError(f"ports {port} to {candidate} are taken: choose another --port")


def serve(make_app: Callable[[], ASGIApp], port: int) -> None:
    """Serve behind a Guard until Ctrl-C what `make_app` returns, which may take its time: the address is printed first.

    A browser that opens it meanwhile waits, since the port is bound already.
    """
    import uvicorn

    if not 1 <= port <= 65535:
        raise UserError(f"port is {port}; allowed is 1 to 65535")
    listener, token = bind(port), secrets.token_urlsafe(24)
    port = listener.getsockname()[1]
    print(f"open http://127.0.0.1:{port}/?token={token}\nCtrl-C ends it", flush=True)
    config = uvicorn.Config(
        Guard(make_app(), port, token),
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=1,
        ws_max_size=2**16,
    )
    uvicorn.Server(config).run(sockets=[listener])
