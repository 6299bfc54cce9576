"""Is every action token of a finished run accounted for, and was none trained twice? Pure: evidence in, crimes out.

Three witnesses who don't know of each other are compared: Redis' append-only file (what was sampled, leased, given
up), the Parquet archive (what is said to have trained which step), and the ledger of the learner (what the weights
that survive were trained on). Each check below yields a Crime for whatever doesn't fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from klong_rl.chain import link
from klong_rl.types import Turn
from tests.chaos.history import ARCHIVED, COMMITTED, GIVEN_UP, GONE, HELD, STALE, Action, Episode, History
from tests.chaos.replay import same_action

LOST, TWICE, TOO_STALE, BROKEN_CHAIN, MISSING, CONTRADICTION = (
    "lost", "trained twice", "too stale", "broken chain", "missing episode", "contradiction"
)  # fmt: skip


class Crime(NamedTuple):
    """What doesn't fit. `position`: of the append-only file, where it shows; None where no place can be named."""

    kind: str
    what: str
    tokens: int = 0
    position: int | None = None


class ArchivedTurn(NamedTuple):
    """One row of the archive. `window`: that trained it; None for evaluation, and for what was dropped as stale."""

    turn: Turn
    window: str | None


class ArchivedEpisode(NamedTuple):
    """One episode of the archive. `step`: the learner step that trained its group, if one did."""

    id: str
    group: str
    purpose: str
    step: int | None
    dropped: str
    prefix_P: np.ndarray | None
    turns: list[ArchivedTurn]


class TrainedStep(NamedTuple):
    """One line of the learner's ledger. `version`: of the weights before the step."""

    step: int
    version: int
    windows: tuple[str, ...]
    action_tokens: int
    staleness_max: int


class Evidence(NamedTuple):
    """All that is known of a finished run. `lineage`: (version, learner steps in it), those that survive."""

    history: History
    archive: list[ArchivedEpisode]
    ledger: list[TrainedStep]
    lineage: list[tuple[int, int]]
    max_staleness: int
    steps: int  # that the run was to make


class Audit(NamedTuple):
    """`tokens`: action tokens by what became of them. They sum to all that were ever sampled into the buffer.

    `checked`: how much there was to check. `oldest`: the largest distance, in updates, of a token that was trained.
    """

    tokens: Counter[str]
    crimes: list[Crime]
    checked: Counter[str] = Counter()
    oldest: int = 0


def audit(evidence: Evidence) -> Audit:
    """Every check on one run."""
    tokens, crimes = account(evidence)
    for check in (episodes, steps, windows, staleness, chains):
        crimes += check(evidence)
    checked = Counter(
        {
            "episodes": len(evidence.history.episodes),
            "learner steps": len(evidence.ledger),
            "windows trained": sum(len(line.windows) for line in evidence.ledger),
            "links of digest chains": sum(len(archived.turns) for archived in evidence.archive),
        }
    )
    return Audit(tokens, crimes, checked, max((line.staleness_max for line in evidence.ledger), default=0))


def account(evidence: Evidence) -> tuple[Counter[str], list[Crime]]:
    """What became of each action that was ever appended or intended."""
    archive = {episode.id: episode for episode in evidence.archive}
    ledger = {(line.step, window) for line in evidence.ledger for window in line.windows}
    tokens: Counter[str] = Counter()
    crimes: list[Crime] = []
    for episode in evidence.history.episodes.values():
        for action in (*episode.actions, *episode.unfinished, *filter(None, [episode.intended])):
            became, lost = _became(action, episode, archive.get(episode.id), ledger, evidence.history)
            tokens[became] += action.n_tokens
            if lost:
                place = f"turn {action.turn.index} of episode {episode.id}"
                crimes.append(Crime(LOST, f"{place}: {lost}", action.n_tokens, action.left_at or action.position))
    return tokens, crimes


