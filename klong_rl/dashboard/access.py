"""Who may look, and what the page may do.

On a loopback address anyone on the machine may, if the browser says that it asked this machine (a page elsewhere can't
point its own name here). With a token, whoever has it: by `Authorization: Bearer`, or once by `?token=`, which becomes
a cookie that no script can read.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from aiohttp import web

TOKEN_ENV = "KLONG_DASHBOARD_TOKEN"
COOKIE = "klong_dashboard"
LOCAL_NAMES = ("localhost",)

# Scripts and styles are this server's files alone; a text that got into the page as markup could not run, and no script
# can make markup of a text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def asked_host(header: str) -> str:
    """The host in a Host header, without its port; "" for none that is one."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def guard(token: str):
    """The middleware that lets in who may look. Without a token: who asked a loopback address by its own name."""

    @web.middleware
    async def middleware(request: web.Request, handler) -> web.StreamResponse:
        if not token:
            if not is_loopback(asked_host(request.headers.get("Host", ""))):
                raise web.HTTPForbidden(text="ask for 127.0.0.1 or localhost: this dashboard is for its own machine")
        elif _is(token, request.query.get("token", "")):
            answer = web.HTTPFound(request.rel_url.with_query(None))
            answer.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
            raise answer
        elif not _is(token, request.cookies.get(COOKIE, "")) and not _is(token, _bearer(request)):
            raise web.HTTPUnauthorized(text="open the address that the dashboard printed, with its ?token=")
        return await handler(request)

    return middleware


async def harden(_: web.Request, response: web.StreamResponse) -> None:
    """On every answer, errors included."""
    response.headers.update(HEADERS)


def _bearer(request: web.Request) -> str:
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    return given if kind == "Bearer" else ""


def _is(token: str, given: str) -> bool:
    return hmac.compare_digest(token.encode(), given.encode())
