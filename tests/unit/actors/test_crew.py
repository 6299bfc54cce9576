"""A crew of jobs: its size, what a failing job does, how it stops."""

import asyncio

import pytest

from actors.crew import Crew

SOON_S = 5.0


class Jobs:
    """A queue of jobs that last until they are let go, and what became of each."""

    def __init__(self, count: int) -> None:
        self.queue = list(range(count))
        self.let_go = asyncio.Event()
        self.running: set[int] = set()
        self.most = 0
        self.done: list[int] = []
        self.cancelled: list[int] = []

    async def take(self) -> int | None:
        return self.queue.pop(0) if self.queue else None

    async def work(self, job: int) -> None:
        self.running.add(job)
        self.most = max(self.most, len(self.running))
        try:
            await self.let_go.wait()
            await asyncio.sleep(0)  # others may start before this one ends
            self.done.append(job)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)  # a clean-up that takes its time
            self.cancelled.append(job)
            raise
        finally:
            self.running.discard(job)


async def until(holds) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():
            await asyncio.sleep(0.01)


async def test_all_jobs_are_done_and_never_more_than_its_size_at_once():
    jobs = Jobs(10)
    crew = Crew(3, jobs.take, jobs.work)
    running = asyncio.create_task(crew.run())
    await until(lambda: len(jobs.running) == 3)
    await asyncio.sleep(0.3)  # room for a fourth, if one were taken
    assert crew.busy == 3 and len(jobs.queue) == 7, "a job that can't start stays in the queue"
    jobs.let_go.set()
    await until(lambda: len(jobs.done) == 10)
    assert jobs.most == 3
    await crew.stop()
    await asyncio.wait_for(running, SOON_S)
    assert jobs.cancelled == [] and crew.busy == 0


async def test_a_crew_grows_and_shrinks_and_ends_nobodys_job():
    jobs = Jobs(9)
    crew = Crew(1, jobs.take, jobs.work)
    running = asyncio.create_task(crew.run())
    await until(lambda: len(jobs.running) == 1)
    crew.allow(4)
    await until(lambda: len(jobs.running) == 4)
    crew.allow(2)
    await asyncio.sleep(0.3)
    assert len(jobs.running) == 4 and crew.ended == 0
    jobs.let_go.set()
    await until(lambda: len(jobs.done) == 9)
    await crew.stop()
    await asyncio.wait_for(running, SOON_S)
    assert crew.ended == 9 and jobs.cancelled == []


async def test_what_comes_later_is_taken_too():
    jobs = Jobs(0)
    jobs.let_go.set()
    crew = Crew(2, jobs.take, jobs.work)
    running = asyncio.create_task(crew.run())
    await asyncio.sleep(0.1)
    jobs.queue.append(7)
    await until(lambda: jobs.done == [7])
    await crew.stop()
    await asyncio.wait_for(running, SOON_S)


async def test_what_a_job_raises_ends_the_crew_and_cancels_the_others():
    jobs = Jobs(3)

    async def work(job: int) -> None:
        if job == 2:
            await until(lambda: jobs.running == {0, 1})
            raise LookupError("job 2 went wrong")
        await jobs.work(job)

    crew = Crew(3, jobs.take, work)
    with pytest.raises(LookupError, match="job 2 went wrong"):
        await asyncio.wait_for(crew.run(), SOON_S)
    assert sorted(jobs.cancelled) == [0, 1] and not jobs.running
    await asyncio.wait_for(crew.stop(), SOON_S)


async def test_what_taking_raises_ends_the_crew_too():
    jobs = Jobs(1)

    async def take() -> int | None:
        if jobs.queue:
            return jobs.queue.pop()
        raise ConnectionError("the queue is gone")

    with pytest.raises(ConnectionError, match="the queue is gone"):
        await asyncio.wait_for(Crew(2, take, jobs.work).run(), SOON_S)
    assert not jobs.running


async def test_stop_cancels_what_runs_and_waits_for_its_clean_up():
    jobs = Jobs(5)
    crew = Crew(2, jobs.take, jobs.work)
    running = asyncio.create_task(crew.run())
    await until(lambda: len(jobs.running) == 2)
    await crew.stop()
    assert sorted(jobs.cancelled) == [0, 1] and jobs.queue == [2, 3, 4]
    await asyncio.wait_for(running, SOON_S)


async def test_stopping_what_never_ran_returns():
    await asyncio.wait_for(Crew(1, Jobs(0).take, Jobs(0).work).stop(), SOON_S)
