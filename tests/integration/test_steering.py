"""Commands through a real Redis: answered once, withdrawn when no driver takes them, and not lost by a restart."""

import asyncio

import pytest

from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis
from klong_rl.buffer.connection import Connection
from klong_rl.config import RunConfig
from klong_rl.errors import UserError
from klong_rl.steer import ask
from klong_rl.steering.controls import Controls
from klong_rl.steering.mailbox import Mailbox

pytestmark = pytest.mark.integration


class SmallFleet:
    """In the place of a Fleet: of a size, with nobody in it."""

    started = True

    def __init__(self) -> None:
        self.now, self.held = {"rollout": 1, "judge": 1}, False

    def hold(self, held: bool) -> None:
        self.held = held

    def sizes(self) -> dict[str, int]:
        return self.now

    def settled(self) -> bool:
        return True

    def gave_up(self) -> str:
        return ""

    async def scale(self, rollout: int, judge: int) -> None:
        await asyncio.sleep(0.1)
        self.now = {"rollout": rollout, "judge": judge}


@pytest.fixture
async def place(tmp_path):
    with EmbeddedRedis(tmp_path) as server:
        address = BufferAddress(server.url, "steered")
        connection = Connection(address)
        async with await Buffer.connect(address) as buffer:
            yield Mailbox(connection), buffer, server
        await connection.close()


async def launched(mailbox: Mailbox, buffer: Buffer, fleet: SmallFleet, ended: asyncio.Event):
    controls = Controls(RunConfig(), mailbox)
    await controls.load(1, 0, entered=False)
    return controls, asyncio.create_task(controls.run(fleet, buffer, ended.set))


async def test_a_command_is_answered_and_what_it_wants_outlives_driver_and_redis(place):
    mailbox, buffer, server = place
    fleet, ended = SmallFleet(), asyncio.Event()
    controls, driver = await launched(mailbox, buffer, fleet, ended)
    answer = await ask(mailbox, "scale", {"rollout": "+2"}, wait_s=10)
    assert (answer.status, answer.text) == ("done", "actors at work: rollout 3, judge 1")
    assert (await ask(mailbox, "scale", {"rollout": "-9"}, wait_s=10)).status == "refused"
    assert (await ask(mailbox, "pause", {}, wait_s=10)).status == "done" and fleet.held
    assert await mailbox.asked() == []
    driver.cancel()
    await asyncio.gather(driver, return_exceptions=True)
    server._process.kill()
    server._process.wait()
    server.revive()

    fleet = SmallFleet()
    controls, driver = await launched(mailbox, buffer, fleet, ended)
    assert controls.held and controls.actors == {"rollout": 3, "judge": 1}
    answer = await ask(mailbox, "stop", {"drain": "true"}, wait_s=10)
    assert answer.status == "done" and answer.text == "stopped after step 0, nothing under way"
    await asyncio.wait_for(ended.wait(), 10)
    await asyncio.wait_for(driver, 10)
    assert controls.held, "it was paused before, and stays so"


async def test_without_a_driver_a_command_is_withdrawn(place):
    mailbox, buffer, _ = place
    with pytest.raises(UserError, match="took no command within 0.3 s, and pause is withdrawn"):
        await ask(mailbox, "pause", {}, wait_s=10, answer_s=0.3)
    assert await mailbox.asked() == []


async def test_a_run_whose_redis_is_full_can_be_steered(place):
    mailbox, buffer, _ = place
    await buffer._redis.read("fill", ("CONFIG", "SET", "maxmemory", "1"))
    controls, driver = await launched(mailbox, buffer, SmallFleet(), asyncio.Event())
    assert (await ask(mailbox, "pause", {}, wait_s=10)).text.startswith("paused after step 0")
    driver.cancel()
    await asyncio.gather(driver, return_exceptions=True)
