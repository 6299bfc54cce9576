"""Settings of all tests, and fixtures of integration and chaos tests."""

from pathlib import Path

import hypothesis
import pytest

from tests.launched import MINIATURE, LaunchedRun

# No test asserts a time: an example may take as long as a busy machine needs.
hypothesis.settings.register_profile("klong", deadline=None)
hypothesis.settings.load_profile("klong")


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory) -> Path:
    """Base checkpoint and cold start of the miniature run: made by the first that needs them."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def launch(tmp_path, model_cache):
    """Start a miniature run: `launch("name=x", ...)`. Ended at the end of the test, whatever happens."""
    launched: list[LaunchedRun] = []

    def start(*overrides: str, **env: str) -> LaunchedRun:
        log = tmp_path / f"launch-{len(launched)}.log"
        defaults = (f"root={tmp_path / 'runs'}", f"cache={model_cache}", "name=mini", *MINIATURE)
        launched.append(LaunchedRun((*defaults, *overrides), log, env))
        return launched[-1].start()

    yield start
    for run in launched:
        run.kill()
