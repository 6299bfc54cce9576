"""The command line of the entry points: overrides in, a checked configuration out, or one clear line and exit 2."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from klong_rl.config import RunConfig
from klong_rl.config_check import check
from klong_rl.errors import UserError

C = TypeVar("C")
CONF = Path(__file__).resolve().parent.parent / "conf"


def load_config(overrides: Sequence[str]) -> tuple[RunConfig, int | None]:
    """The checked configuration, and the stage that `+stage=N` asks for (None without it). Raises UserError."""
    stage, rest = _take_stage(overrides)
    config = compose_config("config", "schema", RunConfig, rest)
    check(config)
    if stage is not None and not 1 <= stage <= len(config.curriculum.stages):
        raise UserError(f"+stage={stage} is unknown; this curriculum has stages 1 to {len(config.curriculum.stages)}")
    return config, stage


def compose_config(file: str, schema: str, kind: type[C], overrides: Sequence[str]) -> C:
    """`conf/FILE.yaml`, which names `schema` among its defaults, with `overrides`, as a `kind`. Raises UserError."""
    ConfigStore.instance().store(name=schema, node=kind)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return OmegaConf.to_object(compose(file, [_added(override) for override in overrides]))
    except (HydraException, OmegaConfBaseException, TypeError) as error:  # TypeError: a list where a group's name goes
        raise UserError(_one_line(error, kind, overrides)) from error


def _added(override: str) -> str:
    """Keys below `agent.program` are the user's own: they need no + in front, which Hydra wants for new ones."""
    return f"++{override}" if override.startswith("agent.program.") else override


def run_main(main, argv: Sequence[str] | None = None) -> NoReturn:
    """Call `main(overrides) -> exit code`; a UserError becomes one line on stderr and exit code 2."""
    try:
        code = main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


def _take_stage(overrides: Sequence[str]) -> tuple[int | None, list[str]]:
    """`+stage=N` isn't a setting of the run but where to enter it, so it isn't in the schema."""
    stage, rest = None, []
    for override in overrides:
        match = re.fullmatch(r"\+{0,2}stage=(.*)", override)
        if match is None:
            rest.append(override)
        elif not re.fullmatch(r"\d+", match[1]):
            raise UserError(f"+stage={match[1]} is not a stage; use a whole number from 1, for example +stage=3")
        else:
            stage = int(match[1])
    return stage, rest


def _one_line(error: Exception, kind: type, overrides: Sequence[str]) -> str:
    """Hydra's own message, shortened to what names the key and the value, with what is allowed there."""
    text = str(error)
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        unknown = _unknown_part(kind, key)
        if unknown is not None and (key in text or unknown[0] in text):
            name, allowed = unknown
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            return f"{override}: there is no key {key}; {hint}allowed here: {', '.join(allowed)}"
        options = sorted(path.stem for path in (CONF / key).glob("*.yaml")) if key else []
        if options and value not in options:
            return f"{override}: there is no {key} named {value}; allowed: {', '.join(options)}"
    for override in overrides:
        if text.splitlines()[0] == f"Error merging override {override}" and error.__cause__ is not None:
            return f"{override}: {str(error.__cause__).splitlines()[0]}"
    return text.splitlines()[0]


def _unknown_part(kind: type, key: str) -> tuple[str, list[str]] | None:
    """The first part of a dotted key that the schema doesn't have, and what it has there."""
    top = node = kind()
    for part in key.split("."):
        if not is_dataclass(node):
            return None  # a free-form dictionary or a list: anything may stand here
        names = [f.name for f in fields(node)]
        if part not in names:
            groups = [path.parent.name for path in CONF.glob("*/*.yaml")] if node is top else []
            return None if part in groups else (part, sorted({*names, *groups}))
        node = getattr(node, part)
    return None
