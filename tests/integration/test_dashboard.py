"""The page in a real headless Chromium: every view of a recorded run, hostile texts, and a run while it is up."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from klong_rl.dashboard.server import Dashboard
from tests.browser import PROGRAM, browser
from tests.made_runs import RunMaker, Said

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(PROGRAM), reason=f"needs {PROGRAM}: .ci/system.sh {PROGRAM}"),
]

TURNS = 300
RAN = "window.ran = (window.ran || 0) + 1"
HOSTILE = (
    f"<script>{RAN}</script><img src=x onerror='{RAN}'><svg onload='{RAN}'></svg>"
    f"<iframe srcdoc=\"<script>parent.{RAN}</script>\"></iframe><a href=\"javascript:{RAN}\">x</a>"
    "<style>body{display:none}</style></pre></div><!-- \u2028 {{7*7}} ${7*7} \x1b[31m"
)  # fmt: skip


@pytest.fixture
async def page(tmp_path):
    (tmp_path / "chromium").mkdir()
    async with browser(tmp_path / "chromium") as page:
        yield page
        assert page.problems == []
        assert await page.run("window.ran === undefined")


@pytest.fixture
async def serve():
    servers = []

    async def start(run_dir: Path) -> str:
        server = TestServer(Dashboard(run_dir).application())
        servers.append(server)
        await server.start_server()
        return f"http://127.0.0.1:{server.port}/"

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
def recorded(tmp_path) -> Path:
    """A group of two, one with many turns, trained, with a verdict that rests on something; and evaluation."""
    maker = RunMaker(tmp_path / "runs" / "recorded")
    maker.steps()
    short = [Said(f"echo {i}", f"echo {i}", f"{i}\n" * 30, i % 2) for i in range(6)]
    long = [Said(f"cat file{i} && make", f"cat file{i}", f"line {i}\n" * (i % 20), 0) for i in range(TURNS)]
    named = maker.record("s1-g0-e1", "answer.txt", "the answer is 42", "judge-1")
    group = maker.group("s1-g0", [short, long], evidence=[{}, {"record": named, "answer": "42"}])
    maker.files.write([group, maker.group("eval-g1", [short], task="relay/held-out/7", stage=2, step=None)])
    maker.keep_learned(group, gap=0.02)
    return maker.run_dir


async def test_every_view_of_a_recorded_run(page, serve, recorded):
    base = await serve(recorded)
    await page.goto(base)
    await page.until("document.querySelectorAll('[data-testid=curves] canvas').length >= 5")
    assert await page.text("[data-testid=run]") == "recorded"
    await page.click("nav a[href='#/fleet']")
    assert "not up" in await page.text("[data-testid=fleet]")
    await page.click("nav a[href='#/episodes']")
    await page.until("document.querySelectorAll('[data-testid=rows] tbody tr').length === 3")
    await filter_and_sort(page)
    await page.click("[data-testid=rows] tbody tr td a")
    await page.until("!!document.querySelector('[data-testid=turn-0] .tokens .t')")
    await colours(page)
    await evidence(page)
    await scroll_to_the_end(page)


async def filter_and_sort(page):
    await page.run(
        "(() => { const s = document.querySelector('[data-testid=filter-purpose]'); s.value = 'eval';"
        "s.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )
    await page.until("document.querySelector('[data-testid=total]').innerText.startsWith('1 of 3')")
    await page.click(".filters a.button")
    await page.until("document.querySelector('[data-testid=total]').innerText.startsWith('3 of 3')")
    await page.run(
        "(() => { const s = document.querySelector('[data-testid=search]'); s.value = 'G0';"
        "s.dispatchEvent(new Event('input', {bubbles: true})) })()"
    )
    await page.until("document.querySelectorAll('[data-testid=rows] tbody tr').length === 2")
    await page.click("[data-testid=rows] th:nth-child(9)")
    await page.until("document.querySelector('[data-testid=rows] tbody a').innerText === 's1-g0-e1'")


async def colours(page):
    for mode in ("version", "gap", "mask", "advantage", "logprob"):
        await page.click(f"[data-testid=mode-{mode}]")
        await page.until(f"document.querySelector('[data-testid=mode-{mode}]').className === 'on'")
        style = await page.run("document.querySelector('[data-testid=turn-0] .tokens .t:nth-child(2)').className")
        expected = {"version": "v", "gap": "s4", "mask": "target", "advantage": "zero", "logprob": "s"}[mode]
        assert style.startswith(f"t {expected}"), (mode, style)
    text = await page.run("document.querySelector('[data-testid=turn-1] .tokens').textContent")
    assert text == "cat file1 && make"


async def evidence(page):
    assert "0.500" in await page.text("[data-testid=score]")
    for place in ("1", "2", "3"):
        await page.until(f"document.querySelectorAll('.blob button').length >= {place}")
    await page.click(".blob button")
    await page.until("document.querySelector('.blob pre').textContent === 'the answer is 42'")


async def scroll_to_the_end(page):
    """Few turns are in the page wherever it stands; the last one comes; the time line leads anywhere."""
    assert await page.run("document.querySelectorAll('.turn').length") < 40
    await page.until(
        "(() => { const v = document.querySelector('.virtual'); v.scrollTop = v.scrollHeight;"
        f"return !!document.querySelector('[data-testid=turn-{TURNS - 1}] .tokens') }})()"
    )
    assert await page.run("document.querySelectorAll('.turn').length") < 40
    cut = await page.run(
        "fetch('/api/episode?id=s1-g0-e1').then((r) => r.json()).then(({turns}) => "
        "turns.context_start.findIndex((start, i) => i && start > turns.context_start[i - 1]))"
    )
    await page.run(f"location.hash = '#/episode/s1-g0-e1?turn={cut}'")
    await page.until(f"!!document.querySelector('[data-testid=cut-{cut}]')")
    await page.click("[data-testid=timeline]")
    await page.until(f"!!document.querySelector('[data-testid=turn-{TURNS // 2}] .tokens')")
    await page.click(".choice button:last-child")


async def test_hostile_texts_stay_texts(page, serve, tmp_path):
    maker = RunMaker(tmp_path / "runs" / "h", model=HOSTILE)
    maker.steps()
    named = maker.record("h-g0-e1", HOSTILE, HOSTILE, HOSTILE)
    said = [Said(HOSTILE, HOSTILE, HOSTILE, 1)] * 3
    maker.files.write(
        [maker.group("h-g0", [said, said], task=HOSTILE, evidence=[{}, {"record": named, HOSTILE: HOSTILE}])]
    )
    base = await serve(maker.run_dir)
    await page.goto(base)
    assert await page.text("[data-testid=model]") == shown(HOSTILE)
    await page.goto(base + "#/episodes")
    await page.until("document.querySelectorAll('[data-testid=rows] tbody tr').length === 2")
    assert HOSTILE in await page.run("document.querySelector('[data-testid=rows]').textContent")
    await page.goto(base + "#/episode/h-g0-e1")
    await page.until("!!document.querySelector('[data-testid=turn-2] .tokens')")
    turn = await page.run("document.querySelector('[data-testid=turn-0]').textContent")
    assert turn.count(HOSTILE) == 3  # what was sampled, the command, its output
    for number in range(4):
        await page.run(f"document.querySelectorAll('.blob button')[{number}].click()")
    await page.until("document.querySelectorAll('.blob pre').length === 4")
    sidebar = await page.run("document.querySelector('aside').textContent")
    assert sidebar.count(HOSTILE) >= 9
    # As the address of a view, too.
    await page.goto(base + "#/episode/" + "%3Cimg%20src=x%20onerror=window.ran=1%3E")
    await page.until("!!document.querySelector('.problem')")
    assert await page.run("document.querySelectorAll('iframe, main img, svg[onload], main script').length") == 0
    page.problems[:] = [p for p in page.problems if "status of 404" not in p]


def shown(text: str) -> str:
    """As `innerText` has it: white space in a row is one space."""
    return " ".join(text.replace("\u2028", " \u2028 ").split(" ")).replace(" \u2028 ", "\u2028")


async def test_what_would_run_is_refused_by_the_policy_too(serve, recorded, tmp_path):
    """Were markup ever made of a text, nothing in it could run."""
    base = await serve(recorded)
    (tmp_path / "second").mkdir()
    async with browser(tmp_path / "second") as page:
        await page.goto(base)
        await page.until("!!document.querySelector('nav')")
        script = f"document.body.insertAdjacentHTML('beforeend', {json.dumps(HOSTILE)})"
        made = await page.run(f"(() => {{ try {{ {script}; return 'made' }} catch (e) {{ return e.name }} }})()")
        assert made == "TypeError"
        assert await page.run("(() => { try { return eval('1') } catch (e) { return e.name } })()") == "EvalError"
        element = f"const e = document.createElement('script'); e.append({json.dumps(RAN)}); document.body.append(e)"
        await page.run(f"(() => {{ try {{ {element} }} catch (e) {{}} }})()")
        assert await page.run("window.ran === undefined")


@pytest.mark.timeout(900)
async def test_a_run_while_it_is_up(page, launch):
    """`dashboard=true` says where; the fleet and a trajectory of a run under way; it ends with its run."""
    run = launch("dashboard=true", "curriculum.stages=[{difficulty:2,timeout_s:20,max_turns:4,steps:500}]")
    base = ""
    while not base:
        assert run.process.poll() is None, run.log.read_text()
        lines = [line for line in run.log.read_text().splitlines() if "dashboard: http" in line]
        base = lines[0].split("dashboard: ")[1].strip() if lines else ""
        await asyncio.sleep(0.2)
    assert base.startswith("http://127.0.0.1:")
    await page.goto(base + "#/fleet")
    await page.until("(document.querySelector('[data-testid=fleet]') || {}).innerText?.includes('rollout-0.')", 300)
    text = await page.text("[data-testid=fleet]")
    assert "KV cache" in text and "judged" in text
    await page.until("document.querySelector('[data-testid=fleet]').innerText.includes('A learner step')", 300)
    assert "Sandboxes" in await page.text("[data-testid=fleet]")
    await page.goto(base + "#/episodes?sort=turns")
    await page.until("!!document.querySelector('[data-testid=rows] tbody a')")
    await page.click("[data-testid=rows] tbody a")
    await page.until("!!document.querySelector('.tokens .t')", 60)
    run.process.terminate()
    assert await asyncio.to_thread(run.process.wait, 300) == 143, run.log.read_text()
    page.problems[:] = [p for p in page.problems if "ERR_CONNECTION_REFUSED" not in p]
    assert not dashboards(), "the dashboard outlived its run"


def dashboards() -> list[str]:
    """Processes that serve a page of a run under a test's folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "klong_rl.dashboard" in command and "beside=true" in command and any("pytest" in part for part in command):
            found.append(" ".join(command))
    return found