def _became(
    action: Action,
    episode: Episode,
    archived: ArchivedEpisode | None,
    ledger: set[tuple[int, str]],
    history: History,
) -> tuple[str, str]:
    """(what became of an action, why that is a loss or "")."""
    if action.fate == GIVEN_UP:
        return f"given up: {action.reason}", ""
    if action.fate == HELD:
        return "left in the buffer, for a later step", ""
    if action.fate == GONE:
        return LOST, f"removed without a reason {action.reason}".strip()
    index = action.turn.index
    if archived is None or index >= len(archived.turns):
        return LOST, "its group was forgotten, and no row of the archive holds it"
    row = archived.turns[index]
    if not same_action(row.turn, action.turn):
        return LOST, "the archive holds another action in its place"
    if archived.purpose == "eval":
        return "evaluation", ""
    if row.turn.masked:
        return f"masked: {row.turn.masked}", ""
    if row.window is None:
        window = window_of(archived, index, history)
        if window is not None and history.windows[window].fate == STALE:
            return "given up: stale window", ""
        return LOST, "archived as never trained, and its window was not stale"
    if (archived.step, row.window) not in ledger:
        return LOST, f"archived as trained in step {archived.step}, of which the ledger knows nothing"
    return "trained", ""


def window_of(archived: ArchivedEpisode, index: int, history: History) -> str | None:
    """The id of the window that turn `index` of an episode is a target of, by counting target tokens."""
    order = trained_order([row.turn for row in archived.turns])
    end = sum(len(archived.turns[i].turn.action_A) for i in order[: order.index(index) + 1])
    for name in windows_of(archived.id, history):
        end -= history.windows[name].window.n_targets()
        if end <= 0:
            return name
    return None


def trained_order(turns: list[Turn]) -> list[int]:
    """The turns that are targets, in the order in which the windows hold them: branch by branch.

    A branch grows at its end alone. What goes on from the middle of one, from none, or with another start of its
    context, begins a branch.
    """
    branches: list[list[int]] = []
    for index, turn in enumerate(turns):
        if turn.prompt_T is None:
            goes_on = index > 0 and turns[index - 1].context_start == turn.context_start
            before = index - 1 if goes_on else None
        else:
            before = turn.follows
        for branch in branches:
            if branch[-1] == before:
                branch.append(index)
                break
        else:
            branches.append([index])
    return [index for branch in branches for index in branch if not turns[index].masked]


def windows_of(episode: str, history: History) -> list[str]:
    """The ids of the windows that an episode was split into, first turns first."""
    names = [name for name, story in history.windows.items() if story.window.episode == episode]
    return sorted(names, key=lambda name: int(name.rpartition("/w")[2]))


def episodes(evidence: Evidence) -> Iterator[Crime]:
    """Each admitted episode is archived, once; what was not archived yet is still in the buffer."""
    rows = Counter(episode.id for episode in evidence.archive)
    for episode in evidence.history.episodes.values():
        group = episode.spec.group
        if rows[episode.id] > 1:
            yield Crime(CONTRADICTION, f"episode {episode.id} is in the archive {rows[episode.id]} times")
        elif (group in evidence.history.forgotten) != (rows[episode.id] == 1):
            known = "forgotten by the buffer" if group in evidence.history.forgotten else "still in the buffer"
            text = f"episode {episode.id} is {known} and in {rows[episode.id]} files"
            yield Crime(MISSING, text, 0, episode.position)
    for name in rows.keys() - evidence.history.episodes.keys():
        yield Crime(CONTRADICTION, f"episode {name} is in the archive and was never admitted")


def steps(evidence: Evidence) -> Iterator[Crime]:
    """The surviving steps are 1 to the last, each once; each trained what was leased to it and committed; no more."""
    found = [line.step for line in evidence.ledger]
    if found != list(range(1, evidence.steps + 1)):
        yield Crime(CONTRADICTION, f"the ledger holds steps {found}, not 1 to {evidence.steps}")
    where = {name: story.position for name, story in evidence.history.windows.items()}
    sizes = {name: story.window.n_targets() for name, story in evidence.history.windows.items()}
    counted = Counter(window for line in evidence.ledger for window in line.windows)
    for name, times in counted.items():
        if times > 1:
            yield Crime(TWICE, f"window {name} was trained in {times} steps", sizes.get(name, 0), where.get(name))
    committed = Counter(lease.group for lease in evidence.history.leases if lease.end == COMMITTED)
    for group, times in committed.items():
        if times > 1:
            yield Crime(TWICE, f"group {group} was leased and committed {times} times")
    leased = {(lease.step, lease.group) for lease in evidence.history.leases if lease.end == COMMITTED}
    for line in evidence.ledger:
        if line.action_tokens != (targets := sum(sizes.get(name, 0) for name in line.windows)):
            text = f"step {line.step} says {line.action_tokens} action tokens, its windows have {targets}"
            yield Crime(CONTRADICTION, text)
        for name in line.windows:
            story = evidence.history.windows.get(name)
            if story is None or (line.step, story.window.group) not in leased:
                yield Crime(CONTRADICTION, f"step {line.step} trained window {name}, which was not leased to it")
            elif story.fate != ARCHIVED:
                text = f"step {line.step} trained window {name}, which is {story.fate} and not archived"
                yield Crime(MISSING, text, 0, story.position)


