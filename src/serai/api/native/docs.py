"""The API's own pages: a front page with sign-in, and Swagger UI. Nothing is fetched from another host.

Swagger UI's files come from the package `fastapi-offline`.
"""

import asyncio
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

from fastapi import FastAPI, Path
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from serai import __version__
from serai.api.access import Routes, caller_or_none
from serai.auth.policy import PUBLIC, Role

routes = Routes("system")

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "start.js": "text/javascript",
    "front.js": "text/javascript",
}
Asset = Annotated[Literal["swagger-ui-bundle.js", "swagger-ui.css", "start.js", "front.js"], Path()]

_FRONT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Serai</title><link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 34rem; margin: 12vh auto; padding: 0 1rem }
form { display: flex; gap: .5rem; flex-wrap: wrap }
input { flex: 1 1 16rem; font: inherit; padding: .5rem } button { font: inherit; padding: .5rem 1rem }
[role=alert] { color: light-dark(#a00, #f88) } code { background: light-dark(#0001, #fff2); padding: 0 .3em }
</style></head>
<body><main>
<h1>Serai</h1>
<p>Version __VERSION__. One server for every generative model of a product.</p>
<form id="sign-in"><label for="key">API key</label>
<input id="key" type="password" autocomplete="off" required placeholder="sk-serai-…">
<button>Sign in</button></form>
<p role="alert" id="problem"></p>
<p>The first start wrote an admin key to <code>admin.key</code> in the server's home folder.
Signed in, read the <a href="/docs">API reference</a>.</p>
</main><script src="/docs/front.js"></script></body></html>
"""

_FRONT_SCRIPT = """document.getElementById("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const problem = document.getElementById("problem");
  problem.textContent = "";
  const answer = await fetch("/login", {
    method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify({ api_key: document.getElementById("key").value.trim() }),
  });
  if (answer.ok) { location.assign("/docs"); return; }
  const { error } = await answer.json();
  problem.textContent = error.hint ? `${error.message} ${error.hint}` : error.message;
});
"""

_DOCS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Serai API</title><link rel="icon" href="data:,"><link rel="stylesheet" href="/docs/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script><script src="/docs/start.js"></script></body></html>
"""

_DOCS_SCRIPT = """fetch("/whoami").then((answer) => answer.json()).then((me) => {
  window.ui = SwaggerUIBundle({
    url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
    requestInterceptor: (request) => {
      if (me.csrf_token) { request.headers["X-CSRF-Token"] = me.csrf_token; }
      return request;
    },
  });
});
"""


@routes.get("/", access=PUBLIC, include_in_schema=False, methods=["GET", "HEAD"])
async def front(request: Request) -> Response:
    """Say what this is; a browser gets a page to sign in, a client of Ollama the words that it looks for."""
    if _asks_for_ollama(request.headers):
        return PlainTextResponse("Ollama is running")
    if "text/html" in request.headers.get("accept", ""):
        return _page(_FRONT.replace("__VERSION__", __version__))
    return JSONResponse({"name": "serai", "version": __version__, "docs": "/docs", "health": "/health"})


@routes.get("/docs", access=PUBLIC, include_in_schema=False)
async def docs(request: Request) -> Response:
    """Show the API reference; without a session, the page to sign in."""
    return RedirectResponse("/", 303) if caller_or_none(request) is None else _page(_DOCS)


@routes.get("/docs/{name}", access=PUBLIC, include_in_schema=False)
async def asset(name: Asset) -> Response:
    """Return a file of the pages; the same for everybody."""
    content = await asyncio.to_thread(_asset, name)
    return Response(content, media_type=_TYPES[name], headers={"cache-control": "public, max-age=3600"})


@routes.get("/openapi.json", access=Role.VIEWER, include_in_schema=False)
async def openapi(request: Request) -> Response:
    """Return the description of the API. The first call makes it, in seconds that keep nobody else waiting."""
    app = request.app
    if not hasattr(app.state, "description"):
        app.state.description = asyncio.ensure_future(asyncio.to_thread(_described, app))
    return Response(await asyncio.shield(app.state.description), media_type="application/json")


def _described(app: FastAPI) -> bytes:
    return bytes(JSONResponse(app.openapi()).body)


def _asks_for_ollama(headers: Headers) -> bool:
    """Say whether a client of Ollama calls, or somebody who would rather have plain text than a page."""
    if headers.get("user-agent", "").startswith(("ollama-", "ollama/")):
        return True
    accepted = dict(_accepted(part) for part in headers.get("accept", "").lower().split(","))
    any_kind = accepted.get("text/*", accepted.get("*/*", 0.0))
    return accepted.get("text/plain", any_kind) > accepted.get("text/html", any_kind)


def _accepted(part: str) -> tuple[str, float]:
    """Return a media type and its weight (RFC 9110, 12.5.1); 0 for a weight that is no number."""
    kind, *parameters = (text.strip() for text in part.split(";"))
    weight = next((text.removeprefix("q=") for text in parameters if text.startswith("q=")), "1")
    try:
        return kind, float(weight)
    except ValueError:
        return kind, 0.0


@cache
def _asset(name: str) -> bytes:
    own = {"start.js": _DOCS_SCRIPT, "front.js": _FRONT_SCRIPT}
    return own[name].encode() if name in own else (files("fastapi_offline") / "static" / name).read_bytes()


def _page(html: str) -> HTMLResponse:
    return HTMLResponse(html, headers={"content-security-policy": _PAGE_POLICY})
