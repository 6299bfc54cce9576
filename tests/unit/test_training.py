"""What a checkpoint promises: leases are committed once it is durable, and none is younger than Redis's last second."""

import time

import pytest

from klong_rl import training
from klong_rl.buffer import WindowRef
from klong_rl.checkpoints import Checkpoints, RunState
from klong_rl.config import BufferConfig, RunConfig
from klong_rl.errors import LearnerFailure, LeaseLost
from klong_rl.ledger import Ledger, TrainedStep, read_ledger
from klong_rl.pacing import Pacing
from klong_rl.steering.controls import Controls
from klong_rl.training import Training

REFS = [WindowRef("a/0", 40, 12, (1,), 1, "a"), WindowRef("b/0", 20, 5, (1,), 1, "b")]


class Quiet:
    """Whatever else a training talks to here: its learner, its log, its buffer, its archiver."""

    def __init__(self) -> None:
        self.committed, self.written = [], True

    def begin_save(self, folder) -> None:
        pass

    def finish_save(self, wait) -> bool:
        return wait or self.written

    def phase(self, phase: str, stage: int) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def start(self) -> None:
        pass

    async def commit(self, step: int) -> None:
        self.committed.append(step)


def made(tmp_path, fsync: str) -> Training:
    quiet, config = Quiet(), RunConfig(buffer=BufferConfig(fsync=fsync))
    state = RunState(step=1, lineage={1: 0, 2: 1})
    checkpoints, ledger = Checkpoints(tmp_path, keep=2), Ledger(tmp_path)
    return Training(
        config, state, quiet, None, quiet, None, checkpoints, quiet, ledger, quiet, Pacing.of(config), time.monotonic(),
        Controls(config, None),
    )  # fmt: skip


@pytest.mark.parametrize("fsync, waits", [("everysec", True), ("always", False)])
async def test_a_checkpoint_is_whole_once_redis_has_synced_its_leases(tmp_path, monkeypatch, fsync, waits):
    monkeypatch.setattr(training, "FSYNC_S", 600.0)
    run = made(tmp_path, fsync)
    run._leased_at = time.monotonic()
    run.ledger.write(TrainedStep.of(1, 1, 0, REFS))
    await run._begin_checkpoint(1)
    assert [step.step for step in read_ledger(tmp_path)] == [1]
    await run._finish_checkpoint(wait=False)
    assert (run.buffer.committed == []) == waits
    if waits:
        run._finish_from = until = time.monotonic() + 0.2
        await run._finish_checkpoint(wait=True)
        assert time.monotonic() >= until
    assert run.checkpoints.newest().name == "step-000001" and run.buffer.committed == [1]


async def test_steps_trained_while_a_checkpoint_is_written_are_left_to_the_next_one(tmp_path):
    run = made(tmp_path, "always")
    run.learner.written = False
    run.ledger.write(TrainedStep.of(1, 1, 0, REFS[:1]))
    await run._begin_checkpoint(1)
    run.ledger.write(TrainedStep.of(2, 2, 0, REFS[1:]))
    run.state.step = 2
    await run._finish_checkpoint(wait=False)
    assert run.checkpoints.newest() is None and run.buffer.committed == [], "it is still being written"
    with pytest.raises(LeaseLost, match="step 1"):
        run._check_untrained(3, REFS[:1])  # no durable weights hold step 1 yet
    run.learner.written = True
    await run._finish_checkpoint(wait=False)
    assert run.checkpoints.newest().name == "step-000001" and run.buffer.committed == [1]
    with pytest.raises(LeaseLost, match="step 2"):
        run._check_untrained(3, REFS)
    run._check_untrained(3, REFS[:1])


async def test_a_checkpoint_is_finished_before_the_next_one_begins(tmp_path):
    run = made(tmp_path, "always")
    run.learner.written = False
    await run._begin_checkpoint(1)
    run.state.step = 2
    await run._begin_checkpoint(1)
    assert run.buffer.committed == [1] and run.checkpoints.newest().name == "step-000001"
    await run._finish_checkpoint(wait=True)
    assert run.buffer.committed == [1, 2]


async def test_a_run_that_is_told_to_stop_waits_for_the_checkpoint_under_way(tmp_path):
    run = made(tmp_path, "always")
    run.learner.written = False
    await run.keep_checkpoint()
    assert run.checkpoints.newest() is None and run.buffer.committed == [], "none is under way"
    await run._begin_checkpoint(1)
    await run.keep_checkpoint()
    assert run.checkpoints.newest().name == "step-000001" and run.buffer.committed == [1]


async def test_a_checkpoint_whose_learner_ended_is_given_up_in_words(tmp_path, monkeypatch):
    def ended(wait):
        raise LearnerFailure(0, "finish_save", "the group has ended")

    run, said = made(tmp_path, "always"), []
    monkeypatch.setattr(run.learner, "finish_save", ended)
    monkeypatch.setattr(run.log, "warn", said.append)
    await run._begin_checkpoint(1)
    await run.keep_checkpoint()
    assert run.checkpoints.newest() is None and run.buffer.committed == []
    assert "is given up, the one before it stands: learner rank 0 failed in finish_save" in said[0]


async def test_groups_that_are_trained_already_are_not_trained_again(tmp_path):
    run = made(tmp_path, "everysec")
    run._check_untrained(1, REFS)
    run.ledger.write(TrainedStep.of(1, 1, 0, REFS[:1]))
    run._check_untrained(2, REFS[1:])
    with pytest.raises(LeaseLost, match="Redis lost the lease of step 1, and gave its groups to step 2"):
        run._check_untrained(2, REFS)
