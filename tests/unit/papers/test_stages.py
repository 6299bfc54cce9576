"""Stages are made once for the same input."""

import pytest

from klong_rl.failures import InfrastructureFailure
from klong_rl.judging.protocols import Usage
from klong_rl.papers.rejected import Rejected
from klong_rl.papers.stages import Sheet


@pytest.fixture
def spent() -> list[Usage]:
    return []


@pytest.fixture
def sheet(tmp_path, spent) -> Sheet:
    return Sheet(tmp_path, lambda name: None, spent.append)


def maker(made: list, result):
    async def make(spending):
        spending.add(Usage(requests=1))
        made.append(1)
        if isinstance(result, Exception):
            raise result
        return result

    return make


async def test_a_stage_is_made_once_and_again_for_another_input(sheet, spent):
    made = []
    for depends_on in ([1], [1], [2]):
        assert await sheet.stage("draft", depends_on, maker(made, {"a": 1})) == {"a": 1}
    assert len(made) == 2 and spent == [Usage(requests=1)] * 2
    assert [stage.usage.requests for stage in sheet.all()] == [1]


async def test_a_rejection_is_kept_and_a_failure_is_tried_again(sheet):
    made = []
    for _ in range(2):
        with pytest.raises(Rejected, match="no good"):
            await sheet.stage("filter", [], maker(made, Rejected("no good")))
    assert len(made) == 1
    for _ in range(2):
        with pytest.raises(InfrastructureFailure):
            await sheet.stage("draft", [], maker(made, InfrastructureFailure("away")))
    assert len(made) == 3 and sheet.read("draft").reason == "away"
    assert await sheet.stage("draft", [], maker(made, 1)) == 1


async def test_a_file_that_was_cut_off_is_made_again(sheet, tmp_path):
    made = []
    await sheet.stage("draft", [], maker(made, 1))
    whole = (tmp_path / "draft.json").read_bytes()
    (tmp_path / "draft.json").write_bytes(whole[: len(whole) // 2])
    assert await sheet.stage("draft", [], maker(made, 1)) == 1 and len(made) == 2
