"""`python -m klong_rl.sft data=PATH [key=value ...]`: trajectory-splitting SFT, from files to a Hugging Face folder.

    check everything ─▶ index the data ─▶ Ray ─▶ learner ─▶ [load the newest checkpoint] ─▶ SftTraining.run ─▶ done
          └ one clear line, exit code 2                  ▲                                        │
                                                         └────────── LearnerFailure ◀─────────────┘

The run directory is all that a later launch needs to go on, at the batch after the newest checkpoint.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from hydra.utils import instantiate

from klong_rl import gpu_memory, preflight, services
from klong_rl.blocking import in_thread
from klong_rl.checkpoints import Checkpoints
from klong_rl.cli import compose_config, run_main
from klong_rl.errors import UserError
from klong_rl.fine_tuning.config import MATTERS, SftConfig, check
from klong_rl.fine_tuning.files import DataSet, open_files
from klong_rl.fine_tuning.rows import Encoder, Row
from klong_rl.fine_tuning.stream import WindowSource, WindowStream, held_out_windows, is_held_out
from klong_rl.fine_tuning.training import SftState, SftTraining
from klong_rl.interrupt import EXIT_CODES, Interrupts
from klong_rl.live_on import live_on
from klong_rl.monitor.sft_progress import SftProgress
from klong_rl.types import Trajectory, Window
from klong_rl.windows import ContextRule

SAMPLE_CHARACTERS = 10**6


def main(overrides: list[str]) -> int:
    """Run the fine-tuning; the exit code."""
    config = load_sft_config(overrides)
    run_dir = Path(config.root, config.name).resolve()
    preflight.check_writable(run_dir)
    preflight.check_free_disk(run_dir, config.min_free_disk_mb)
    with preflight.locked(run_dir):
        preflight.check_same_configuration(run_dir, asdict(config), MATTERS)
        services.quiet_libraries()
        try:
            return asyncio.run(FineTuning(config, run_dir).run())
        except KeyboardInterrupt:
            return EXIT_CODES[signal.SIGINT]


def load_sft_config(overrides: list[str]) -> SftConfig:
    """The checked configuration. Raises UserError."""
    config = compose_config("sft", "sft_schema", SftConfig, overrides)
    check(config)
    return config


class FineTuning:
    """One launch of one fine-tuning."""

    def __init__(self, config: SftConfig, run_dir: Path) -> None:
        self.config = config
        self.run_dir = run_dir
        self.checkpoints = Checkpoints(run_dir, config.learner.keep_checkpoints)
        self.progress = SftProgress(config.name, config.epochs, config.steps)

    async def run(self) -> int:
        """From the files to the last checkpoint, or to the signal that ends it."""
        state = self._state()
        data = self._open_data(state)
        base = self._base(data)
        self._check_learner(base)
        encoder = Encoder(base, self.config.agent)
        if not state.data:  # an earlier launch looked at every row
            self.progress.say(f"data={self.config.data}: {data.check(self._look(encoder))} trajectories")
        preflight.save_configuration(self.run_dir, asdict(self.config))
        source, held_out = self._sources(data, encoder)
        if self._is_finished(source, state):
            self._tell_result()
            return 0
        interrupts = Interrupts()
        interrupts.arm()
        try:
            async with AsyncExitStack() as stack:
                services.start_ray(stack, self.config.ray_address)
                interrupts.arm()  # ray.init put a handler of its own on SIGTERM
                with self.progress:
                    await live_on(
                        self._state, lambda state: self._live(state, base, source, held_out), self.progress.warn
                    )
        except asyncio.CancelledError:
            if not interrupts.came:
                raise
            self.progress.say(f"stopped; launching again on {self.run_dir} goes on after step {self._state().step}")
            return EXIT_CODES[interrupts.came[0]]
        self._tell_result()
        return 0

    async def _live(self, state: SftState, base: Path, source: WindowSource, held_out: list[Window]) -> None:
        """One life of the learner, from the newest checkpoint (whose state is `state`) to the end, or its own."""
        from learners.group import LearnerGroup
        from learners.job import LearnerJob
        from learners.publish import WeightFolder

        newest = self.checkpoints.newest()
        state.data = source.data.fingerprint()
        job = LearnerJob(model=str(base), learner=self.config.learner, seed=self.config.seed)
        # Nothing is published here; the folder is made only when it is.
        learner = await in_thread(LearnerGroup, job, WeightFolder.in_shared_memory(self.run_dir.name))
        try:
            if newest is not None:
                self.progress.say(f"going on after step {state.step}, from {newest}")
                await in_thread(learner.load, newest / "megatron", stop=learner.shutdown)
            training = SftTraining(
                self.config,
                self.run_dir,
                self.checkpoints,
                learner,
                self._stream(source, state),
                held_out,
                state,
                self.progress.step,
            )
            await in_thread(training.run, stop=learner.shutdown)
        finally:
            learner.shutdown()
            self.checkpoints.discard()

    def _state(self) -> SftState:
        newest = self.checkpoints.newest()
        return SftState() if newest is None else Checkpoints.state(newest, SftState)

    def _open_data(self, state: SftState) -> DataSet:
        """The training data. Raises UserError if it isn't what an earlier launch was given."""
        data = DataSet(open_files(self.config.data, "data"), self.config.min_score)
        if state.data and state.data != data.fingerprint():
            raise UserError(
                f"data={self.config.data} is not what {self.run_dir} was trained on: "
                f"{_first_change(state.data, data)}; restore it to go on, or set name= to start another fine-tuning"
            )
        return data

    def _look(self, encoder: Encoder) -> Callable[[Row], None]:
        return partial(encoder.check, max_tokens=self.config.window.max_tokens)

    def _base(self, data: DataSet) -> Path:
        """The folder of the model to fine-tune, made if need be."""
        from transformers.utils import logging

        logging.disable_progress_bar()  # of its own, beside ours
        source = instantiate(self.config.model.source)
        texts = [self.config.agent.system, *_sample_texts(data)]
        base = source.build(Path(self.config.cache).resolve(), texts, self.config.seed)
        preflight.check_model_folder(base)
        return base

    def _check_learner(self, base: Path) -> None:
        """Raise UserError, before anything is started, for a layout or a GPU that doesn't fit the model."""
        from learners.job import LearnerJob
        from learners.model import check as check_layout

        check_layout(LearnerJob(str(base), self.config.learner))
        if self.config.learner.device == "cuda" and not self.config.ray_address:
            gpu_memory.check_learner(self.config.learner, base, gpu_memory.gpu_total())

    def _sources(self, data: DataSet, encoder: Encoder) -> tuple[WindowSource, list[Window]]:
        """What is trained, and the windows that are evaluated."""
        config = self.config
        rule = ContextRule.of(config.window, config.agent)
        share = 0.0 if config.held_out else config.held_out_share
        train = WindowSource(data, encoder, rule, config.seed, lambda row: not is_held_out(row.id, share))
        kept = WindowSource(data, encoder, rule, config.seed, lambda row: is_held_out(row.id, share))
        if config.held_out:
            other = DataSet(open_files(config.held_out, "held_out"), min_score=None)
            other.check(self._look(encoder))
            kept = WindowSource(other, encoder, rule, config.seed, lambda row: True)
        held_out = held_out_windows(kept, config.held_out_tokens)
        if not held_out:
            self.progress.warn("nothing is held out, so there is no evaluation loss; set held_out= or held_out_share=")
        return train, held_out

    def _stream(self, source: WindowSource, state: SftState) -> WindowStream:
        return WindowStream(
            source,
            state.position,
            epochs=self.config.epochs,
            shuffle_windows=self.config.shuffle_windows,
            tokens_per_step=self.config.tokens_per_step,
        )

    def _is_finished(self, source: WindowSource, state: SftState) -> bool:
        """Whether nothing is left to train. UserError where there never was."""
        at_end = self._stream(source, state).is_exhausted()
        if at_end and state.step == 0:
            raise UserError(f"held_out_share={self.config.held_out_share:g} leaves no trajectory to train; lower it")
        return at_end or 0 < self.config.steps <= state.step

    def _tell_result(self) -> None:
        newest, state = self.checkpoints.newest(), self._state()
        self.progress.say(f"{state.step} steps, {state.tokens} tokens: the model is {newest / 'hf'}")


def _sample_texts(data: DataSet) -> list[str]:
    """Texts of the first conversations: a model that is made here has its tokenizer from them."""
    texts, left = [], SAMPLE_CHARACTERS
    rows = (row for unit in range(len(data)) for _, row in data.rows(unit))
    for row in rows:
        if isinstance(row.content, Trajectory) or left <= 0:
            break
        texts += [message.content for message in row.content]
        left -= sum(len(message.content) for message in row.content)
    return texts


def _first_change(before: list[tuple[str, int]], data: DataSet) -> str:
    """In words, of the files' names and sizes."""
    for was, now in itertools.zip_longest(before, data.fingerprint()):
        if was != now:
            words = ["no file" if file is None else f"{file[0]} of {file[1]} bytes" for file in (was, now)]
            return f"{words[0]} then, {words[1]} now"
    return "no change"


if __name__ == "__main__":
    run_main(main)
