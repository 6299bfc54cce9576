"""The judge model over real HTTP: order, bounds, back-off, cache, cancellation, and what is no verdict."""

from __future__ import annotations

import asyncio
import time
import zlib
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from klong_rl.config import EndpointConfig
from klong_rl.errors import UserError
from klong_rl.failures import InfrastructureFailure
from klong_rl.judging.endpoint import Endpoint, retry_after_s
from klong_rl.judging.lane import Urgency
from klong_rl.judging.protocols import Usage
from klong_rl.judging.store import Damaged, Store, digest
from tests.fake_judge import CUT, FakeJudge

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("klong_rl.judging.lane.FIRST_DELAY_S", 0.05)


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@asynccontextmanager
async def endpoint(folder: Path, url: str, **settings):
    settings = {"requests_per_s": 1e4, "concurrent": 4} | settings
    made = Endpoint(EndpointConfig(url=url, model="m", **settings), Store(folder))
    try:
        yield made
    finally:
        await made.close()


async def test_an_answer_comes_with_the_key_and_is_asked_for_once(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    async with FakeJudge() as fake, endpoint(tmp_path, fake.url, key_env="JUDGE_KEY") as judge:
        first = await judge.ask(question("a"), "g")
        await judge.keep(first)
        again = await judge.ask(question("a"), "g")
        assert (again.text, again.request) == (first.text, first.request) and len(fake.asked) == 1
        assert (first.usage.requests, first.usage.prompt_tokens, again.usage) == (1, 7, Usage(kept=1))
        assert (await judge.ask(question("b"), "g")).request != first.request and len(fake.asked) == 2
        assert set(fake.keys) == {"Bearer secret"}
    async with FakeJudge() as fake, endpoint(tmp_path, fake.url, temperature=0.5) as judge:
        await judge.ask(question("a"), "g")
        assert len(fake.asked) == 1, "other settings are another question"


async def test_samples_of_one_question_are_told_apart(tmp_path):
    async with FakeJudge() as fake, endpoint(tmp_path, fake.url) as judge:
        for sample in ("1", "2"):
            await judge.keep(await judge.ask(question("a"), "g", sample=sample))
        await judge.ask(question("a"), "g", sample="1")
        assert len(fake.asked) == 2 and fake.asked[0] == fake.asked[1], "the endpoint is told nothing of it"


async def test_what_a_model_thinks_is_kept_apart_in_either_protocol(tmp_path):
    thinks = {"choices": [{"message": {"content": "4", "reasoning_content": "2 and 2"}, "finish_reason": "stop"}]}
    async with FakeJudge(answers=[thinks]) as fake, endpoint(tmp_path / "o", fake.url) as judge:
        first = await judge.ask(question("a"), "g")
        await judge.keep(first)
        again = await judge.ask(question("a"), "g")
        assert (first.text, first.thinking) == (again.text, again.thinking) == ("4", "2 and 2")
    settings = {"protocol": "anthropic", "usd_per_mtok_in": 1e6, "usd_per_mtok_out": 1e5}
    async with FakeJudge(lambda _: "4") as fake, endpoint(tmp_path / "a", fake.url, **settings) as judge:
        answer = await judge.ask([{"role": "system", "content": "s"}, *question("a")], "g")
        assert (answer.text, answer.thinking) == ("4", "Hm.")
        assert answer.usage.usd == pytest.approx(7 + 0.3)
        assert fake.asked[0]["system"] == "s" and [m["role"] for m in fake.asked[0]["messages"]] == ["user"]


async def test_a_stream_that_is_cut_is_tried_again(tmp_path):
    async with FakeJudge(answers=[CUT, {"nonsense": 1}]) as fake, endpoint(tmp_path, fake.url) as judge:
        assert "Score" in (await judge.ask(question("a"), "g")).text
        assert len(fake.came) == 3


async def test_what_was_not_kept_is_asked_again(tmp_path):
    async with FakeJudge() as fake, endpoint(tmp_path, fake.url) as judge:
        await judge.ask(question("a"), "g")
        await judge.ask(question("a"), "g")
        assert len(fake.asked) == 2


async def test_a_kept_reply_that_was_changed_is_never_used(tmp_path):
    async with FakeJudge() as fake, endpoint(tmp_path, fake.url) as judge:
        answer = await judge.ask(question("a"), "g")
        await judge.keep(answer)
        (path,) = tmp_path.rglob(f"blobs/*/{digest(answer.text.encode())}")
        path.write_bytes(zlib.compress(b"Score: 1"))
        with pytest.raises(Damaged, match="was changed"):
            await judge.ask(question("a"), "g")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_trouble_that_passes_costs_no_answer(tmp_path, status):
    async with FakeJudge(answers=[status, status]) as fake, endpoint(tmp_path, fake.url) as judge:
        assert "Score" in (await judge.ask(question("a"), "g")).text
        assert len(fake.came) == 3 and f"HTTP {status}" in judge.trouble


async def test_retry_after_holds_everybody_off(tmp_path):
    async with FakeJudge(answers=[429], headers={"Retry-After": "1"}) as fake:
        async with endpoint(tmp_path, fake.url, concurrent=1) as judge:
            await asyncio.gather(*(judge.ask(question(str(i)), "g") for i in range(3)))
            assert min(later - fake.came[0] for later in fake.came[1:]) >= 0.99


async def test_an_endpoint_that_comes_up_later_is_waited_for(tmp_path):
    async with FakeJudge() as away:
        pass
    async with endpoint(tmp_path, away.url) as judge:
        asked = asyncio.create_task(judge.ask(question("a"), "g"))
        while "can't be reached" not in judge.trouble:
            await asyncio.sleep(0.05)
        async with FakeJudge(port=away.port):
            assert "Score" in (await asked).text


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_what_waiting_can_not_mend_fails_at_once(tmp_path, status):
    async with FakeJudge(answers=[status]) as fake, endpoint(tmp_path, fake.url) as judge:
        with pytest.raises(InfrastructureFailure, match=f"HTTP {status}: .*told to say"):
            await judge.ask(question("a"), "g")
        assert len(fake.came) == 1


async def test_no_more_under_way_and_no_faster_than_the_bounds(tmp_path):
    async with FakeJudge(takes_s=0.02) as fake, endpoint(tmp_path, fake.url, concurrent=3) as judge:
        await asyncio.gather(*(judge.ask(question(str(i)), "g") for i in range(20)))
        assert fake.most_under_way == 3
    async with FakeJudge(requests_per_s=50) as fake, endpoint(tmp_path, fake.url, requests_per_s=40) as judge:
        await asyncio.gather(*(judge.ask(question(f"b{i}"), "g") for i in range(60)))
        assert fake.refused == 0


async def test_the_most_urgent_goes_first_whatever_came_first(tmp_path):
    async with FakeJudge() as fake, endpoint(tmp_path, fake.url, concurrent=1, requests_per_s=50) as judge:
        judge.queue.rank("late", Urgency(True, False, 2))
        judge.queue.rank("eval", Urgency(False, False, 3))
        judge.queue.rank("first", Urgency(True, False, 1))
        asks = [judge.ask(question(f"{group}{i}"), group) for i in range(5) for group in ("late", "first", "eval")]
        await asyncio.gather(*asks)
        order = [body["messages"][0]["content"][:-1] for body in fake.asked][2:]  # at most two went before all came
        assert order == sorted(order, key=["eval", "first", "late"].index)


async def test_who_is_cancelled_takes_no_turn(tmp_path):
    async with FakeJudge(takes_s=0.05) as fake, endpoint(tmp_path, fake.url, concurrent=1) as judge:
        asked = [asyncio.create_task(judge.ask(question(str(i)), "g")) for i in range(6)]
        await asyncio.sleep(0.02)
        for task in asked[:5]:
            task.cancel()
        assert "Score" in (await asked[5]).text
        assert len(fake.asked) <= 2


async def test_settings_that_can_not_work_are_refused(tmp_path):
    async with endpoint(tmp_path, "") as judge:
        with pytest.raises(UserError, match="judge.endpoint.url="):
            await judge.ask(question("a"), "g")
    with pytest.raises(UserError, match="key_env=NO_SUCH_KEY"):
        Endpoint(EndpointConfig(url="http://x", model="m", key_env="NO_SUCH_KEY"), Store(tmp_path))


@pytest.mark.parametrize("header, seconds", [("", 0), ("3", 3), ("-3", 0), ("soon", 0), (formatdate(0), 0)])
def test_a_retry_after_is_a_number_or_a_date(header, seconds):
    assert retry_after_s(header) == seconds


def test_a_retry_after_in_the_future_is_waited_for():
    assert 50 < retry_after_s(formatdate(time.time() + 60)) <= 60
