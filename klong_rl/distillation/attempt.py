"""One attempt of the teacher at a task, in the scaffold of the policy: one command a turn, until it submits or is cut.

    messages = system, task, and the turns that the context rule keeps
    action   = the teacher's answer                    in the journal before its command runs
    observation = what the command printed, cut        in the journal before the next turn begins

It differs from actors.agent in what a context is made of: chat messages, which the teacher's endpoint turns into its
own tokens; their number is reckoned by characters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from klong_rl.blocking import in_thread
from klong_rl.config import AgentConfig
from klong_rl.distillation.journal import Ended, Intended, Journal, Turned
from klong_rl.distillation.teacher import ContextTooLong, Teacher, TeacherRefused
from klong_rl.failures import AgentFailure
from klong_rl.judging.prompts import CHARS_A_TOKEN
from klong_rl.observation import observation_text
from klong_rl.scaffold import SUBMIT, reading, refusal
from klong_rl.types import EpisodeSpec
from klong_rl.windows import ContextOverflow, ContextRule, context_start

MOST_CHARS_A_TOKEN = 8  # on average over an observation, whatever the tokenizer
MESSAGE_TOKENS = 8  # of what stands around a message
SHRINK, SHRUNK_AT_MOST = 0.75, 6  # of the context, where the endpoint counts more tokens than we do
OVERLAP = 0.5  # of the context, that stays when it is cut
LEAST_LIMIT_S = 0.1
REFUSED = "refused"  # the teacher wouldn't: no outcome of an episode, and never judged


class Attempt:
    """`cut(text)` shortens an observation as the policy will see it."""

    def __init__(
        self,
        spec: EpisodeSpec,
        agent: AgentConfig,
        teacher: Teacher,
        reply_tokens: int,
        cut: Callable[[str], str],
        journal: Journal,
        sandbox: Any,
    ) -> None:
        self._spec, self._agent, self._teacher, self._cut = spec, agent, teacher, cut
        self._journal, self._sandbox, self._reply_tokens = journal, sandbox, reply_tokens
        self._reading = reading(spec.task)
        self._room = teacher.room_tokens

    async def run(self) -> Ended:
        """How it ended, in the journal too. Raises InfrastructureFailure: then it goes on another time."""
        journal = self._journal
        if len(journal.intended) > len(journal.turned):
            await self._keep(self._interrupted())
        while (ended := self._ended()) is None:
            try:
                await self._turn()
            except ContextOverflow as overflow:
                ended = Ended(kind="context_limit", detail=str(overflow))
            except TeacherRefused as refused:
                ended = Ended(kind=REFUSED, detail=str(refused))
            except AgentFailure as failure:
                ended = Ended(kind="broken", detail=str(failure))
            if ended is not None:
                break
        await self._keep(ended)
        return ended

    def _ended(self) -> Ended | None:
        journal = self._journal
        if journal.turned and journal.turned[-1].is_end:
            return Ended(kind="submitted")
        if journal.seconds >= self._spec.timeout_s:
            return Ended(kind="timeout", detail=f"after turn {len(journal.turned) - 1}")
        if len(journal.turned) >= self._spec.max_turns:
            return Ended(kind="turn_limit", detail=f"{self._spec.max_turns} turns")
        return None

    async def _turn(self) -> None:
        journal = self._journal
        start, action = await self._act()
        intended = Intended(
            command=action.text,
            thinking=action.thinking,
            is_cut=action.is_cut,
            usage=action.usage,
            seconds=action.seconds,
            context_start=start,
        )
        await self._keep(intended)
        if action.is_cut:
            note = f"[not run: the answer was cut at {self._reply_tokens} tokens; use a shorter command]"
            await self._keep(Turned(observation=note))
            return
        if action.text == SUBMIT:
            await self._keep(self._submitted())
            return
        limit_s = max(LEAST_LIMIT_S, min(self._agent.command_timeout_s, self._spec.timeout_s - journal.seconds))
        result = await self._sandbox.exec(action.text, timeout_s=limit_s)
        timed_out_s = limit_s if result.timed_out else None
        text = observation_text(result.output, result.exit_code, timed_out_s, result.truncated, result.interrupted)
        await self._keep(Turned(observation=self._cut(text), exit_code=result.exit_code, seconds=result.seconds))

    async def _act(self):
        """The context's first turn and the teacher's action, in as much context as the endpoint takes."""
        for _ in range(SHRUNK_AT_MOST):
            start = self._context_start()
            try:
                index = len(self._journal.turned)
                return start, await self._teacher.act(self._spec.task, self._spec.id, index, self.messages(start))
            except ContextTooLong:
                self._room = int(self._room * SHRINK)
        raise ContextOverflow(f"{self._teacher.name} takes no context of {self._room} tokens")

    def _context_start(self) -> int:
        """First turn that is shown, by the rule that the policy's context goes by."""
        rule = ContextRule(self._room, int(self._room * OVERLAP), self._reply_tokens)
        turns = zip(self._journal.intended, self._journal.turned, strict=True)
        lengths = [_tokens(each.command) + _tokens(answer.observation) for each, answer in turns]
        before = self._journal.intended[-1].context_start if lengths else 0
        return context_start(lengths, before, sum(_tokens(each["content"]) for each in self._head()), rule)

    def messages(self, start: int = 0) -> list[dict[str, str]]:
        """The conversation with the turns from `start` on."""
        found = self._head()
        for each, answer in list(zip(self._journal.intended, self._journal.turned, strict=False))[start:]:
            found.append({"role": "assistant", "content": each.command or "(cut)"})
            if not answer.is_end:
                found.append({"role": "user", "content": answer.observation})
        return found

    def _head(self) -> list[dict[str, str]]:
        system = {"role": "system", "content": self._agent.system}
        return [system, {"role": "user", "content": self._spec.task.instruction}]

    def _submitted(self) -> Turned:
        shown = (answer.observation for answer in self._journal.turned)
        used = self._journal.seconds / self._spec.timeout_s
        why = refusal(self._agent.rules, self._reading, shown, used)
        return Turned(observation=self._cut(why), is_end=not why)

    def _interrupted(self) -> Turned:
        """Of a command of which nobody knows how far it came; it is never run again."""
        if self._journal.intended[-1].command == SUBMIT:
            return self._submitted()
        return Turned(observation=self._cut(observation_text("", None, interrupted=True)))

    async def _keep(self, event: Any) -> None:
        await in_thread(self._journal.add, event)


