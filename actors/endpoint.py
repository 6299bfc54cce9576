"""The OpenAI-compatible endpoint of one rollout actor: HTTP in front of the records of its episodes.

    POST /v1/chat/completions     GET /v1/models     each with `Authorization: Bearer KEY`, the key of one episode

A key is made when an episode's program starts and is worth nothing once the episode ends or goes on elsewhere: then,
as with any other key, the answer is 401 and nothing is sampled. A streamed answer begins as soon as it is sampled; its
end comes when its turn is in the buffer. A client that goes away gives its request up.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
from typing import Any

from aiohttp import web

from actors import chat_answer
from actors.chat_request import ApiError, ChatRequest, bad, parse
from actors.record import UNREAD, Asked, Record, wrong_key
from klong_rl.config import AgentEndpointConfig
from klong_rl.errors import UserError

log = logging.getLogger(__name__)

LARGEST_BODY = 64 << 20  # bytes: more text than any context holds
KEY_BYTES = 24
STOP_DEADLINE_S = 5.0  # for connections of agents that have been refused everything by then


class Endpoint:
    """Serves from `start` to `close`. Within one event loop."""

    def __init__(self, config: AgentEndpointConfig, temperature: float, spell: chat_answer.Spell) -> None:
        self._config = config
        self._spell = spell
        self._temperature = temperature
        self._records: dict[str, Record] = {}
        self._said: set[str] = set()  # parameters that were overridden
        app = web.Application(client_max_size=LARGEST_BODY, middlewares=[errors_as_json])
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{model}", self._model),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=STOP_DEADLINE_S)
        self.url = ""

    async def start(self) -> None:
        """Listen. Raises UserError for an address that can't be listened on."""
        await self._runner.setup()
        host, port = self._config.host, self._config.port
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            where = f"agent.endpoint: {host}:{port}"
            raise UserError(f"{where} can't be listened on ({error.strerror}); use another address") from error
        port = self._runner.addresses[0][1]
        shown = self._config.advertise or host
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/v1"

    async def close(self) -> None:
        await self._runner.cleanup()

    def open(self, record: Record) -> str:
        """The key of an episode."""
        key = f"sk-klong-{secrets.token_urlsafe(KEY_BYTES)}"
        self._records[key] = record
        return key

    def revoke(self, key: str) -> None:
        """Its key is worth nothing from here on."""
        self._records.pop(key, None)

    def _record(self, request: web.Request) -> Record:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        for key, record in self._records.items():
            if scheme.lower() == "bearer" and hmac.compare_digest(key.encode(), given.strip().encode()):
                return record
        raise wrong_key()

    async def _models(self, request: web.Request) -> web.Response:
        self._record(request)
        return web.json_response({"object": "list", "data": [chat_answer.model()]})

    async def _model(self, request: web.Request) -> web.Response:
        self._record(request)
        return web.json_response(chat_answer.model())

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        record = self._record(request)
        asked = record.ask(self._parsed(await body_of(request)))
        if asked.request.stream:
            return await self._stream(request, record, asked)
        answer = await record.answer(asked)
        return web.json_response(chat_answer.whole(answer, asked.request, self._spell))

    def _parsed(self, body: Any) -> ChatRequest:
        asked = parse(body, self._temperature)
        for name in set(asked.overridden) - self._said:
            self._said.add(name)
            log.warning("an agent asks for %s=%s; what is sampled is trained, so the run's own holds", name, body[name])
        return asked

    async def _stream(self, request: web.Request, record: Record, asked: Asked) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        stream = chat_answer.Stream(asked.request)
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        hear = None if asked.request.calls_tools else pieces.put_nowait  # calls are told from text at the end
        work = asyncio.ensure_future(record.answer(asked, hear))
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            await send(response, stream.opening())
            while (text := await pieces.get()) is not None:
                await send(response, stream.text(text))
            for event in stream.end(await work, self._spell):
                await send(response, event)
            await response.write(b"data: [DONE]\n\n")
        except ApiError as error:
            await send(response, error.body)
        except ConnectionResetError:
            asked.abandon(UNREAD)
        except asyncio.CancelledError:
            asked.abandon(UNREAD)
            raise
        finally:
            await asyncio.wait([work])
            work.exception()  # an ApiError that is told above, or to nobody
        await response.write_eof()
        return response


async def send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(event)}\n\n".encode())


async def body_of(request: web.Request) -> Any:
    """The JSON of a request. Raises ApiError."""
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise bad(f"the body is no JSON: {error}", "body") from error


@web.middleware
async def errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    """Every refusal in OpenAI's shape."""
    try:
        return await handler(request)
    except ApiError as error:
        return web.json_response(error.body, status=error.status)
    except web.HTTPException as error:
        named = ApiError(error.status, f"{request.method} {request.path}: {error.reason}", error.reason.lower())
        return web.json_response(named.body, status=error.status)
