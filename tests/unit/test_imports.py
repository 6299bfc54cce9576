"""Who may import whom (docs/architecture.md): read from every source file, and tried in a fresh interpreter."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("klong_rl", "actors", "learners", "sandboxes")
OUTWARD = {"actors", "learners", "sandboxes"}
ENTRIES = ("launch", "sft", "distill", "factory", "evaluate", "doctor", "scale")
ENTRY_POINTS = {f"klong_rl/{name}.py" for name in ENTRIES}
# What the core may use inside a function only: it is heavy, or a machine that only reads a run doesn't have it.
HEAVY = {"ray", "vllm", "megatron", "mbridge", "torch", "transformers", "docker"}
OBJECTIVES = "klong_rl/objectives/"  # formulas on tensors: only a learner loads them, so torch is theirs

SOURCES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(tree: ast.AST, top: bool = True) -> Iterator[tuple[str, bool]]:
    """(top-level package, whether importing the module imports it) for every import in the source."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], top
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imports(node, top=False)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, top and not inside)


def violations(path: str, source: str) -> list[str]:
    package = path.split("/")[0]
    found = []
    for name, top in imports(ast.parse(source)):
        if package in OUTWARD and name in OUTWARD - {package}:
            found.append(f"{path} imports {name}: {package} may import klong_rl and itself only")
        if package != "klong_rl":
            continue
        if name in OUTWARD and (path not in ENTRY_POINTS or top):
            found.append(f"{path} imports {name}: only entry points look outward, and only inside a function")
        if name in HEAVY and top and not (name == "torch" and path.startswith(OBJECTIVES)):
            found.append(f"{path} imports {name} when it is imported: move it into the function that uses it")
    return found


@pytest.mark.parametrize("path", SOURCES)
def test_imports_of(path):
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    "path, source",
    [
        ("actors/rollout.py", "from sandboxes.docker import DockerSandboxes"),
        ("learners/rank.py", "def f():\n    import actors.engine"),
        ("sandboxes/docker.py", "import learners"),
        ("klong_rl/windows.py", "def f():\n    from actors import agent"),
        ("klong_rl/launch.py", "from actors import rollout"),
        ("klong_rl/launch.py", "try:\n    import ray\nexcept ImportError:\n    pass"),
        ("klong_rl/buffer/client.py", "class C:\n    import torch.nn"),
        ("klong_rl/objectives/klong.py", "import megatron.core"),
    ],
)
def test_the_rule_catches(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        ("klong_rl/launch.py", "def main():\n    from actors.rollout import RolloutActor\n    import ray"),
        ("klong_rl/models/nano.py", "def build():\n    import torch"),
        ("klong_rl/buffer/client.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("klong_rl/objectives/klong.py", "import torch"),
        ("actors/rollout.py", "import ray, vllm\nfrom klong_rl.types import Task\nfrom actors import engine"),
        ("sandboxes/docker.py", "import docker\nfrom . import base"),
    ],
)
def test_the_rule_allows(path, source):
    assert violations(path, source) == []


def loaded_by(statement: str) -> set[str]:
    """Heavy and outward packages that a fresh interpreter has after `statement`."""
    program = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split()) & (HEAVY | OUTWARD)


def test_the_configuration_loads_nothing_heavy():
    assert loaded_by("import klong_rl.config") == set()


def test_no_module_of_the_core_loads_anything_heavy_through_what_it_imports():
    core = [path for path in SOURCES if path.startswith("klong_rl/") and not path.startswith(OBJECTIVES)]
    names = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in core]
    assert loaded_by("import " + ", ".join(name for name in names if not name.endswith("__main__"))) == set()
