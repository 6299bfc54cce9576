"""Framing and capping: whatever the chunks, the reply is what was sent, and memory stays bounded."""

import asyncio
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxes import channel
from sandboxes.channel import DATA, TERMINAL, Channel, ChannelLost
from sandboxes.framing import BACKLOG_BYTES, Backlog, Capture, ReplyReader
from sandboxes.stream import AttachedStream, Demux

NONCE = "0123456789abcdef"


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@given(output=st.binary(max_size=200), status=st.integers(0, 255), rest=st.binary(), cuts=st.lists(st.integers(0, 999)))
def test_reply_is_found_whatever_the_chunks(output, status, rest, cuts):
    reader = ReplyReader(NONCE, limit=1000)
    statuses = []
    chunks = chunked(output + b"\x1e%s %d\x1e" % (NONCE.encode(), status), cuts)
    chunks[-1] += rest
    for chunk in chunks:
        mark = reader.feed(chunk)
        statuses.append(mark and mark.status)
    assert statuses == [None] * (len(chunks) - 1) + [status]
    assert reader.output() == (output, False)
    assert reader.rest == rest


def test_marks_of_other_calls_are_output():
    reader = ReplyReader(NONCE, limit=1000)
    other = b"\x1efedcba9876543210 0\x1e"
    assert reader.feed(other) is None
    assert reader.feed(b"\x1e" + NONCE.encode()) is None
    assert reader.feed(b" 7\x1e").status == 7
    assert reader.output() == (other, False)


@pytest.mark.parametrize("forged", [b"abc\x1e", b"\x1e", b"0" * 5000 + b"\x1e", b"-1\x1e", b"1" + b" " * 100_000])
def test_a_mark_that_only_a_spy_could_begin_is_output_unless_it_is_whole(forged):
    reader = ReplyReader(NONCE, limit=1 << 20)
    opening = b"\x1e" + NONCE.encode() + b" "
    assert reader.feed(opening + forged) is None
    assert len(reader._pending) < 32  # whatever follows the opening isn't kept but for the capture
    assert reader.feed(opening + b"7\x1e").status == 7
    assert reader.output() == (opening + forged, False)


@given(data=st.binary(max_size=300), limit=st.integers(2, 100), cuts=st.lists(st.integers(0, 999)))
def test_capture_keeps_the_first_and_the_last_bytes(data, limit, cuts):
    capture = Capture(limit)
    for chunk in chunked(data, cuts):
        capture.add(chunk)
    kept = capture.value()
    assert capture.truncated == (len(data) > limit)
    if len(data) <= limit:
        assert kept == data
    else:
        head, tail = limit - limit // 2, limit // 2
        note = b"\n[... %d bytes left out ...]\n" % (len(data) - limit)
        assert kept == data[:head] + note + data[len(data) - tail :]


def test_capture_holds_a_flood_in_bounded_memory():
    capture = Capture(1000)
    for _ in range(1000):
        capture.add(b"y\n" * 5000)
        assert len(capture._head) + len(capture._tail) <= 2000
    assert len(capture.value()) < 1100


@given(
    frames=st.lists(st.tuples(st.sampled_from([TERMINAL, DATA]), st.binary(max_size=50)), max_size=8),
    cuts=st.lists(st.integers(0, 999)),
)
def test_demux_restores_frames_whatever_the_chunks(frames, cuts):
    wire = b"".join(frame(lane, payload) for lane, payload in frames)
    demux = Demux()
    assert [parsed for chunk in chunked(wire, cuts) for parsed in demux.feed(chunk)] == frames


