"""An episode whose holder is gone goes on with its next one: on real Redis and real shells, from every state."""

from __future__ import annotations

import itertools

import pytest

from actors.agent import Agent
from actors.journal import BufferJournal
from actors.scripted import ScriptedEngine
from actors.snapshots import take
from actors.takeover import BROKEN, FORGOTTEN, GONE, RESTORED, take_over
from klong_rl import chain
from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis, StaleEpoch
from klong_rl.chat import ChatFormat
from klong_rl.cold_start import corpus
from klong_rl.config import AgentConfig
from klong_rl.failures import InfrastructureFailure
from klong_rl.models.nano import train_tokenizer
from klong_rl.tasks.relay import RelayDemonstrator, RelayTasks
from klong_rl.types import EpisodeSpec, Outcome, Segment, Task
from klong_rl.windows import ContextRule
from sandboxes.process import ProcessSandboxes

pytestmark = pytest.mark.integration

END = "<|end|>"
RUNS = itertools.count()
RULE = ContextRule(max_tokens=200, overlap_tokens=30, action_tokens=24)
CONFIG = AgentConfig(system="You have a shell.", action_tokens=24, observation_tokens=24)
SCRIPT = [f"echo {i} >> log{END}" for i in range(3)] + [f"submit{END}"]


class HolderDies(BaseException):
    """Stands for the end of the process: nothing in the code under test may catch it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with EmbeddedRedis(tmp_path_factory.mktemp("run")) as server:
        yield server


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> ChatFormat:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(corpus(RelayTasks(), RelayDemonstrator(), [2], CONFIG.system), 512).save_pretrained(folder)
    return ChatFormat(folder)


@pytest.fixture
async def scene(server, chat, tmp_path):
    run = f"takeover-{next(RUNS)}"
    sandboxes = ProcessSandboxes(run, root=str(tmp_path), allow_unisolated=True)
    async with await Buffer.connect(BufferAddress(server.url, run)) as buffer:
        yield Scene(buffer, sandboxes, chat)
    await sandboxes.reap(keep=set())
    await sandboxes.close()


class Scene:
    """One episode that is run by one holder after the other."""

    def __init__(self, buffer: Buffer, sandboxes: ProcessSandboxes, chat: ChatFormat) -> None:
        self.buffer, self.sandboxes, self.chat = buffer, sandboxes, chat
        self.task = Task(id="t", family="f", instruction="Go.", image="none", files={"given": b"text"})
        self.spec = EpisodeSpec(
            id="e", group="g", group_size=1, stage=1, purpose="train", task=self.task, timeout_s=60.0, max_turns=9
        )

    async def hold(self, script: list[str], dies_at: str = "", snapshot_after: int | None = None):
        """Claim the episode and go on in it until it ends, or the holder dies at "turn" or "intended" N."""
        claim = await self.buffer.claim("actor")
        self.begun = begun = await take_over(self.buffer, self.sandboxes, claim)
        agent = Agent(CONFIG, RULE, self.chat, engine := ScriptedEngine(self.chat, script))
        prefix_P = agent.prefix(claim.spec)
        journal = Mortal(self.buffer, self.sandboxes, claim, prefix_P, begun.sandbox, begun.turns, 0.0)
        journal.dies_at, journal.snapshot_after = dies_at, snapshot_after
        try:
            outcome = begun.outcome or await agent.run(
                claim.spec, prefix_P, begun.sandbox, journal, begun.turns, begun.intended
            )
            await self.buffer.seal("e", claim.epoch, outcome)
        except HolderDies:
            await self.buffer.abandon("actor", "it died")
        finally:
            await begun.sandbox.release()
        return engine

    async def log(self) -> bytes:
        sandbox = await self.sandboxes.adopt("e")
        try:
            return await sandbox.read("log")
        finally:
            await sandbox.release()

    async def lose_the_sandbox(self) -> None:
        await (await self.sandboxes.adopt("e")).close()

    async def assert_whole(self, *commands: str) -> None:
        """What the buffer holds at the end: these commands, as sampled."""
        progress = await self.buffer.progress("e")
        turns = [turn for segment in progress.segments for turn in segment.turns]
        assert [turn.command for turn in turns] == list(commands)
        chain.check("e", progress.segments[0].prefix_P, turns)
        assert progress.outcome == Outcome(kind="submitted")


class Mortal(BufferJournal):
    """The journal of a holder that dies at a given point."""

    dies_at = ""
    snapshot_after: int | None = None
    redis_forgets_before: int | None = None

    async def intend(self, turn) -> None:
        if turn.index == self.redis_forgets_before:
            await forget_the_last_second(self._buffer, keep=1)
        await super().intend(turn)
        if self.dies_at == f"intended {turn.index}":
            raise HolderDies

    async def append(self, turn):
        if self.dies_at == f"command {turn.index}":
            raise HolderDies
        limits = await super().append(turn)
        if self.snapshot_after == turn.index:
            await take(self._buffer, self._sandboxes, self._sandbox, "e", self._epoch, self.n_segments)
        if self.dies_at == f"turn {turn.index}":
            raise HolderDies
        return limits


async def forget_the_last_second(buffer: Buffer, keep: int) -> None:
    """As a Redis that was killed while its disk was busy: what it answered last is not in its file."""
    n = len(await buffer.segments("e"))
    await buffer._redis.read("forget", ("LTRIM", buffer._key("sizes", "e"), 0, keep - 1))
    await buffer._redis.read("forget", *(("DEL", buffer._key("segment", "e", seq)) for seq in range(keep, n)))


WHOLE = [text.removesuffix(END) for text in SCRIPT]


async def test_it_goes_on_in_its_sandbox_after_its_last_turn(scene):
    await scene.buffer.admit(scene.spec)
    first = await scene.hold(SCRIPT, dies_at="turn 1")
    second = await scene.hold(SCRIPT[2:])
    assert len(first.contexts) == 2 and len(second.contexts) == 2
    await scene.assert_whole(*WHOLE)
    assert await scene.log() == b"0\n1\n2\n"
    counts = await scene.buffer.counts()
    assert counts.discarded == {} and counts.appended["segments"] == 4


@pytest.mark.parametrize("at", ["intended 1", "command 1"])
async def test_a_command_that_may_have_run_is_reported_and_never_run_again(scene, at):
    await scene.buffer.admit(scene.spec)
    await scene.hold(SCRIPT, dies_at=at)
    second = await scene.hold(SCRIPT[2:])
    await scene.assert_whole(*WHOLE)
    progress = await scene.buffer.progress("e")
    turns = [turn for segment in progress.segments for turn in segment.turns]
    assert [turn.interrupted for turn in turns] == [False, True, False, False]
    assert "interrupted" in scene.chat.text(second.contexts[0])
    assert await scene.log() == (b"0\n2\n" if at == "intended 1" else b"0\n1\n2\n")


async def test_without_sandbox_and_snapshot_it_starts_again_and_says_what_that_cost(scene):
    await scene.buffer.admit(scene.spec)
    await scene.hold(SCRIPT, dies_at="intended 2")
    appended = (await scene.buffer.counts()).appended["tokens"]
    intended = len((await scene.buffer.progress("e")).intended.action_A)
    await scene.lose_the_sandbox()
    await scene.hold(SCRIPT)
    await scene.assert_whole(*WHOLE)
    assert await scene.log() == b"0\n1\n2\n"
    assert (await scene.buffer.counts()).discarded == {GONE: appended + intended}


async def test_without_its_sandbox_it_goes_on_from_its_snapshot(scene):
    await scene.buffer.admit(scene.spec)
    await scene.hold(SCRIPT, dies_at="turn 1", snapshot_after=0)
    await scene.lose_the_sandbox()
    await scene.hold(SCRIPT[1:])
    assert len(scene.begun.turns) == 1
    await scene.assert_whole(*WHOLE)
    assert await scene.log() == b"0\n1\n2\n"
    assert set((await scene.buffer.counts()).discarded) == {RESTORED}


async def test_a_holder_that_dies_as_it_restores_leaves_turns_that_agree_with_the_sandbox(scene, monkeypatch):
    await scene.buffer.admit(scene.spec)
    await scene.hold(SCRIPT, dies_at="turn 1", snapshot_after=0)
    await scene.lose_the_sandbox()
    create = scene.sandboxes.create

    async def create_and_die(*args):
        await (await create(*args)).release()
        raise HolderDies

    monkeypatch.setattr(scene.sandboxes, "create", create_and_die)
    with pytest.raises(HolderDies):
        await scene.hold(SCRIPT[1:])
    monkeypatch.undo()
    await scene.buffer.abandon("actor", "it died")
    await scene.hold(SCRIPT[1:])
    await scene.assert_whole(*WHOLE)
    assert await scene.log() == b"0\n1\n2\n"


async def test_a_snapshot_that_is_up_to_date_costs_nothing_and_keeps_the_intended_action(scene):
    await scene.buffer.admit(scene.spec)
    await scene.hold(SCRIPT, dies_at="intended 1", snapshot_after=0)
    await scene.lose_the_sandbox()
    await scene.hold(SCRIPT[2:])
    await scene.assert_whole(*WHOLE)
    assert scene.begun.intended.command == WHOLE[1]
    assert (await scene.buffer.counts()).discarded == {}


async def test_snapshots_are_taken_beside_the_turns_when_their_time_has_come(scene):
    await scene.buffer.admit(scene.spec)
    claim = await scene.buffer.claim("actor")
    begun = await take_over(scene.buffer, scene.sandboxes, claim)
    agent = Agent(CONFIG, RULE, scene.chat, ScriptedEngine(scene.chat, SCRIPT))
    prefix_P = agent.prefix(claim.spec)
    journal = BufferJournal(scene.buffer, scene.sandboxes, claim, prefix_P, begun.sandbox, [], snapshot_every_s=1e-9)
    await agent.run(claim.spec, prefix_P, begun.sandbox, journal)
    snapshot = (await scene.buffer.progress("e")).snapshot
    assert snapshot.n_segments == 4
    assert [(each.id, each.snapshot) for each in await scene.buffer.in_progress()] == [("e", snapshot.image)]
    assert await scene.sandboxes.forget_snapshots("e", keep=snapshot.image) == 0, "no older one is kept"
    assert await scene.sandboxes.forget_snapshots("e") == 1


async def test_an_episode_goes_on_without_a_snapshot_where_the_disk_has_no_room(scene, monkeypatch):
    async def no_room(sandbox, needed):
        assert await needed() == {""}
        raise InfrastructureFailure("over the quota")

    monkeypatch.setattr(scene.sandboxes, "make_room", no_room)
    await scene.buffer.admit(scene.spec)
    claim = await scene.buffer.claim("actor")
    begun = await take_over(scene.buffer, scene.sandboxes, claim)
    agent = Agent(CONFIG, RULE, scene.chat, ScriptedEngine(scene.chat, SCRIPT))
    prefix_P = agent.prefix(claim.spec)
    journal = BufferJournal(scene.buffer, scene.sandboxes, claim, prefix_P, begun.sandbox, [], snapshot_every_s=1e-9)
    await agent.run(claim.spec, prefix_P, begun.sandbox, journal)
    progress = await scene.buffer.progress("e")
    assert len(progress.segments) == 4 and progress.snapshot is None


async def test_turns_that_redis_lost_are_sent_again_and_not_run_again(scene):
    await scene.buffer.admit(scene.spec)
    claim = await scene.buffer.claim("actor")
    begun = await take_over(scene.buffer, scene.sandboxes, claim)
    agent = Agent(CONFIG, RULE, scene.chat, engine := ScriptedEngine(scene.chat, SCRIPT))
    prefix_P = agent.prefix(claim.spec)
    journal = Mortal(scene.buffer, scene.sandboxes, claim, prefix_P, begun.sandbox, [], 0.0)
    journal.redis_forgets_before = 2
    await scene.buffer.seal("e", claim.epoch, await agent.run(claim.spec, prefix_P, begun.sandbox, journal))
    await scene.assert_whole(*WHOLE)
    assert len(engine.contexts) == 4 and await scene.log() == b"0\n1\n2\n"


async def test_a_set_up_that_was_cut_short_is_begun_anew(scene):
    await scene.buffer.admit(scene.spec)
    claim = await scene.buffer.claim("actor")
    half = await scene.sandboxes.create("e", claim.epoch, "none", scene.task.limits)
    await half.exec("touch stray", timeout_s=5)
    await half.release()
    await scene.buffer.abandon("actor", "it died")
    await scene.hold([f"ls > log{END}", f"submit{END}"])
    assert (await scene.log()).split() == [b"given", b"log"]


async def test_what_could_not_be_judged_is_sealed_again_as_it_ended(scene):
    await scene.buffer.admit(scene.spec)
    await scene.hold(SCRIPT)
    await scene.buffer.requeue("e", 1, "not judged")
    engine = await scene.hold([])
    assert engine.contexts == []
    await scene.assert_whole(*WHOLE)


async def test_damaged_turns_are_noticed_and_given_up(scene):
    await scene.buffer.admit(scene.spec)
    await scene.hold(SCRIPT[:1] + SCRIPT, dies_at="turn 0")
    claim = await scene.buffer.claim("actor")
    segments = (await scene.buffer.progress("e")).segments
    turn = segments[0].turns[0]
    await scene.buffer.append("e", claim.epoch, Segment(episode="e", epoch=claim.epoch, seq=1, turns=(turn,)))
    await scene.buffer.abandon("actor", "it died")
    await scene.hold(SCRIPT)
    await scene.assert_whole(*WHOLE)
    assert (await scene.buffer.counts()).discarded == {BROKEN: 2 * len(turn.action_A)}


async def test_a_holder_that_was_thought_dead_runs_no_further_command(scene):
    await scene.buffer.admit(scene.spec)
    claim = await scene.buffer.claim("zombie")
    begun = await take_over(scene.buffer, scene.sandboxes, claim)
    await scene.buffer.abandon("zombie", "it seemed dead")
    await scene.hold(SCRIPT)
    agent = Agent(CONFIG, RULE, scene.chat, ScriptedEngine(scene.chat, [f"echo late >> log{END}"]))
    prefix_P = agent.prefix(claim.spec)
    journal = BufferJournal(scene.buffer, scene.sandboxes, claim, prefix_P, begun.sandbox, [], 0.0)
    with pytest.raises(StaleEpoch):
        await agent.run(claim.spec, prefix_P, begun.sandbox, journal)
    assert await scene.log() == b"0\n1\n2\n"


# An agent from outside that can't go on where another process left off.


async def taken_over_by_a_program(scene):
    """The next claim of the episode, which the buffer and a sandbox agree on."""
    claim = await scene.buffer.claim("program")
    return claim, await take_over(scene.buffer, scene.sandboxes, claim, resumable=False)


async def test_a_program_whose_process_died_starts_again_in_a_fresh_sandbox_and_says_what_that_cost(scene):
    await scene.buffer.admit(scene.spec)
    await scene.hold(SCRIPT, dies_at="turn 1")
    appended = (await scene.buffer.counts()).appended["tokens"]
    _, begun = await taken_over_by_a_program(scene)
    assert begun.turns == [] and begun.outcome is None
    with pytest.raises(FileNotFoundError):
        await begun.sandbox.read("log")
    assert await begun.sandbox.read("given") == b"text"
    assert (await scene.buffer.counts()).discarded == {FORGOTTEN: appended}
    await begun.sandbox.release()


async def test_a_program_that_had_ended_is_sealed_again_and_not_run_again(scene):
    await scene.buffer.admit(scene.spec)
    await scene.hold(SCRIPT)
    job = await scene.buffer.next_to_judge("judge")
    await scene.buffer.requeue("e", job.epoch, "not judged")
    _, begun = await taken_over_by_a_program(scene)
    assert begun.outcome == Outcome(kind="submitted") and len(begun.turns) == 4
    assert await begun.sandbox.read("log") == b"0\n1\n2\n"
    assert (await scene.buffer.counts()).discarded == {}
    await begun.sandbox.release()


@pytest.mark.parametrize("whole", [True, False])
async def test_a_program_that_had_ended_needs_all_of_its_files_to_be_sealed_again(scene, whole):
    await scene.buffer.admit(scene.spec)
    await scene.hold(SCRIPT, snapshot_after=3 if whole else 0)
    job = await scene.buffer.next_to_judge("judge")
    await scene.buffer.requeue("e", job.epoch, "not judged")
    await scene.lose_the_sandbox()
    _, begun = await taken_over_by_a_program(scene)
    assert (begun.outcome is not None) == whole
    assert ((await scene.buffer.counts()).discarded == {}) == whole
    await begun.sandbox.release()
