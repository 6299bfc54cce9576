"""The server of the page: static files, and what they ask for as JSON. Every route is a GET.

    /                                the page
    /api/run                         what run this is, its stages, whether it is up; what changes seldom
    /api/steps                       the numbers of all learner steps, a column a name
    /api/fleet                       the fleet now, and the last minutes of it
    /api/episodes?stage=&sort=...    a page of the table (index.Query)
    /api/episode?id=ID               one episode: its time line, verdict, record
    /api/turns?id=ID&first=&last=    some of its turns, with tokens and texts
    /api/content?id=ID&blob=SHA256   a content that its verdict rests on

Files are read in threads, so a large one holds up nobody else.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from klong_rl import learned
from klong_rl.blocking import in_thread
from klong_rl.buffer import Unknown
from klong_rl.dashboard import access, evidence, index, trajectory
from klong_rl.dashboard.fleet import FleetHistory
from klong_rl.dashboard.live import FAULTS, LiveRun, look_as_json
from klong_rl.dashboard.steps import Steps
from klong_rl.dashboard.text import TokenText, find_tokenizer
from klong_rl.learned import read_learned
from klong_rl.preflight import CONFIG_FILE

STATIC = Path(__file__).parent / "static"
LOOK_EVERY_S = 2.0  # for new files of the archive
KEPT = 4  # trajectories in memory: a page asks for one many times


class Dashboard:
    """Of one run directory. `application` serves it."""

    def __init__(self, run_dir: Path, token: str = "") -> None:
        self.run_dir = run_dir
        self._token = token
        self._live = LiveRun(run_dir)
        self._index = index.EpisodeIndex(run_dir)
        self._fleet = FleetHistory(run_dir)
        self._steps = Steps(run_dir)
        self._text = TokenText(None)
        self._tokenizer: Path | None = None
        self._kept: OrderedDict[str, trajectory.Trajectory] = OrderedDict()
        self._unread = 0

    def application(self) -> web.Application:
        """To be run by aiohttp."""
        app = web.Application(middlewares=[access.guard(self._token)])
        app.on_response_prepare.append(access.harden)
        app.cleanup_ctx.append(self._beside)
        app.router.add_get("/", self._page)
        app.router.add_static("/static", STATIC)
        for name in ("run", "steps", "fleet", "episodes", "episode", "turns", "content"):
            app.router.add_get(f"/api/{name}", getattr(self, f"_{name}_answer"))
        return app

    async def _beside(self, _: web.Application):
        keepers = [asyncio.create_task(self._keep_index()), asyncio.create_task(self._fleet.keep())]
        yield
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await self._live.close()

    async def _keep_index(self) -> None:
        """Take in what the archive has, a file at a time, so that the first page need not wait for the last file."""
        while True:
            paths = await in_thread(self._index.unread)
            batch = max(1, len(paths) // 10)
            for first in range(0, len(paths), batch):
                self._unread = len(paths) - first
                await in_thread(self._index.read_more, paths[first : first + batch])
            self._unread = 0
            await asyncio.sleep(LOOK_EVERY_S)

    async def _page(self, _: web.Request) -> web.StreamResponse:
        return web.FileResponse(STATIC / "index.html")

    async def _run_answer(self, _: web.Request) -> web.Response:
        config = json.loads((self.run_dir / CONFIG_FILE).read_text()) if (self.run_dir / CONFIG_FILE).exists() else {}
        fleet = self._fleet.newest
        return _json(
            {
                "name": self.run_dir.name,
                "model": (config.get("model") or {}).get("name", ""),
                "up": self._fleet.is_fresh(),
                "phase": fleet.get("phase", "") if self._fleet.is_fresh() else "",
                "stages": (config.get("curriculum") or {}).get("stages", []),
                "window": config.get("window", {}),
                "max_staleness": (config.get("rollout") or {}).get("max_staleness"),
                "summary": self._steps.summary(),
            }
        )

    async def _steps_answer(self, request: web.Request) -> web.Response:
        return _json(await in_thread(self._steps.columns), request)

    async def _fleet_answer(self, request: web.Request) -> web.Response:
        answer: dict[str, Any] = {"fleet": self._fleet.as_json(), "buffer": None, "problem": ""}
        try:
            answer["buffer"] = look_as_json(await self._live.look())
        except FAULTS as fault:
            answer["problem"] = str(fault)
        return _json(answer, request)

    async def _episodes_answer(self, request: web.Request) -> web.Response:
        query, table, problem = _query(request), self._index.table, ""
        try:
            table = _with_live(table, await self._live.rows(), self._index)
        except FAULTS as fault:
            problem = str(fault)
        page = await in_thread(index.select, table, query)
        facets = await in_thread(index.facets, table)
        answer = {"total": page.total, "rows": page.rows, "facets": facets, "of": table.num_rows}
        return _json(answer | {"problem": problem, "unread_files": self._unread}, request)

    async def _episode_answer(self, request: web.Request) -> web.Response:
        episode = request.query.get("id", "")
        found, spec = await self._find(episode, fresh=True)
        record, problem = None, ""
        if found.verdict:
            sha256 = found.verdict["evidence"].get("record", "")
            record = await in_thread(evidence.find_record, self.run_dir, episode, found.epoch, sha256)
            problem = "" if record or not sha256 else "the record of the verdict is not kept, or was changed"
        answer = {
            "spec": spec,
            "epoch": found.epoch,
            "outcome": found.outcome,
            "detail": found.detail,
            "dropped": found.dropped,
            "verdict": found.verdict,
            "record": evidence.shown(record) if record else None,
            "record_problem": problem,
            "step": found.trained.step,
            "group": await self._siblings(spec["group"]),
            "turns": trajectory.summary(found),
            "prefix": await self._prefix(found),
            "has_text": self._text.known,
            "has_gaps": bool(found.trained.learned),
        }
        return _json(answer, request)

    async def _turns_answer(self, request: web.Request) -> web.Response:
        episode, first, last = request.query.get("id", ""), _number(request, "first", 0), _number(request, "last", 0)
        last = min(last, first + trajectory.PAGE_TURNS)
        found, _ = await self._find(episode)
        if last > len(found.turns):
            found, _ = await self._find(episode, fresh=True)
        sizes = {"tokens": _number(request, "tokens", trajectory.PAGE_TOKENS)}
        sizes["chars"] = _number(request, "chars", trajectory.PAGE_CHARS)
        text = await self._tokens()
        page = await in_thread(lambda: trajectory.turn_page(found, first, last, text.pieces, **sizes))
        return _json({"turns": page}, request)

    async def _content_answer(self, request: web.Request) -> web.Response:
        episode, blob = request.query.get("id", ""), request.query.get("blob", "")
        found, _ = await self._find(episode)
        sha256 = found.verdict["evidence"].get("record", "") if found.verdict else ""
        record = await in_thread(evidence.find_record, self.run_dir, episode, found.epoch, sha256)
        if record is None or blob not in evidence.contents_of(record):
            raise _missing(f"the record of {episode} names no content {blob}")
        return _json(await in_thread(evidence.content, self.run_dir, blob), request)

    async def _find(self, episode: str, fresh: bool = False) -> tuple[trajectory.Trajectory, dict[str, Any]]:
        """An episode, of a file or of the buffer, and what it was admitted as. One of the buffer grows: `fresh`."""
        path = self._index.file_of(episode)
        if path is not None:
            if episode not in self._kept:
                self._keep(episode, await in_thread(self._read, path, episode))
            self._kept.move_to_end(episode)
            return self._kept[episode], self._index.row(episode)
        if not fresh and episode in self._kept:
            return self._kept[episode], {}
        try:
            view, found = await self._live.trajectory(episode)
        except Unknown:
            raise _missing(f"there is no episode {episode}") from None
        except FAULTS as fault:
            raise _missing(f"no file holds episode {episode}, and the buffer can't be asked: {fault}") from fault
        self._keep(episode, found)
        spec = view.spec
        return found, {
            "episode": spec.id,
            "group": view.group,
            "task": spec.task.id,
            "stage": spec.stage,
            "purpose": spec.purpose,
            "state": view.state,
            "score": view.verdict.score if view.verdict else None,
            "owner": view.owner,
        }

    def _read(self, path: Path, episode: str) -> trajectory.Trajectory:
        found = trajectory.read_archived(path, episode)
        step, windows = found.trained.step, {window for window in found.trained.windows if window}
        if step is not None and windows:
            kept = read_learned(self.run_dir / learned.FOLDER, step, windows)
            found.trained.learned = trajectory.learned_of(found, kept)
        return found

    def _keep(self, episode: str, found: trajectory.Trajectory) -> None:
        self._kept[episode] = found
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    async def _siblings(self, group: str) -> list[dict[str, Any]]:
        rows = await in_thread(self._index.group, group)
        return [{name: row[name] for name in ("episode", "score", "outcome", "advantage", "turns")} for row in rows]

    async def _prefix(self, found: trajectory.Trajectory) -> dict[str, Any] | None:
        if found.prefix_P is None:
            return None
        text, tokens = await self._tokens(), found.prefix_P[: 4 * trajectory.PAGE_CHARS].tolist()
        pieces = await in_thread(text.pieces, tokens)
        return trajectory.cut("".join(pieces), trajectory.PAGE_CHARS) | {"tokens": len(found.prefix_P)}

    async def _tokens(self) -> TokenText:
        if not self._text.known:
            path = find_tokenizer(self.run_dir)
            if path is not None:
                self._text = await in_thread(TokenText, path)
        return self._text


def _with_live(table, live, files: index.EpisodeIndex):
    """Both, an episode once: one that was archived since the buffer was asked is the file's."""
    import pyarrow as pa

    new = [place for place, episode in enumerate(live["episode"].to_pylist()) if episode not in files]
    return pa.concat_tables([table, live.take(new)]) if new else table


def _query(request: web.Request) -> index.Query:
    given = {name: value for name, value in request.query.items() if value != ""}
    try:
        return msgspec.convert(given, index.Query, strict=False)
    except msgspec.ValidationError as error:
        raise web.HTTPBadRequest(text=json.dumps({"error": str(error)}), content_type="application/json") from error


def _number(request: web.Request, name: str, default: int) -> int:
    given = request.query.get(name, "")
    if not given:
        return default
    if not given.isdecimal() or len(given) > 9:
        problem = json.dumps({"error": f"{name}={given[:40]} is not a number of turns, tokens or characters"})
        raise web.HTTPBadRequest(text=problem, content_type="application/json")
    return int(given)


def _missing(text: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(text=json.dumps({"error": text}), content_type="application/json")


def _json(value: Any, request: web.Request | None = None) -> web.Response:
    response = web.Response(body=msgspec.json.encode(value), content_type="application/json")
    if request is not None:
        response.enable_compression()
    return response
