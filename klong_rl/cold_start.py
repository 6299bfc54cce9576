"""The cold start: SFT on scripted demonstrations, in the tokens of the agent loop, split by the one context rule."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from klong_rl.chat import ChatFormat
from klong_rl.config import AgentConfig, LearnerConfig, RunConfig
from klong_rl.models.folder import whole_or_absent
from klong_rl.tasks.base import Demonstrator, TaskFamily
from klong_rl.types import Task, Window
from klong_rl.windows import ContextRule, flat, windows

CORPUS_TASKS = 400  # enough for every word of a family to appear


def corpus(family: TaskFamily, demonstrator: Demonstrator, difficulties: Sequence[int], system: str) -> list[str]:
    """Sample texts of a family: what a tokenizer made for it is trained on, and what a cold start is cached by."""
    rng = random.Random(0)
    texts = [system, "[exit 1] [output cut] [stopped after 5 s] [the shell ended]", "cat: : No such file or directory"]
    for index in range(CORPUS_TASKS):
        task = family.train(difficulties[index % len(difficulties)], index)
        texts.append(task.instruction)
        texts += [text for turn in demonstrator.demonstrate(task, rng) for text in turn if text]
    return texts


class Demonstrations:
    """An endless stream of windows, the difficulties of the curriculum in turn. The same seed gives the same stream."""

    def __init__(
        self,
        family: TaskFamily,
        demonstrator: Demonstrator,
        chat: ChatFormat,
        agent: AgentConfig,
        rule: ContextRule,
        difficulties: Sequence[int],
        seed: int,
    ) -> None:
        self._family = family
        self._demonstrator = demonstrator
        self._chat = chat
        self._agent = agent
        self._rule = rule
        self._difficulties = difficulties
        self._rng = random.Random(f"demonstrations/{seed}")

    def __iter__(self) -> Iterator[Window]:
        index = 0
        while True:
            task = self._family.train(self._rng.choice(self._difficulties), index)
            yield from self.windows(task, f"demonstration/{index}")
            index += 1

    def windows(self, task: Task, episode: str) -> list[Window]:
        """One demonstration of `task`, split."""
        prefix_P = self._chat.prefix(self._agent.system, task.instruction)
        turns = self._demonstrator.demonstrate(task, self._rng)
        encoded = self._chat.turns(turns, self._agent.observation_tokens)
        return list(windows(flat(episode, prefix_P, encoded), self._rule))


class ColdStart:
    """The checkpoint that RL starts from: SFT on demonstrations, made once and found again by what it was made of."""

    def __init__(self, config: RunConfig, family: TaskFamily) -> None:
        self._config = config
        self._family = family
        self._cache = Path(config.cache).resolve()
        self._demonstrator = instantiate(config.cold_start.demonstrator) if config.cold_start.steps else None

    def base(self) -> Path:
        """The base checkpoint's folder, made if need be."""
        from transformers.utils import logging

        logging.disable_progress_bar()  # of its own, beside ours
        source = instantiate(self._config.model.source)
        return source.build(self._cache, self._corpus(), self._config.seed)

    def folder(self, base: Path) -> Path:
        """Where the result is, or will be. Its name holds all that it depends on."""
        config = self._config
        parts = [asdict(config.cold_start), asdict(config.window), asdict(config.agent), config.seed, str(base)]
        parts += [asdict(config.learner.optimizer), config.learner.dtype, self._corpus()]
        digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()
        return self._cache / "cold-start" / f"{config.model.name}-{digest}"

    def learner_config(self) -> LearnerConfig:
        """The learner's settings, with the cold start's learning rate."""
        cold = self._config.cold_start
        own = {"lr": cold.lr, "warmup_steps": cold.warmup_steps, "decay": "constant"}
        optimizer = replace(self._config.learner.optimizer, **own)
        return replace(self._config.learner, optimizer=optimizer)

    def train(self, learner: Any, base: Path, folder: Path, tell: Callable[[int, float], None]) -> None:
        """SFT `learner` (a learners.group.LearnerGroup on `base`) and save it to `folder`."""
        config = self._config
        rule = ContextRule.of(config.window, config.agent)
        chat, difficulties = ChatFormat(base), self._difficulties()
        demonstrations = iter(
            Demonstrations(self._family, self._demonstrator, chat, config.agent, rule, difficulties, config.seed)
        )
        for step in range(1, config.cold_start.steps + 1):
            windows = list(itertools.islice(demonstrations, config.cold_start.windows_per_step))
            tell(step, learner.sft_step(windows)["loss"])
        with whole_or_absent(folder) as partial:
            learner.save_hf(partial)

    def _corpus(self) -> list[str]:
        if self._demonstrator is None:
            return []
        return corpus(self._family, self._demonstrator, self._difficulties(), self._config.agent.system)

    def _difficulties(self) -> list[int]:
        return [stage.difficulty for stage in self._config.curriculum.stages]