def frame(lane: int, payload: bytes) -> bytes:
    return bytes([lane, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


class Peer:
    """The daemon's end of a socket pair: takes what a channel sends, answers in Docker's framing."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self.channel = Channel(AttachedStream(ours))

    async def answer(self, *chunks: tuple[int, bytes]) -> bytes:
        """Wait for a call, answer it with `@` standing for its nonce; what was sent."""
        loop = asyncio.get_running_loop()
        sent = await loop.sock_recv(self._theirs, 1 << 16)
        nonce = re.search(rb"\b[0-9a-f]{16}\b", sent)[0]
        for lane, payload in chunks:
            await loop.sock_sendall(self._theirs, frame(lane, payload.replace(b"@", nonce)))
        return sent

    def hang_up(self) -> None:
        self._theirs.close()


async def test_background_output_never_enters_file_contents_and_shows_with_the_next_command():
    peer = Peer()
    read, _ = await asyncio.gather(
        peer.channel.call("read", deadline_s=5, lane=DATA),
        peer.answer((TERMINAL, b"behind "), (DATA, b"file"), (TERMINAL, b"\x1e@ 9\x1e"), (DATA, b"\x1e@ 0\x1e")),
    )
    assert (read.status, read.output) == (0, b"file")
    ran, _ = await asyncio.gather(
        peer.channel.call("run", deadline_s=5, lane=TERMINAL), peer.answer((TERMINAL, b"mine\x1e@ 3\x1e"))
    )
    assert ran.status == 3
    assert ran.output.startswith(b"behind ") and ran.output.endswith(b"mine")


async def test_arguments_are_quoted_as_single_words():
    peer = Peer()
    _, sent = await asyncio.gather(
        peer.channel.call("run", "it's $HOME\n`x`", deadline_s=5, lane=DATA, before=b"first\n"),
        peer.answer((DATA, b"\x1e@ 0\x1e")),
    )
    assert sent.startswith(b"first\nrun ")
    assert sent.endswith(b""" 'it'"'"'s $HOME\n`x`'\n""")


@pytest.mark.parametrize("silent", [False, True])
async def test_a_lost_shell_breaks_the_channel_and_keeps_the_output(silent):
    peer = Peer()
    call = asyncio.create_task(peer.channel.call("run", deadline_s=0.2 if silent else 5, lane=TERMINAL))
    await peer.answer((TERMINAL, b"so far"))
    if not silent:
        peer.hang_up()
    with pytest.raises(ChannelLost) as lost:
        await call
    assert (lost.value.silent, lost.value.output) == (silent, b"so far")
    assert peer.channel.broken


async def test_a_cancelled_call_breaks_the_channel():
    peer = Peer()
    call = asyncio.create_task(peer.channel.call("run", deadline_s=5, lane=TERMINAL))
    await peer.answer()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert peer.channel.broken


async def test_a_call_whose_time_is_up_is_asked_to_end_until_it_does(monkeypatch):
    monkeypatch.setattr(channel, "AGAIN_S", 0.05)
    peer = Peer()
    call = asyncio.create_task(peer.channel.call("run", deadline_s=5, lane=TERMINAL, end_after_s=0.1, end=b"stop\n"))
    sent = await peer.answer((TERMINAL, b"so far"))
    loop = asyncio.get_running_loop()
    asked = b""
    while asked.count(b"stop\n") < 2:
        asked += await loop.sock_recv(peer._theirs, 1 << 16)
    nonce = re.search(rb"\b[0-9a-f]{16}\b", sent)[0]
    await loop.sock_sendall(peer._theirs, frame(TERMINAL, b"\x1e%s 137\x1e" % nonce))
    reply = await call
    assert (reply.status, reply.output) == (137, b"so far")


async def test_a_call_is_asked_to_end_in_the_middle_of_a_flood():
    peer = Peer()
    call = asyncio.create_task(peer.channel.call("run", deadline_s=5, lane=TERMINAL, end_after_s=0.1, end=b"stop\n"))
    sent = await peer.answer()
    loop = asyncio.get_running_loop()
    asked = asyncio.create_task(loop.sock_recv(peer._theirs, 100))
    while not asked.done():
        await loop.sock_sendall(peer._theirs, frame(TERMINAL, b"y\n" * 5000))
    assert asked.result() == b"stop\n"
    nonce = re.search(rb"\b[0-9a-f]{16}\b", sent)[0]
    await loop.sock_sendall(peer._theirs, frame(TERMINAL, b"\x1e%s 0\x1e" % nonce))
    assert (await call).status == 0


@given(
    before=st.binary(max_size=100),
    between=st.binary(max_size=100),
    after=st.binary(max_size=100),
    cuts=st.lists(st.integers(0, 999)),
)
def test_a_call_that_reported_early_is_settled_by_its_other_mark(before, between, after, cuts):
    backlog = Backlog()
    backlog.begin(before, NONCE)
    assert not backlog.settled
    for chunk in chunked(between + b"\x1e%s 7\x1e" % NONCE.encode(), cuts):
        assert not backlog.settled
        backlog.add(chunk)
    backlog.add(after)
    assert backlog.settled
    assert backlog.take() == before + between + after
    assert backlog.take() == b""


def test_a_flood_between_two_commands_hides_no_mark():
    backlog = Backlog()
    backlog.begin(b"", NONCE)
    backlog.add(b"y" * (3 * BACKLOG_BYTES))
    backlog.add(b"\x1e%s 0\x1e" % NONCE.encode())
    assert backlog.settled
    assert len(backlog.take()) <= BACKLOG_BYTES


async def early(peer: Peer) -> None:
    """A command that reported early, and printed after that."""
    reply, _ = await asyncio.gather(
        peer.channel.call("run", deadline_s=5, lane=TERMINAL, nonce=NONCE),
        peer.answer((TERMINAL, b"mine\x1e@ 3r\x1ebehind ")),
    )
    assert (reply.status, reply.output) == (3, b"mine")


async def test_a_call_that_reported_early_is_waited_for_before_the_next():
    peer = Peer()
    await early(peer)
    assert not peer.channel.settled
    settling = asyncio.create_task(peer.channel.settle(5, b"wake\n"))
    await asyncio.sleep(0.05)
    assert not settling.done()
    await asyncio.get_running_loop().sock_sendall(peer._theirs, frame(TERMINAL, b"\x1e%s 3\x1e" % NONCE.encode()))
    await settling
    assert peer.channel.settled
    ran, _ = await asyncio.gather(
        peer.channel.call("run", deadline_s=5, lane=TERMINAL), peer.answer((TERMINAL, b"mine\x1e@ 0\x1e"))
    )
    assert ran.output == b"behind mine"


async def test_a_call_that_has_ended_meanwhile_is_not_waited_for():
    peer = Peer()
    await early(peer)
    await asyncio.get_running_loop().sock_sendall(peer._theirs, frame(TERMINAL, b"\x1e%s 3\x1e" % NONCE.encode()))
    async with asyncio.timeout(2):
        while not peer.channel.settled:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("silent", [False, True])
async def test_a_shell_that_is_lost_after_an_early_report_is_told_to_who_waits_for_its_end(monkeypatch, silent):
    monkeypatch.setattr(channel, "AGAIN_S", 0.05)
    peer = Peer()
    await early(peer)
    if not silent:
        peer.hang_up()
    with pytest.raises(ChannelLost) as lost:
        await peer.channel.settle(0.2, b"wake\n")
    assert lost.value.silent == silent
    assert peer.channel.broken
    if silent:
        assert b"wake\nwake\n" in await asyncio.get_running_loop().sock_recv(peer._theirs, 100)


async def test_nothing_is_put_past_a_line_that_ends_a_command_early():
    class Open:
        put = close = staticmethod(lambda *data: True)

    peer = Peer()
    peer.channel._stream.shortcut = Open()
    assert peer.channel.put(b"command")
    call = asyncio.create_task(peer.channel.call("run", deadline_s=5, lane=TERMINAL, end_after_s=0.05, end=b"stop\n"))
    await asyncio.sleep(0.1)
    await peer.answer((TERMINAL, b"\x1e@ 137\x1e"))
    await call
    assert not peer.channel.put(b"command")
    await asyncio.gather(peer.channel.call("read", deadline_s=5, lane=DATA), peer.answer((DATA, b"\x1e@ 0\x1e")))
    assert peer.channel.put(b"command")
