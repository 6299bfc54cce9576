"""What the agent reads of a command: the terminal's text, and what a terminal would not show."""

from __future__ import annotations


def observation_text(
    output: str,
    exit_code: int | None = 0,
    timed_out_s: float | None = None,
    cut: bool = False,
    interrupted: bool = False,
) -> str:
    r"""The observation of one command.

    >>> observation_text("digit 7\n"), observation_text("", exit_code=1)
    ('digit 7\n', '[exit 1]')
    >>> observation_text("digit", None, interrupted=True)
    'digit\n[interrupted: the machine was restarted; the command may have run in part, or to its end]'
    """
    notes = []
    if cut:
        notes.append("[output cut]")
    if interrupted:
        notes.append("[interrupted: the machine was restarted; the command may have run in part, or to its end]")
    elif timed_out_s is not None:
        notes.append(f"[stopped after {timed_out_s:g} s]")
    elif exit_code is None:
        notes.append("[the shell ended]")
    elif exit_code != 0:
        notes.append(f"[exit {exit_code}]")
    gap = "\n" if notes and output and not output.endswith("\n") else ""
    return output + gap + "".join(notes)
