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
import os
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from klong_rl import preflight
from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis, ServerFault, Unavailable
from klong_rl.checkpoints import Checkpoints, RunState
from klong_rl.cli import load_config, run_main
from klong_rl.cold_start import ColdStart
from klong_rl.config import RunConfig
from klong_rl.errors import UserError
from klong_rl.failures import InfrastructureFailure
from klong_rl.fleet import Fleet
from klong_rl.interrupt import EXIT_CODES, cancel_on_signals
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
        quiet_libraries()
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


def quiet_libraries() -> None:
    """Libraries' own chatter stays out of the display, here and in every process that Ray starts."""
    os.environ |= {
        "RAY_DEDUP_LOGS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }


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
        state = self._where_to_begin()
        if state.finished:
            return self._already_finished(state)
        signals = cancel_on_signals()
        try:
            async with AsyncExitStack() as stack:
                log = await self._train(stack, state)
        except asyncio.CancelledError:
            if not signals:
                raise
            newest = self.checkpoints.newest()
            again = f"goes on after step {Checkpoints.state(newest).step}" if newest else "begins at the cold start"
            self.progress.console.print(f"stopped; launching again on {self.run_dir} {again}")
            return EXIT_CODES[signals[0]]
        log.finish()
        return 0

    async def _train(self, stack: AsyncExitStack, state: RunState) -> RunLog:
        cold = ColdStart(self.config, self.family)
        base = cold.base()
        preflight.check_model_folder(base)
        address = self._start_redis(stack)
        buffer = await self._connect(stack, address)
        sandboxes = self._sandbox_spec()
        await self._clear_leftovers(stack, sandboxes)
        self._start_ray(stack)
        with self.progress:
            model = await self._cold_start(cold, base)
            newest = self.checkpoints.newest()
            learner = await self._start_learner(stack, model, address)
            if newest is not None:
                await asyncio.to_thread(learner.load, newest / "megatron")
            await self._restore_buffer(buffer, state)
            weights = newest / "hf" if newest is not None else model
            fleet = await self._start_fleet(stack, str(weights), address, sandboxes, state)
            log = RunLog(self.config, self.run_dir, state, self.progress)
            stack.callback(log.close)
            training = Training(
                self.config, state, buffer, fleet, learner, self.family, self.checkpoints, log.step, log.phase
            )
            await self._with_display(training, fleet, log)
            return log

    def _where_to_begin(self) -> RunState:
        """The state of the newest checkpoint, or a fresh one; moved to the stage asked for. Says which."""
        newest, console = self.checkpoints.newest(), self.progress.console
        state = Checkpoints.state(newest) if newest else RunState()
        source = f"checkpoint {newest.relative_to(self.run_dir)}" if newest else "the cold start"
        if self.stage is not None and (self.stage != state.stage or state.finished):
            state.stage, state.stage_step, state.finished = self.stage, 0, False
            state.evals = {key: value for key, value in state.evals.items() if key.startswith("cold")}
        if newest or self.stage is not None:
            console.print(
                f"{self.run_dir}: entering stage {state.stage} at step {state.stage_step + 1} of "
                f"{self.config.curriculum.stages[state.stage - 1].steps}, from {source}"
            )
        return state

    def _already_finished(self, state: RunState) -> int:
        self.progress.console.print(
            f"{self.run_dir} is finished ({state.step} steps). To train stage N again: +stage=N; another run: name=NAME"
        )
        show_finished(self.run_dir, self.progress)
        return 0

    def _start_redis(self, stack: AsyncExitStack) -> BufferAddress:
        if self.config.buffer.url:
            return BufferAddress(self.config.buffer.url, self.run_id)
        try:
            url = stack.enter_context(EmbeddedRedis(self.run_dir)).url
        except ServerFault as fault:
            raise UserError(str(fault)) from fault
        return BufferAddress(url, self.run_id)

    async def _connect(self, stack: AsyncExitStack, address: BufferAddress) -> Buffer:
        try:
            return await stack.enter_async_context(await Buffer.connect(address))
        except Unavailable as error:
            raise UserError(f"buffer.url={address.url}: {error}") from error

    def _start_ray(self, stack: AsyncExitStack) -> None:
        import ray

        if self.config.ray_address:
            ray.init(address=self.config.ray_address, log_to_driver=False, logging_level="error")
        else:
            # CPUs are an accounting unit here: a small machine runs the same actors, more slowly.
            need = max(os.cpu_count() or 1, 8)
            ray.init(num_cpus=need, include_dashboard=False, log_to_driver=False, logging_level="error")
        stack.callback(ray.shutdown)

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
            self.progress.console.print(f"removed {len(left)} sandboxes that an earlier launch left behind")

    async def _cold_start(self, cold: ColdStart, base: Path) -> Path:
        """The folder that RL starts from: the base checkpoint after SFT on demonstrations, made once."""
        from learners.group import LearnerGroup
        from learners.job import LearnerJob
        from learners.publish import WeightFolder

        if self.config.cold_start.steps == 0:
            return base
        folder = cold.folder(base)
        if folder.exists():
            self.progress.console.print(f"cold start: {folder} (made earlier)")
            return folder

        def train() -> None:
            job = LearnerJob(model=str(base), learner=cold.learner_config(), seed=self.config.seed)
            learner = LearnerGroup(job, WeightFolder.in_shared_memory(f"{self.run_id}-cold"))
            try:
                cold.train(learner, base, folder, self._tell_cold_start)
            finally:
                learner.shutdown()

        await asyncio.to_thread(train)
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
        learner = await asyncio.to_thread(LearnerGroup, job, weights, address)
        stack.callback(learner.shutdown)
        return learner

    async def _restore_buffer(self, buffer: Buffer, state: RunState) -> None:
        """Bring the buffer back to what the restored weights have seen."""
        await buffer.requeue_running("the run was launched again")
        await buffer.commit(state.step)
        await buffer.rollback(state.step)
        state.version = await buffer.publish_version(floor=state.version)

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
                log.fleet(await fleet.status(), await training.buffer.counts())
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
