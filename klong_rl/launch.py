"""`python -m klong_rl.launch [+stage=N] [key=value ...]`: the main job, from a bare configuration to a report.

    check everything ─▶ Redis ─▶ Ray ─▶ cold start (cached) ─▶ learner, actors ─▶ LearnerLives.run ─▶ summary, report
          │                                                         ▲
          └ one clear line, exit code 2, nothing started            └ the newest checkpoint of the run directory

Whatever was started is stopped in the reverse order, however this ends. The run directory is all that a later launch
needs to go on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from klong_rl import gpu_memory, gpus, learned, preflight, resume, services
from klong_rl.beside import beside
from klong_rl.blocking import in_thread
from klong_rl.buffer import Buffer, BufferAddress
from klong_rl.buffer.archive import Archiver
from klong_rl.chat import ChatFormat
from klong_rl.checkpoints import Checkpoints, RunState
from klong_rl.cli import load_config, run_main
from klong_rl.cold_start import ColdStart
from klong_rl.config import RunConfig
from klong_rl.dashboard.beside import served
from klong_rl.dashboard.text import keep_tokenizer
from klong_rl.errors import UserError
from klong_rl.failures import InfrastructureFailure, TaskFailure
from klong_rl.fleet import Fleet
from klong_rl.groups import to_windows
from klong_rl.interrupt import EXIT_CODES, Interrupts
from klong_rl.lives import LearnerLives
from klong_rl.monitor.metrics import SUMMARY_FILE
from klong_rl.monitor.progress import FleetStatus, Progress
from klong_rl.monitor.prometheus import endpoint
from klong_rl.objectives import build_objective
from klong_rl.pace import keep_pace
from klong_rl.pacing import Pacing
from klong_rl.recorded import RecordedFleet
from klong_rl.results import RunLog, show_finished
from klong_rl.steering.controls import Controls

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
        # Built by the learner's ranks, which come after the cold start; a mistake in it is told now.
        build_objective(config.learner.objective, config.learner.objective_options)
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
            asyncio.run(docker.preflight(config.sandbox.image, config.sandbox.hosts, config.sandbox.runtime))
        except (InfrastructureFailure, TaskFailure) as failure:
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
        if state.curriculum.finished and (self.run_dir / SUMMARY_FILE).exists():
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
        from actors.settings import ActorSettings

        cold = ColdStart(self.config, self.family)
        base = cold.base()
        self._check_model(base)
        preflight.save_configuration(self.run_dir, asdict(self.config))
        address, server = services.start_redis(stack, self.config.buffer, self.run_dir, self.run_id)
        await stack.enter_async_context(beside(services.keep_redis_alive(server, self.progress.warn)))
        buffer = await services.connect(stack, address)
        await resume.check_same_life(buffer, state, self.run_dir)
        controls = await self._controls(stack, address, state)
        sandboxes = services.sandbox_factory(self.config.sandbox, self.run_dir, self.run_id)
        await self._sort_out_sandboxes(stack, sandboxes, buffer)
        gpus.check_cluster(self.config, services.start_ray(stack, self.config.ray_address))
        self.interrupts.arm()  # ray.init put a handler of its own on SIGTERM
        with self.progress:
            if self.config.dashboard:
                self.progress.say(await stack.enter_async_context(served(self.run_dir)))
            model = await self._cold_start(cold, base)
            keep_tokenizer(self.run_dir, model)
            log = RunLog(self.config, self.run_dir, self.progress)
            stack.callback(log.close)
            if self.config.monitor.prometheus_port:
                self.progress.say(f"metrics: {stack.enter_context(endpoint(self.config.monitor, log.numbers))}")
            archiver = Archiver(buffer, self.run_dir / "archive")
            stack.push_async_callback(archiver.close)
            settings = ActorSettings(self.config, self.run_dir, str(model), address, sandboxes)
            fleet = self._fleet(stack, settings, buffer, controls.first_actors)
            pacing = Pacing.of(self.config)
            lives = LearnerLives(
                self.config,
                self.run_dir,
                self.checkpoints,
                buffer,
                fleet,
                self.family,
                archiver,
                log,
                pacing,
                controls,
                self._new_learner(stack, model, address),
            )
            if state.curriculum.finished:
                log.begin(state)
            else:
                pace = keep_pace(self.run_dir, fleet, buffer, log, pacing)
                steering = controls.run(fleet, buffer, self.interrupts.stop)
                async with beside(pace), beside(steering):
                    await lives.run(self.stage)
            await archiver.finish()
            log.finish(await buffer.counts())

    def _check_model(self, base: Path) -> None:
        """Whether this configuration can work with the base checkpoint, before anything starts. Raises UserError."""
        from learners.job import LearnerJob
        from learners.model import check as check_learner

        preflight.check_model_folder(base)
        preflight.check_prompts(self.config, self.family, ChatFormat(base))
        check_learner(LearnerJob(str(base), self.config.learner))
        gpus.check_tensor_parallel(self.config, json.loads((base / "config.json").read_text()))
        if self.config.learner.device == "cuda" and not self.config.ray_address:
            gpu_memory.check(self.config, base, gpu_memory.gpu_total())

    def _already_finished(self, state: RunState) -> int:
        self.progress.say(
            f"{self.run_dir} is finished ({state.step} steps). To train stage N again: +stage=N; another run: name=NAME"
        )
        show_finished(self.run_dir, self.progress)
        return 0

    async def _sort_out_sandboxes(self, stack: AsyncExitStack, spec: dict[str, Any], buffer: Buffer) -> None:
        """Of an earlier launch, keep those whose episodes go on, to be adopted. At the end none is kept."""
        factory = instantiate(spec)
        stack.push_async_callback(factory.close)
        stack.push_async_callback(self._remove_sandboxes, factory, buffer)
        under_way = {episode.id for episode in await buffer.in_progress()}
        if removed := await factory.reap(under_way, snapshots=not self.config.judge.keep_snapshots):
            self.progress.say(f"removed {len(removed)} sandboxes that an earlier launch left behind")
        if under_way:
            self.progress.say(f"{len(under_way)} episodes of an earlier launch go on")

    async def _remove_sandboxes(self, factory: Any, buffer: Buffer) -> None:
        """All of them. As long as the run isn't finished, snapshots stay: its episodes go on from them."""
        from actors.snapshots import park_sealed

        newest = self.checkpoints.newest()
        finished = newest is not None and Checkpoints.state(newest).curriculum.finished
        if not finished:
            await park_sealed(buffer, factory)
        await factory.reap(set(), snapshots=finished and not self.config.judge.keep_snapshots)

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

    def _new_learner(self, stack: AsyncExitStack, model: Path, address: BufferAddress) -> Callable[[], Any]:
        """What makes the ranks of one life of the learner, with the weights of `model`. It blocks until they are up."""
        from learners.group import LearnerGroup
        from learners.job import LearnerJob
        from learners.link import LinkedWeights
        from learners.publish import GpuWeights, WeightFolder

        engine = self.config.engine
        job = LearnerJob(
            model=str(model),
            learner=self.config.learner,
            temperature=self.config.agent.temperature,
            seed=self.config.seed,
            logprobs=str(self.run_dir / learned.FOLDER) if self.config.learner.keep_logprobs else "",
        )
        if engine.weight_transfer == "ipc":
            weights = GpuWeights()
        elif engine.weight_transfer == "network":
            weights = LinkedWeights(engine.transfer_timeout_s)
        else:
            weights = WeightFolder.in_shared_memory(self.run_id)
        stack.callback(weights.remove)
        weights.remove()  # of a launch that was killed
        return lambda: LearnerGroup(job, weights, address)

    async def _controls(self, stack: AsyncExitStack, address: BufferAddress, state: RunState) -> Controls:
        """What the operator wanted of an earlier launch still holds, and is told."""
        controls = Controls(self.config, services.mailbox(stack, address))
        await controls.load(state.curriculum.stage, state.step, entered=self.stage is not None)
        if controls.paused:
            self.progress.say(f"the run is paused: python -m klong_rl.steer resume run={self.run_dir} lets it go on")
        return controls

    def _fleet(
        self, stack: AsyncExitStack, settings: Any, buffer: Buffer, sizes: dict[str, int]
    ) -> Fleet | RecordedFleet:
        from actors.judge import JudgeActor
        from actors.rollout import RolloutActor

        if self.config.rollout.recorded:
            fleet = RecordedFleet(Path(self.config.rollout.recorded), buffer, to_windows(self.config))
        else:
            fleet = Fleet(self.config, settings, RolloutActor, JudgeActor, buffer, self.progress.warn, sizes)

        async def stop() -> None:
            for complaint in await fleet.stop():
                self.progress.warn(complaint)

        stack.push_async_callback(stop)
        return fleet


if __name__ == "__main__":
    run_main(main)
