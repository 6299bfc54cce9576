"""One kill of each kind, and the audit of the runs: `make chaos` in small."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.campaign import attack
from tests.chaos.faults import FAULTS
from tests.private_dockerd import PrivateDockerd

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def root():
    """A short path: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="klong-chaos-") as folder:
        yield Path(folder)


@pytest.fixture
def daemon(root):
    daemon = PrivateDockerd(root / "d")
    daemon.start()
    yield daemon
    daemon.stop()


async def test_one_kill_of_each_kind_loses_nothing_and_trains_nothing_twice(root, daemon, model_cache):
    daemon.load_image("klong-sandbox")
    seed = random.randrange(10**6)
    campaign = await attack(root, model_cache, daemon, list(FAULTS), seed, 8, print)
    assert campaign.is_clean(8), f"seed {seed}: {campaign.failures} {campaign.not_fired} {campaign.crimes}"
    assert Counter(kill.kind for kill in campaign.fired) == dict.fromkeys(FAULTS, 1)
    assert campaign.tokens["trained"] > 0
