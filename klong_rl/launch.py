"""`python -m klong_rl.launch [+stage=N] [key=value ...]`: the main job, from a bare configuration to a report.

    check everything ──▶ Redis ──▶ Ray ──▶ cold start (cached) ──▶ learner, actors ──▶ Training.run ──▶ summary, report
          │                                                              ▲
          └ one clear line, exit code 2, nothing started                 └ the newest checkpoint of the run directory

Whatever was started is stopped in the reverse order, however this ends. The run directory is all that a later launch
needs to go on.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from klong_rl import preflight, resume, services
from klong_rl.blocking import in_thread
from klong_rl.buffer import BufferAddress
from klong_rl.buffer.archive import Archiver
from klong_rl.checkpoints import Checkpoints, RunState
from klong_rl.cli import load_config, run_main
from klong_rl.cold_start import ColdStart
from klong_rl.config import RunConfig
from klong_rl.errors import UserError
from klong_rl.failures import InfrastructureFailure
from klong_rl.fleet import ActorFailure, Fleet
from klong_rl.interrupt import EXIT_CODES, Interrupts
from klong_rl.monitor.metrics import SUMMARY_FILE
from klong_rl.monitor.progress import FleetStatus, Progress
from klong_rl.results import RunLog, show_finished
from klong_rl.training import Training

STATUS_EVERY_S = 1.0
TELL_EVERY_STEPS = 10  # of the cold start


def main(overrides: list[str]) -> int:
    """Run the job; the exit code."""
    config, stage = load_config(overrides)
    run_dir = Path(config.root, config.name).resolve()
    check_machine(config, run_dir)
    with preflight.locked(run_dir):
        preflight.check_same_configuration(run_dir, asdict(config))
        services.quiet_libraries()
        try:
            return asyncio.run(Launch(config, run_dir, stage).run())
        except KeyboardInterrupt:
            return EXIT_CODES[signal.SIGINT]


def run_id(run_dir: Path) -> str:
    """What the run is called outside its directory. The name alone isn't unique on a host: two roots may share it."""
    return f"{run_dir.name}-{hashlib.blake2b(str(run_dir).encode(), digest_size=3).hexdigest()}"


def check_machine(config: RunConfig, run_dir: Path) -> None:
    """Raise UserError for what this machine lacks, before anything is started."""
    from sandboxes import docker

    preflight.check_writable(run_dir)
    preflight.check_free_disk(run_dir, config.min_free_disk_mb)
    if not config.buffer.url:
        preflight.check_redis_server()
    if config.sandbox.kind == "docker":
        try:
            asyncio.run(docker.preflight(config.sandbox.image))
        except InfrastructureFailure as failure:
            raise UserError(str(failure)) from failure


