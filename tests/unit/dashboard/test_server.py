"""The server over real HTTP: who may look, what each route answers, and that nothing can be changed."""

import asyncio

import pytest
from aiohttp.test_utils import TestClient, TestServer

from klong_rl.dashboard.__main__ import parse, token_for
from klong_rl.dashboard.access import asked_host, is_loopback
from klong_rl.dashboard.server import Dashboard
from klong_rl.errors import UserError
from tests.made_runs import RunMaker, Said

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    maker = RunMaker(tmp_path_factory.mktemp("runs") / "made")
    maker.steps()
    named = maker.record("g-e1", "answer", "42", "judge-1")
    said = [Said("ls", "ls", "a"), Said("submit", "submit", "", None)]
    group = maker.group("g", [said, said], evidence=[{}, {"record": named}])
    maker.files.write([group])
    maker.keep_learned(group)
    return maker.run_dir


@pytest.fixture
async def open_client(run_dir):
    clients = []

    async def start(token=""):
        client = TestClient(TestServer(Dashboard(run_dir, token).application()))
        clients.append(client)
        await client.start_server()
        return client

    yield start
    for client in clients:
        await client.close()


@pytest.fixture
async def client(open_client):
    client = await open_client()
    for _ in range(200):
        if (await answer(client, "episodes"))["of"] == 2:
            return client
        await asyncio.sleep(0.05)
    raise AssertionError("the archive was not read")


async def answer(client, path, status=200):
    response = await client.get(f"/api/{path}")
    assert response.status == status, await response.text()
    return await response.json()


async def test_what_each_route_answers(client):
    run = await answer(client, "run")
    assert (run["name"], run["model"], run["up"], run["summary"]) == ("made", "nano", False, None)
    steps = await answer(client, "steps")
    assert steps["step"] == [1, 2, 3, 4, 5, 6] and steps["forward_backward_s"] == [1.0] * 6
    fleet = await answer(client, "fleet")
    assert fleet["buffer"] is None and "holds no Redis" in fleet["problem"]
    page = await answer(client, "episodes?sort=score&limit=1")
    assert page["total"] == 2 and [row["episode"] for row in page["rows"]] == ["g-e1"]
    episode = await answer(client, "episode?id=g-e1")
    assert episode["verdict"]["score"] == 0.5 and episode["turns"]["command"] == ["ls", "submit"]
    assert episode["has_text"] and episode["has_gaps"] and episode["prefix"]["text"].startswith("You have a shell")
    assert [member["episode"] for member in episode["group"]] == ["g-e0", "g-e1"]
    turns = (await answer(client, "turns?id=g-e1&first=0&last=9"))["turns"]
    assert ["".join(turn["pieces"]) for turn in turns] == ["ls", "submit"]
    assert turns[0]["observation"] == {"text": "a", "chars": 1}


async def test_of_the_judging_only_what_the_record_names_and_no_secret(client):
    record = (await answer(client, "episode?id=g-e1"))["record"]
    assert record["reads"][0]["path"] == "answer" and "task" not in record
    blob = record["reads"][0]["blob"]
    assert (await answer(client, f"content?id=g-e1&blob={blob}"))["text"] == "42"
    for episode, asked in (("g-e0", blob), ("g-e1", "0" * 64), ("g-e1", "../../config.json")):
        assert "error" in await answer(client, f"content?id={episode}&blob={asked}", 404)


async def test_bad_questions_are_told_what_is_wrong(client):
    assert "stage" in (await answer(client, "episodes?stage=x", 400))["error"]
    assert "first=-1" in (await answer(client, "turns?id=g-e0&first=-1&last=2", 400))["error"]
    assert "nobody" in (await answer(client, "episode?id=nobody", 404))["error"]
    assert (await client.get("/static/../config.json")).status in (403, 404)
    assert (await client.get("/static/%2e%2e/__init__.py")).status in (403, 404)


async def test_nothing_can_be_changed(client, run_dir):
    for route in client.server.app.router.routes():
        assert route.method in ("GET", "HEAD")
    assert (await client.post("/api/run")).status == 405


async def test_every_answer_forbids_foreign_scripts(client):
    for path in ("/", "/api/run", "/api/nothing", "/api/episode?id=nobody", "/static/app.js"):
        headers = (await client.get(path)).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy and headers["X-Content-Type-Options"] == "nosniff"


async def test_a_page_elsewhere_cannot_point_its_name_here(client):
    for host, status in (("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:8420", 200), ("evil.example", 403)):
        assert (await client.get("/api/run", headers={"Host": host})).status == status


async def test_with_a_token_only_who_has_it_may_look(open_client):
    client = await open_client(TOKEN)
    assert (await client.get("/api/run")).status == 401
    assert (await client.get("/static/app.js")).status == 401
    assert (await client.get("/", params={"token": "another"})).status == 401
    assert (await client.get("/api/run", headers={"Authorization": f"Bearer {TOKEN}"})).status == 200
    # A cookie from an address is not kept by a client unless it is told to; the answer that sets it is looked at.
    first = await client.get("/", params={"token": TOKEN}, allow_redirects=False)
    assert first.status == 302 and "token" not in first.headers["Location"]
    cookie = first.cookies["klong_dashboard"]
    assert cookie["httponly"] and cookie["samesite"] == "Strict"
    assert (await client.get("/api/run", headers={"Cookie": f"klong_dashboard={cookie.value}"})).status == 200


def test_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "localhost.evil.example", "")))
    assert asked_host("[::1]:80") == "::1" and asked_host("a.b:1") == "a.b" and asked_host("[") == ""


def test_a_token_is_needed_where_others_reach():
    assert token_for("127.0.0.1", "") == "" and token_for("127.0.0.1", TOKEN) == TOKEN
    made = token_for("0.0.0.0", "")
    assert len(made) >= 32 and made != token_for("0.0.0.0", "")
    with pytest.raises(UserError, match="too short"):
        token_for("127.0.0.1", "short")


@pytest.mark.parametrize("argument", ["run=", "nothing", "port=8", "run=/nowhere/at/all", "colour=red"])
def test_a_bad_command_line_is_one_clear_line(argument, tmp_path):
    with pytest.raises(UserError, match="run="):
        parse([argument])
    with pytest.raises(UserError, match="port=x"):
        parse([f"run={tmp_path}", "port=x"])
