"""A headless Chromium over its DevTools protocol, as much of it as the tests and the benchmark of the page need."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = "chromium"
START_S = 30.0
ANSWER_S = 60.0
WAIT_S = 20.0


class Page:
    """One tab. `problems` are exceptions, errors in the console and what the content policy refused."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self._reader = asyncio.create_task(self._read())
        self.problems: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(ANSWER_S):
            return await self._answers[number]

    async def run(self, script: str) -> Any:
        """The value of a script, awaited if it is a promise; the page's policy holds for what it evaluates."""
        answer = await self.call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            allowUnsafeEvalBlockedByCSP=False,
        )
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def goto(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def until(self, script: str, seconds: float = WAIT_S) -> Any:
        """The first true value of an expression; one that asks an element that isn't there yet is false.

        AssertionError, with what the page shows, if there is none in time.
        """
        tried = f"(() => {{ try {{ return {script} }} catch (e) {{ if (!(e instanceof TypeError)) throw e }} }})()"
        give_up = time.monotonic() + seconds
        while not (value := await self.run(tried)):
            if time.monotonic() > give_up:
                text = await self.run("document.body ? document.body.innerText.slice(0, 2000) : ''")
                raise AssertionError(
                    f"{script} stayed false for {seconds:g} s; problems {self.problems}; page:\n{text}"
                )
            await asyncio.sleep(0.05)
        return value

    async def click(self, selector: str) -> None:
        """A click of the mouse in the middle of the first element that matches."""
        await self.until(f"!!document.querySelector({json.dumps(selector)})")
        x, y = await self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def text(self, selector: str) -> str:
        """What the first element that matches shows."""
        return await self.until(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText")

    async def screenshot(self, path: Path) -> None:
        """As PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    async def size(self, width: int, height: int, dark: bool = False) -> None:
        """Of the page, and the reader's colours."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            waiting = self._answers.pop(told.get("id", 0), None)
            if waiting is not None and not waiting.done():
                if "error" in told:
                    waiting.set_exception(AssertionError(str(told["error"])))
                else:
                    waiting.set_result(told["result"])
            elif told.get("method") == "Runtime.exceptionThrown":
                details = told["params"]["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description", details["text"]))
            elif told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                entry = told["params"]["entry"]
                self.problems.append(f"{entry['text']} {entry.get('url', '')}")


@asynccontextmanager
async def browser(scratch: Path) -> AsyncIterator[Page]:
    """A page of a Chromium of our own, which ends with it. `scratch` is an empty folder."""
    program = shutil.which(PROGRAM)
    assert program, f"there is no {PROGRAM}: .ci/system.sh {PROGRAM}"
    arguments = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
    process = await asyncio.create_subprocess_exec(
        program, *arguments, "--remote-debugging-port=0", f"--user-data-dir={scratch}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        told = scratch / "DevToolsActivePort"
        async with asyncio.timeout(START_S):
            while not (told.exists() and told.read_text().count("\n")):
                await asyncio.sleep(0.05)
        port = told.read_text().split("\n")[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                [tab] = [each for each in await answer.json() if each["type"] == "page"]
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                await page.size(1600, 1000)
                yield page
    finally:
        process.terminate()
        await process.wait()