def windows(evidence: Evidence) -> Iterator[Crime]:
    """The targets of an episode's windows are its actions, each once and in order, in the contexts sampled."""
    for archived in evidence.archive:
        names = windows_of(archived.id, evidence.history)
        if not names:
            continue
        position = evidence.history.windows[names[0]].position
        made = [evidence.history.windows[name].window for name in names]
        targets = np.concatenate([window.tokens_T[window.targets_T == 1] for window in made])
        order = trained_order([row.turn for row in archived.turns])
        actions = np.concatenate([archived.turns[index].turn.action_A for index in order])
        if not np.array_equal(targets, actions):
            missing = len(actions) - len(targets)
            kind = TWICE if missing < 0 else LOST
            yield Crime(kind, f"the windows of {archived.id} don't have its actions as targets", abs(missing), position)
        for window in made:
            last = _last_turn(window.tokens_T, archived)
            if last is None:
                yield Crime(BROKEN_CHAIN, f"window {window.id} is no context of its episode", 0, position)


def _last_turn(tokens_T: np.ndarray, archived: ArchivedEpisode) -> int | None:
    """The turn whose context and action are these tokens, or None."""
    for index, row in enumerate(archived.turns):
        if np.array_equal(tokens_T, np.concatenate([_context(archived, index), row.turn.action_A])):
            return index
    return None


def _context(archived: ArchivedEpisode, index: int) -> np.ndarray:
    """What the model saw as it sampled turn `index`, by the words of klong_rl.types.Turn."""
    turn = archived.turns[index].turn
    if turn.prompt_T is not None:
        if turn.follows < 0:
            return turn.prompt_T
        before = archived.turns[turn.follows].turn
        return np.concatenate([_context(archived, turn.follows), before.action_A, turn.prompt_T])
    pieces = [archived.prefix_P]
    for row in archived.turns[archived.turns[index].turn.context_start : index]:
        pieces += [row.turn.action_A, row.turn.observation_O]
    return np.concatenate(pieces)


def chains(evidence: Evidence) -> Iterator[Crime]:
    """The digests made as the engine answered are those of the tokens that are archived."""
    for archived in evidence.archive:
        previous = b""
        for index, row in enumerate(archived.turns):
            made = link(previous, _context(archived, index), row.turn.action_A)
            if row.turn.index != index or row.turn.chain != made:
                yield Crime(BROKEN_CHAIN, f"turn {index} of {archived.id} was sampled in another context")
                break
            previous = made


def staleness(evidence: Evidence) -> Iterator[Crime]:
    """No surviving step trained a token that was sampled more than `max_staleness` updates before."""
    for line in evidence.ledger:
        lineage = [(version, step) for version, step in evidence.lineage if version <= line.version]
        if not lineage or lineage[-1] != (line.version, line.step - 1):
            text = f"step {line.step} began at version {line.version}, which isn't the last of {lineage}"
            yield Crime(CONTRADICTION, text)
            continue
        ages = {
            name: max(distance(version, lineage) for version, _ in evidence.history.windows[name].window.versions)
            for name in line.windows
            if name in evidence.history.windows  # `steps` speaks of the others
        }
        for name, age in ages.items():
            if age > evidence.max_staleness:
                story = evidence.history.windows[name]
                text = f"step {line.step} trained window {name}, sampled {age} updates before"
                yield Crime(TOO_STALE, text, story.window.n_targets(), story.position)
        if line.staleness_max != (oldest := max(ages.values(), default=0)):
            yield Crime(CONTRADICTION, f"step {line.step} says staleness {line.staleness_max}, its windows {oldest}")


def distance(version: int, lineage: list[tuple[int, int]]) -> int:
    """Learner updates between the weights that are `version` and the newest of `lineage`.

    A version that didn't survive (published after the checkpoint that the run went back to) had updates of its own
    beyond the last one below it that did: those are undone, and the ones since then are not in it.

    >>> distance(3, [(1, 0), (2, 1), (3, 2), (5, 3)]), distance(4, [(1, 0), (2, 1), (5, 1), (6, 2)])
    (1, 3)
    """
    below, step = max((v, s) for v, s in lineage if v <= version)
    return (version - below) + (lineage[-1][1] - step)
