"""The routes of `lwz ui`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from aiohttp import web

from megatron_lwz.errors import DataError, LwzError
from megatron_lwz.http.hosts import Hosts
from megatron_lwz.http.server import make_app, read_object
from megatron_lwz.ui import access, bands, export, live
from megatron_lwz.ui.filters import Filters
from megatron_lwz.ui.notes import Note
from megatron_lwz.ui.pages import compare, overview, prompt_steps, reading, rollout_list, siblings
from megatron_lwz.ui.pages.layout import message_page
from megatron_lwz.ui.run import Run
from megatron_lwz.units import MIB

_MAX_BODY = MIB
_KINDS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Pages:
    """Answers the requests. What reads files runs in threads, so that a slow disk holds up no other request."""

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self._runs = runs
        self._static = _static_files()

    def routes(self) -> list[web.AbstractRouteDef]:
        """Returns all routes."""
        one = r"/runs/{run}/rollouts/{group:-?\d{1,18}}/{rollout:\d{1,9}}"
        return [
            web.get("/", self._start),
            web.get("/compare", self._compare),
            web.get("/static/{name}", self._file),
            web.get("/runs/{run}", self._page(overview.page)),
            web.get("/runs/{run}/live", self._page(overview.content)),
            web.get("/runs/{run}/events", self._events),
            web.get("/runs/{run}/rollouts", self._page(lambda run, query: rollout_list.page(run, Filters.read(query)))),
            web.get(one, self._reader),
            web.get(one + "/bands", self._bands),
            web.get(one + "/markdown", self._markdown),
            web.post(one + "/note", self._note),
            web.get("/runs/{run}/prompt", self._page(prompt_steps.page)),
            web.get(r"/runs/{run}/groups/{group:-?\d{1,18}}", self._siblings),
        ]

    async def _start(self, _: web.Request) -> web.StreamResponse:
        if len(self._runs) == 1:
            raise web.HTTPSeeOther(f"/runs/{next(iter(self._runs))}")
        return _html(await asyncio.to_thread(overview.runs_page, list(self._runs.values())))

    async def _file(self, request: web.Request) -> web.StreamResponse:
        found = self._static.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound(text="no such file")
        kind = _KINDS[request.match_info["name"].rpartition(".")[2]]
        return web.Response(text=found, content_type=kind, charset="utf-8", headers={"Cache-Control": "no-cache"})

    def _page(self, make: Callable[[Run, Mapping[str, str]], str | None]) -> Any:
        async def answer(request: web.Request) -> web.StreamResponse:
            return await self._made(request, lambda run: make(run, request.query))

        return answer

    async def _made(self, request: web.Request, make: Callable[[Run], str | None]) -> web.StreamResponse:
        """Answers with a page made in a thread; 404 if there is none, a page with the reason for a file that is damaged."""
        run = self._run(request)
        try:
            text = await asyncio.to_thread(make, run)
        except LwzError as error:
            return _html(message_page("This cannot be shown", str(error)), status=500)
        if text is None:
            raise web.HTTPNotFound(text="there is no such rollout in this run's journal")
        return _html(text)

    async def _reader(self, request: web.Request) -> web.StreamResponse:
        group, rollout = _place(request)
        return await self._made(request, lambda run: reading.page(run, group, rollout))

    async def _siblings(self, request: web.Request) -> web.StreamResponse:
        return await self._made(request, lambda run: siblings.page(run, int(request.match_info["group"])))

    async def _bands(self, request: web.Request) -> web.StreamResponse:
        group, rollout = _place(request)
        found = await asyncio.to_thread(bands.read, self._run(request), group, rollout)
        if found is None:
            raise web.HTTPNotFound(text="there is no such rollout in this run's journal")
        return web.json_response(body=found)

    async def _markdown(self, request: web.Request) -> web.StreamResponse:
        group, rollout = _place(request)
        run = self._run(request)
        text = await asyncio.to_thread(export.markdown, run, group, rollout)
        if text is None:
            raise web.HTTPNotFound(text="there is no such rollout in this run's journal")
        headers = {"Content-Disposition": f'attachment; filename="{run.name}-{group}-{rollout}.md"'}
        return web.Response(text=text, content_type="text/markdown", charset="utf-8", headers=headers)

    async def _compare(self, request: web.Request) -> web.StreamResponse:
        names = dict.fromkeys(request.query.getall("run", []))
        runs = [self._runs[name] for name in names if name in self._runs]
        if not 2 <= len(runs) <= compare.MOST:
            raise web.HTTPBadRequest(text=f"choose 2 to {compare.MOST} runs to compare")
        return _html(await asyncio.to_thread(compare.page, runs, request.query))

    async def _note(self, request: web.Request) -> web.StreamResponse:
        group, rollout = _place(request)
        run, body = self._run(request), await read_object(request)
        if not isinstance(body.get("flag"), bool) or not isinstance(body.get("text"), str):
            raise web.HTTPBadRequest(text="a note needs 'flag' (true or false) and 'text'")
        note = Note(group, rollout, body["flag"], body["text"])
        try:
            await asyncio.to_thread(run.notes.set, note)
        except (DataError, OSError) as error:
            raise web.HTTPInternalServerError(text=f"the note is not saved: {error}") from error
        return web.json_response({"saved": True})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await live.stream(request, self._run(request))

    def _run(self, request: web.Request) -> Run:
        run = self._runs.get(request.match_info["run"])
        if run is None:
            raise web.HTTPNotFound(text="this server shows no run of that name")
        return run


def make_ui(runs: Mapping[str, Run], token: str, hosts: Hosts) -> web.Application:
    """Returns the app. Requests need `token` and a Host header that is one of `hosts`."""
    app = make_app(Pages(runs).routes(), token=None, hosts=hosts, max_body_bytes=_MAX_BODY)
    app.middlewares.extend([access.errors_as_pages, access.require_own_origin, access.require_token(token)])
    app.on_response_prepare.append(access.add_headers)
    live.watch(app, runs)
    return app


def _place(request: web.Request) -> tuple[int, int]:
    return int(request.match_info["group"]), int(request.match_info["rollout"])


def _html(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")


def _static_files() -> dict[str, str]:
    """Returns the files that the pages load, by name. The report's style sheet is the base of ours."""
    folder = files("megatron_lwz.ui") / "static"
    found = {
        item.name: item.read_text(encoding="utf-8")
        for item in folder.iterdir()
        if item.name.rpartition(".")[2] in _KINDS
    }
    return found | {"report.css": (files("megatron_lwz.report") / "style.css").read_text(encoding="utf-8")}
