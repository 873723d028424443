"""Who may use the page: a token that becomes a cookie, the names of the server, and headers that keep other pages out.

`lwz ui` prints an address with the token. The first request with it sets the cookie and leads to the address without it.
Programs may send `Authorization: Bearer` instead.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from megatron_lwz.ui.pages.layout import message_page

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Adds the headers to every answer, errors included."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


def cookie_name(request: web.Request) -> str:
    """Returns the cookie's name. It holds the port, because browsers share cookies between the ports of a host."""
    return f"lwz_ui_{request.url.port}"


def require_token(token: str) -> Any:
    """Returns the middleware that lets in only who has the token."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.query.get("token")
        if given is not None and request.method == "GET":
            if not _same(given, token):
                raise web.HTTPUnauthorized(text="wrong token: open the address that lwz ui printed last")
            rest = urlencode([(name, value) for name, value in request.query.items() if name != "token"])
            answer = web.HTTPSeeOther(_local(request.path) + (f"?{rest}" if rest else ""))
            answer.set_cookie(cookie_name(request), token, httponly=True, samesite="Strict", path="/")
            raise answer
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not (_same(request.cookies.get(cookie_name(request), ""), token) or _same(bearer, token)):
            raise web.HTTPUnauthorized(text="no token: open the address that lwz ui printed when it started")
        return await handler(request)

    return check


@web.middleware
async def require_own_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests that a page of another origin sends, also one of another port of this machine."""
    origin = request.headers.get("Origin")
    own = f"{request.scheme}://{request.host}"
    if origin is not None and origin != own:
        raise web.HTTPForbidden(text="a page of another origin asks")
    if request.method not in ("GET", "HEAD") and origin is None and "Authorization" not in request.headers:
        raise web.HTTPForbidden(text="a change needs the Origin header")
    site = request.headers.get("Sec-Fetch-Site")
    if site in ("cross-site", "same-site") and request.headers.get("Sec-Fetch-Mode") != "navigate":
        raise web.HTTPForbidden(text="a page of another origin asks")
    return await handler(request)


@web.middleware
async def errors_as_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives a browser that opens a page the error as a page. Others get the server's JSON."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400 or "text/html" not in request.headers.get("Accept", ""):
            raise
        text = message_page(f"{error.status} {error.reason}", error.text or "")
        return web.Response(text=text, status=error.status, content_type="text/html")


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def _local(path: str) -> str:
    """Returns the path as an address on this server: `//host` would lead to another one."""
    return "/" + path.lstrip("/\\")