class Teaching:
    """A teacher as who acts in klong_rl.distillation.attempts."""

    def __init__(self, teacher: Teacher, agent: AgentConfig, reply_tokens: int, cut: Callable[[str], str]) -> None:
        self._teacher, self._agent, self._reply_tokens, self._cut = teacher, agent, reply_tokens, cut
        self.name = teacher.name

    def attempt(self, spec: EpisodeSpec, journal: Journal, sandbox: Any = None) -> Attempt:
        return Attempt(spec, self._agent, self._teacher, self._reply_tokens, self._cut, journal, sandbox)

    async def run(self, spec: EpisodeSpec, journal: Journal, sandbox: Any) -> None:
        await self.attempt(spec, journal, sandbox).run()


def _tokens(text: str) -> int:
    return MESSAGE_TOKENS + len(text) // CHARS_A_TOKEN


def by_characters(limit_tokens: int) -> Callable[[str], str]:
    """An observation's cut where no tokenizer is at hand: its beginning and its end, as `ChatFormat.observation`.

    It leaves more than the policy will see, never less: the fine-tuning cuts it again, by tokens, to what the agent
    loop would have shown of the whole.
    """
    most = limit_tokens * MOST_CHARS_A_TOKEN

    def cut(text: str) -> str:
        return text if len(text) <= most else f"{text[: most // 2]} ... {text[len(text) - (most - most // 2) :]}"

    return cut