class Launch:
    """One launch of one run."""

    def __init__(self, config: RunConfig, run_dir: Path, stage: int | None) -> None:
        self.config = config
        self.run_dir = run_dir
        self.stage = stage
        self.run_id = run_id(run_dir)
        self.checkpoints = Checkpoints(run_dir, config.learner.keep_checkpoints)
        self.family = instantiate(config.tasks)
        steps = sum(stage.steps for stage in config.curriculum.stages)
        self.progress = Progress(f"klong_rl {config.name}", stages=len(config.curriculum.stages), steps=steps)

    async def run(self) -> int:
        """From start to report, or to the signal that ends it."""
        state, where = resume.where_to_begin(self.checkpoints, self.config.curriculum.stages, self.stage)
        if where:
            self.progress.say(f"{self.run_dir}: {where}")
        if state.finished and (self.run_dir / SUMMARY_FILE).exists():
            return self._already_finished(state)
        self.interrupts = Interrupts()
        self.interrupts.arm()
        try:
            async with AsyncExitStack() as stack:
                await self._train(stack, state)
        except asyncio.CancelledError:
            if not self.interrupts.came:
                raise
            newest = self.checkpoints.newest()
            again = f"goes on after step {Checkpoints.state(newest).step}" if newest else "begins at the cold start"
            self.progress.say(f"stopped; launching again on {self.run_dir} {again}")
            return EXIT_CODES[self.interrupts.came[0]]
        return 0

    async def _train(self, stack: AsyncExitStack, state: RunState) -> None:
        cold = ColdStart(self.config, self.family)
        base = cold.base()
        preflight.check_model_folder(base)
        preflight.save_configuration(self.run_dir, asdict(self.config))
        address, _ = services.start_redis(stack, self.config.buffer, self.run_dir, self.run_id)
        buffer = await services.connect(stack, address)
        await resume.check_same_life(buffer, state, self.run_dir)
        sandboxes = self._sandbox_spec()
        await self._clear_leftovers(stack, sandboxes)
        services.start_ray(stack, self.config.ray_address)
        self.interrupts.arm()  # ray.init put a handler of its own on SIGTERM
        with self.progress:
            model = await self._cold_start(cold, base)
            newest = self.checkpoints.newest()
            learner = await self._start_learner(stack, model, address)
            if newest is not None:
                await in_thread(learner.load, newest / "megatron", stop=learner.shutdown)
            await resume.restore_buffer(buffer, state)
            weights = newest / "hf" if newest is not None else model
            fleet = await self._start_fleet(stack, str(weights), address, sandboxes, state)
            log = RunLog(self.config, self.run_dir, state, self.progress)
            stack.callback(log.close)
            archiver = Archiver(buffer, self.run_dir / "archive")
            stack.push_async_callback(archiver.close)
            training = Training(
                self.config,
                state,
                buffer,
                fleet,
                learner,
                self.family,
                self.checkpoints,
                archiver,
                log.step,
                log.phase,
                log.warn,
            )
            if not state.finished:
                await self._with_display(training, fleet, log)
            await archiver.finish()
            log.finish(await buffer.counts())

    def _already_finished(self, state: RunState) -> int:
        self.progress.say(
            f"{self.run_dir} is finished ({state.step} steps). To train stage N again: +stage=N; another run: name=NAME"
        )
        show_finished(self.run_dir, self.progress)
        return 0

    def _sandbox_spec(self) -> dict[str, Any]:
        config = self.config.sandbox
        if config.kind == "process":
            return {"_target_": "sandboxes.process.ProcessSandboxes", "run": self.run_id}
        runtime = config.runtime or None
        return {"_target_": "sandboxes.docker.DockerSandboxes", "run": self.run_id, "runtime": runtime}

    async def _clear_leftovers(self, stack: AsyncExitStack, spec: dict[str, Any]) -> None:
        """Remove what a launch that was killed left behind, and at the end whatever this one leaves."""
        factory = instantiate(spec)
        stack.push_async_callback(factory.close)
        stack.push_async_callback(factory.reap, set())
        left = await factory.reap(set())
        if left:
            self.progress.say(f"removed {len(left)} sandboxes that an earlier launch left behind")

    async def _cold_start(self, cold: ColdStart, base: Path) -> Path:
        """The folder that RL starts from: the base checkpoint after SFT on demonstrations, made once."""
        from learners.group import LearnerGroup
        from learners.job import LearnerJob
        from learners.publish import WeightFolder

        if self.config.cold_start.steps == 0:
            return base
        folder = cold.folder(base)
        if folder.exists():
            self.progress.say(f"cold start: {folder} (made earlier)")
            return folder

        job = LearnerJob(model=str(base), learner=cold.learner_config(), seed=self.config.seed)
        learner = await in_thread(LearnerGroup, job, WeightFolder.in_shared_memory(self.run_id))
        try:
            await in_thread(cold.train, learner, base, folder, self._tell_cold_start, stop=learner.shutdown)
        finally:
            learner.shutdown()
        return folder

    def _tell_cold_start(self, step: int, loss: float) -> None:
        total = self.config.cold_start.steps
        if step % TELL_EVERY_STEPS and step != total:
            return
        self.progress.update(FleetStatus(phase=f"cold start: step {step}/{total}, loss {loss:.3f}", stage=0))

    async def _start_learner(self, stack: AsyncExitStack, model: Path, address: BufferAddress) -> Any:
        from learners.group import LearnerGroup
        from learners.job import LearnerJob
        from learners.publish import WeightFolder

        self.progress.update(FleetStatus(phase="starting learner", stage=0))
        job = LearnerJob(
            model=str(model),
            learner=self.config.learner,
            temperature=self.config.agent.temperature,
            seed=self.config.seed,
        )
        weights = WeightFolder.in_shared_memory(self.run_id)
        stack.callback(weights.remove)
        weights.remove()  # of a launch that was killed
        learner = await in_thread(LearnerGroup, job, weights, address)
        stack.callback(learner.shutdown)
        return learner

    async def _start_fleet(
        self, stack: AsyncExitStack, weights: str, address: BufferAddress, sandboxes: dict[str, Any], state: RunState
    ) -> Fleet:
        from actors.judge import JudgeActor
        from actors.rollout import RolloutActor
        from actors.settings import ActorSettings

        self.progress.update(FleetStatus(phase="starting engines", stage=state.stage))
        settings = ActorSettings(self.config, weights, address, sandboxes)
        fleet = Fleet(self.config, settings, RolloutActor, JudgeActor)
        stack.push_async_callback(self._stop_fleet, fleet)
        await fleet.start(state.version)
        return fleet

    async def _stop_fleet(self, fleet: Fleet) -> None:
        for complaint in await fleet.stop():
            self.progress.warn(complaint)

    async def _with_display(self, training: Training, fleet: Fleet, log: RunLog) -> None:
        """Run the training and, beside it, keep the display moving."""

        async def watch() -> None:
            while True:
                began = time.monotonic()
                try:
                    log.fleet(await fleet.status(), await training.buffer.counts())
                except ActorFailure as failure:  # only the display wants to know; the training has its own deadlines
                    log.warn(str(failure))
                await asyncio.sleep(max(0.0, STATUS_EVERY_S - (time.monotonic() - began)))

        watcher = asyncio.create_task(watch())
        work = asyncio.create_task(training.run())
        try:
            done, _ = await asyncio.wait([watcher, work], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            watcher.cancel()
            work.cancel()
            await asyncio.gather(watcher, work, return_exceptions=True)


if __name__ == "__main__":
    run_main(main)
