"""Run directories as a finished run leaves them, of any size, with texts of the caller's.

For tests of the dashboard and its benchmark. No model wrote them: tokens are bytes, log-probs are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from klong_rl import learned
from klong_rl.buffer.archive import ArchiveFiles, ConsumedGroup
from klong_rl.buffer.records import EpisodeView, Member
from klong_rl.dashboard.text import FILE, FOLDER
from klong_rl.judging.record import Call, Command, Read, Record, Records
from klong_rl.judging.store import Store
from klong_rl.monitor.metrics import METRICS_FILE, StepMetrics
from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Turn, Verdict
from klong_rl.windows import ContextRule, context_start, split

STEPS = 6


class Said(NamedTuple):
    """One turn in texts."""

    action: str
    command: str = ""
    observation: str = ""
    exit_code: int | None = 0


def byte_tokenizer() -> Tokenizer:
    """A token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class RunMaker:
    """Writes one run directory."""

    def __init__(self, run_dir: Path, model: str = "nano", seed: int = 0) -> None:
        self.run_dir = run_dir
        self.files = ArchiveFiles(run_dir / "archive")
        self._random = np.random.default_rng(seed)
        self._text = byte_tokenizer()
        (run_dir / FOLDER).mkdir(parents=True)
        self._text.save(str(run_dir / FOLDER / FILE))
        stages = [{"timeout_s": 20.0, "max_turns": 6, "steps": 3}, {"timeout_s": 40.0, "max_turns": 9, "steps": 3}]
        config = {
            "model": {"name": model},
            "curriculum": {"stages": stages},
            "rollout": {"max_staleness": 1},
            "window": {},
            "buffer": {"url": ""},
        }
        (run_dir / "config.json").write_text(json.dumps(config))

    def tokens(self, text: str) -> np.ndarray:
        return np.array(self._text.encode(text).ids, np.int32)

    def steps(self) -> None:
        """metrics.jsonl."""
        rows = []
        for step in range(1, STEPS + 1):
            numbers = {"forward_backward_s": 1.0, "optimizer_s": 0.1, "pacing_groups_ahead": 2.0}
            rows.append(
                StepMetrics(
                    step=step, stage=1 + (step > 3), timeout_s=20.0, reward_mean=step / 10, solved_fraction=step / 20,
                    policy_version=step, staleness_max=1, wait_s=2.0, learner_s=1.3, publish_s=0.2, loss=0.1,
                    logprob_gap_mean=1e-5, logprob_gap_max=1e-3, grad_norm=1.0, extras=numbers,
                )
            )  # fmt: skip
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        (self.run_dir / METRICS_FILE).write_bytes(lines)

    def turns(self, said: Sequence[Said], prefix_tokens: int, rule: ContextRule) -> list[Turn]:
        made: list[Turn] = []
        start = 0
        for index, one in enumerate(said):
            start = context_start([turn.n_tokens() for turn in made], start, prefix_tokens, rule)
            action_A = self.tokens(one.action)
            old = len(action_A) // 2
            versions = tuple(run for run in ((index // 4, old), (index // 4 + 1, len(action_A) - old)) if run[1])
            made.append(
                Turn(
                    index=index, context_start=start, action_A=action_A,
                    logprobs_A=-self._random.exponential(0.4, len(action_A)).astype(np.float32), versions=versions,
                    observation_O=self.tokens(one.observation), command=one.command, exit_code=one.exit_code,
                    seconds=0.5 + 0.1 * (index % 7),
                )
            )  # fmt: skip
        return made

    def group(
        self,
        name: str,
        members: Sequence[Sequence[Said]],
        *,
        task: str = "relay/train/0",
        stage: int = 1,
        step: int | None = 1,
        rule: ContextRule | None = None,
        evidence: Sequence[dict[str, str]] = (),
    ) -> ConsumedGroup:
        """A group whose member i scored i / n, trained in `step` unless that is None."""
        rule = rule or ContextRule(max_tokens=4096, overlap_tokens=256, action_tokens=64)
        prefix_P = self.tokens("You have a shell.\nFollow the clues.\n")
        found, views, windows = [], [], []
        for i, said in enumerate(members):
            spec = EpisodeSpec(
                id=f"{name}-e{i}", group=name, group_size=len(members), stage=stage,
                purpose="eval" if step is None else "train", timeout_s=20.0, max_turns=max(1, len(said)),
                task=Task(id=task, family="relay", instruction="Follow the clues.", image="none"),
            )  # fmt: skip
            turns, score = self.turns(said, len(prefix_P), rule), i / len(members)
            outcome = Outcome(kind="turn_limit" if i % 3 == 2 else "submitted")
            verdict = Verdict(score=score, parts={"solved": score}, evidence=evidence[i] if evidence else {})
            segment = Segment(episode=spec.id, epoch=1, seq=0, turns=tuple(turns), prefix_P=prefix_P)
            found.append(Member(spec, outcome, verdict, [segment]))
            views.append(EpisodeView(spec, "judged", 1, 0, "", 1, outcome, verdict, "", name))
            if step is not None:
                made = split(spec, prefix_P, turns, score)
                windows += [msgspec.structs.replace(window, advantage=score - 0.5) for window in made]
        return ConsumedGroup(name, step, found, views, windows)

    def keep_learned(self, group: ConsumedGroup, gap: float = 1e-4) -> None:
        """The learner's log-probs of a group, each `gap` above the sampler's."""
        found = {window.id: window.logprobs_T[window.targets_T == 1] + np.float32(gap) for window in group.windows}
        learned.write_learned(self.run_dir / learned.FOLDER, group.step, 0, found)

    def record(self, episode: str, path: str, output: str, model: str) -> str:
        """The record of a verdict that read `path`, and both ran and was told `output`; what the verdict names."""
        store = Store(self.run_dir)
        blob = store.put_text(output)
        record = Record(
            episode=episode, group="g", stage=1, purpose="train", epoch=1, outcome="submitted", outcome_detail="",
            timeout_s=20.0, max_turns=9, group_size=2, task=store.put(b"secret"), reward={"_target_": "tests"},
            model=model, endpoint="", score=0.5, parts={}, evidence={}, kept={}, snapshot="", at=1.7e9,
            reads=[Read(path=path, limit=4096, blob=blob)],
            commands=[Command(command=output, exit_code=1, output=blob, timed_out=False, truncated=False,
                              interrupted=False, is_fresh=True)],
            calls=[Call(about=output, request=blob, reply=blob, problem="")],
        )  # fmt: skip
        return Records(store.folder / "records").write(record)
