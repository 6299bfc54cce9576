"""The settings of `python -m klong_rl.factory`, with defaults and units."""

from __future__ import annotations

from dataclasses import dataclass, field

from klong_rl.config import EndpointConfig, JudgeConfig, SandboxConfig
from klong_rl.config_check import check_above_0, check_at_least, check_endpoint, check_sandbox
from klong_rl.errors import UserError


@dataclass
class QualityConfig:
    """What a paper must be to become a task; each refusal names the rule and the number (klong_rl.papers.filters)."""

    least_words: int = 300
    most_words: int = 60000
    least_abstract_words: int = 30
    least_headings: int = 3
    least_letters: float = 0.6  # share of letters among characters that aren't white space: less is no prose
    duplicate: float = 0.5  # share of n-grams in common with an earlier paper of the batch
    contaminated: float = 0.05  # the same, with an evaluation paper
    title_likeness: float = 0.8  # of words, with an evaluation paper's title
    ngram_words: int = 13


@dataclass
class ConvertConfig:
    """Each paper is converted in a process of its own, so that a bad file can't hurt the batch."""

    most_pages: int = 200  # of a PDF
    timeout_s: float = 300.0
    memory_mb: int = 4096
    at_once: int = 2


@dataclass
class RubricConfig:
    """What a rubric must be, and how often the evaluator may try (klong_rl.papers.rules)."""

    least_leaves: int = 3
    most_leaves: int = 400
    most_depth: int = 8
    attempts: int = 3  # replies for one draft, until one is valid
    rounds: int = 2  # of criticism and revision, at most


@dataclass
class TrialConfig:
    """Submissions whose score is known (klong_rl.papers.trial)."""

    reference_least: float = 0.8  # of the paper's own code, where there is some
    run_timeout_s: float = 600.0  # of its reproduce.sh
    require_code: bool = False  # refuse a paper without code, whose rubric can't be tried


@dataclass
class FactoryConfig:
    """One batch."""

    papers: str = ""  # a folder: a paper a file or a folder; identifiers.txt: one arXiv identifier a line
    out: str = ""  # where stages, tasks and review pages go; a later run goes on there
    evaluation: str = ""  # a folder of papers, or a list of titles, never to be trained on; empty: PaperBench's titles
    review: bool = False  # write a task only once a person accepted it (docs/factory.md)
    accept: list[str] = field(default_factory=list)  # names of papers: a person accepts the drafts on their pages
    send_back: list[str] = field(default_factory=list)  # or sends them back to the evaluator,
    note: str = ""  # with this note
    at_once: int = 8  # papers with the evaluator
    wait_s: float = 1800.0  # for the evaluator, in one stage of one paper
    arxiv_url: str = "https://export.arxiv.org"
    evaluator: EndpointConfig = field(default_factory=EndpointConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)  # of the trial; endpoint.url empty: the evaluator
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    rubric: RubricConfig = field(default_factory=RubricConfig)
    trial: TrialConfig = field(default_factory=TrialConfig)


def check(config: FactoryConfig) -> None:
    """Raise UserError, one line, for a value that can't work whatever the machine."""
    for name in ("papers", "out"):
        if not getattr(config, name):
            raise UserError(f"{name}= is missing: python -m klong_rl.factory papers=DIR out=DIR evaluator.url=URL")
    if not config.evaluator.url or not config.evaluator.model:
        raise UserError(
            "evaluator.url= and evaluator.model= are missing: name an endpoint, for example "
            "evaluator.url=http://127.0.0.1:8000/v1 evaluator.model=NAME"
        )
    if config.send_back and not config.note:
        raise UserError(f"send_back={config.send_back} needs note=: what the evaluator is to change")
    check_endpoint(config.evaluator, "evaluator")
    check_endpoint(config.judge.endpoint, "judge.endpoint")
    check_sandbox(config.sandbox)
    check_at_least(
        ("at_once", config.at_once, 1),
        ("convert.at_once", config.convert.at_once, 1),
        ("convert.most_pages", config.convert.most_pages, 1),
        ("convert.memory_mb", config.convert.memory_mb, 256),
        ("rubric.least_leaves", config.rubric.least_leaves, 1),
        ("rubric.attempts", config.rubric.attempts, 1),
        ("rubric.rounds", config.rubric.rounds, 0),
        ("quality.ngram_words", config.quality.ngram_words, 2),
    )
    check_above_0(
        ("wait_s", config.wait_s),
        ("convert.timeout_s", config.convert.timeout_s),
        ("trial.run_timeout_s", config.trial.run_timeout_s),
        ("judge.grading_timeout_s", config.judge.grading_timeout_s),
        ("judge.wait_s", config.judge.wait_s),
    )
