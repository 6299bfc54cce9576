"""A learner that is killed at any step comes back bit for bit: weights, optimizer, schedule, random state, data."""

import hashlib
import os
import signal

import pytest

from tests.learner_ranks import learner_job, made_windows, run_ranks, share_of
from tests.model_families import build

pytestmark = [pytest.mark.integration, pytest.mark.slow]

STEPS, NEXT = 9, 5
WINDOWS = made_windows(24)


def train_step(job, device, one, number):
    """Step `number` on windows that it alone decides; a digest of all that a later step depends on."""
    import torch

    from klong_rl.objectives import build_objective
    from learners import model, step
    from learners.forward import Batch

    windows = WINDOWS[number : number + 8]
    by_id = {window.id: window for window in windows}
    batches = [Batch([by_id[i] for i in ids], job.pad_to, device) for ids in share_of(job, windows)]
    step.train_step(one, batches, build_objective("klong"), 1.0, version=1)
    torch.rand(1)  # so that the random state moves on, as it would with dropout
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    for _, tensor in model.export(one):
        digest.update(tensor.numpy().tobytes())
    digest.update(repr(one.optimizer.param_groups[0]["lr"]).encode())
    for optimizer in one.optimizer.chained_optimizers:
        for state in optimizer.optimizer.state.values():
            digest.update(state["exp_avg"].numpy().tobytes() + state["exp_avg_sq"].numpy().tobytes())
    return digest.hexdigest()


def uninterrupted(job, rank, device, folder):
    """Digests after each of STEPS steps, with a checkpoint before each, written beside it."""
    from learners import checkpoint, model

    one, saving = model.build(job), checkpoint.Saving()
    digests = []
    for number in range(STEPS):
        saving.begin(one, folder / f"before-{number}", number)
        digests.append(train_step(job, device, one, number))
        assert saving.finish(wait=True)
    return digests


def restored(job, rank, device, folder, numbers):
    """By step in `numbers`: digests of the NEXT steps from its checkpoint. One model loads them all, used as it is."""
    from learners import checkpoint, model

    one = model.build(job)
    digests = {}
    for start in numbers:
        number = checkpoint.load(one, folder / f"before-{start}")
        digests[start] = [train_step(job, device, one, n) for n in range(number, min(number + NEXT, STEPS))]
    return digests


def killed_as_it_saves(job, rank, device, folder, begun):
    """Step 2, and then rank 1 is gone while rank 0 waits for it in the checkpoint after it.

    Before it is `begun`, or in the step after that, when the writers may be done or not.
    """
    from learners import checkpoint, model

    one, saving = model.build(job), checkpoint.Saving()
    train_step(job, device, one, checkpoint.load(one, folder / "before-2"))
    if begun:
        saving.begin(one, folder / "killed", 3)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if not begun:
        saving.begin(one, folder / "killed", 3)
    saving.finish(wait=True)


def on_a_full_disk(job, rank, device, folder):
    """What each rank says of a checkpoint that can't be written."""
    from learners import checkpoint, model

    def full(descriptor):
        raise OSError(28, "No space left on device")

    one, saving = model.build(job), checkpoint.Saving()
    os.fsync = full
    saving.begin(one, folder / "full", 1)
    try:
        return saving.finish(wait=True)
    except OSError as error:
        return str(error)


def test_a_checkpoint_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    build("llama", tmp_path / "model")
    first, second = run_ranks(learner_job(tmp_path / "model", data=2), on_a_full_disk, tmp_path)
    assert first.startswith(f"checkpoint {tmp_path / 'full'} could not be written: rank 0: ")
    assert first.endswith("No space left on device") and second is True
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize(("name", "layout"), [("llama", {"data": 2}), ("glm4_moe", {"data": 2, "expert": 2})])
def test_the_next_steps_after_a_restart_are_those_of_an_uninterrupted_run(name, layout, tmp_path):
    build(name, tmp_path / "model")
    job = learner_job(tmp_path / "model", **layout)
    wanted = run_ranks(job, uninterrupted, tmp_path)
    assert len(set(wanted[0])) == STEPS, "every step changed something"
    for begun in (False, True):
        with pytest.raises(AssertionError, match="rank 0"):
            run_ranks(job, killed_as_it_saves, tmp_path, begun)
        assert not (tmp_path / "killed").exists(), "a checkpoint is whole or absent"
    for rank, found in enumerate(run_ranks(job, restored, tmp_path, (2, 0, 4))):
        for start, digests in found.items():
            assert digests == wanted[rank][start : start + NEXT], f"rank {rank} from step {start}"
