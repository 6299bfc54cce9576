"""The scripted judge: a requirement is met if all that it quotes in backquotes is in the submission.

If the first quoted term is the name of a file, that file must be there and hold all the others; else the terms may be
anywhere. A requirement that quotes nothing is not met, since nothing can be checked.
"""

from __future__ import annotations

from klong_rl.scripted.reading import files, terms


def scripted_judge(body: dict) -> str:
    """The reply to a question of klong_rl.judging.prompts."""
    prompt = body["messages"][1]["content"]
    shown = files(prompt)
    requirement = prompt[prompt.rindex("Requirement:\n") :].split("\n\nIt is part of:")[0]
    missing = _missing(terms(requirement), shown)
    return f"Looked for what the requirement quotes. Missing: {missing or 'nothing'}.\nScore: {int(not missing)}"


def _missing(wanted: list[str], shown: dict[str, str]) -> list[str]:
    if not wanted:
        return ["anything that can be checked"]
    first, *others = wanted
    if "." in first and "/" not in first and " " not in first:
        named = [text for path, text in shown.items() if path.rsplit("/", 1)[-1] == first]
        return [term for term in others if not any(term in text for text in named)] if any(named) else [first]
    return [term for term in wanted if not any(term in text for text in shown.values())]
