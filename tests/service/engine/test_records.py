from __future__ import annotations

import itertools
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.records import REPLY, REQUEST, RecordSocket, Reply, Request, failure_of, reply_for
from service.errors import InferenceFailed, NotReady


def pair() -> tuple[RecordSocket, socket.socket]:
    ours, theirs = socket.socketpair()
    return RecordSocket(ours, REPLY), theirs


def reply(ticket: int) -> bytes:
    return REPLY.pack(Reply.ANSWERED, 1, 2, 4, ticket, 0.25, 0.5, 100.0)


@given(cuts=st.lists(st.integers(0, 5 * REPLY.size), max_size=6))
def test_records_are_whole_however_their_bytes_arrive(cuts: list[int]) -> None:
    records, theirs = pair()
    stream = b"".join(map(reply, range(5)))
    edges = [0, *sorted(cuts), len(stream)]
    received = []
    for start, end in itertools.pairwise(edges):
        theirs.sendall(stream[start:end])
        received += records.receive()[0]
    assert [REPLY.pack(*record) for record in received] == [reply(ticket) for ticket in range(5)]
    records.close()
    theirs.close()


def test_what_came_before_the_end_is_still_read() -> None:
    records, theirs = pair()
    records.send(b"nobody reads this")
    theirs.sendall(reply(7))
    theirs.close()
    received, is_open = records.receive()
    while is_open:
        more, is_open = records.receive()
        received += more
    assert [record[4] for record in received] == [7]
    records.send(b"nor this")
    assert not records.has_unsent
    records.close()


def test_a_reader_that_does_not_read_holds_up_nobody_and_loses_nothing() -> None:
    records, theirs = pair()
    sent = 0
    while not records.has_unsent:
        records.send(reply(sent))
        sent += 1
    records.send(reply(sent))
    other = RecordSocket(theirs, REPLY)
    received: list[tuple[object, ...]] = []
    while len(received) <= sent:
        received += other.receive()[0]
        records.flush()
    assert [record[4] for record in received] == list(range(sent + 1))
    assert not records.has_unsent
    records.close()
    other.close()


def test_infinite_deadlines_and_large_tickets_survive_the_wire() -> None:
    fields = (Request.SUBMIT, 1, 1023, 0b100001, 2**47, float("inf"), 12345.678901)
    assert REQUEST.unpack(REQUEST.pack(*fields)) == fields


@pytest.mark.parametrize("kind", [kind for kind in Reply if kind not in (Reply.READY, Reply.ANSWERED)])
def test_every_failure_comes_back_as_it_was(kind: Reply) -> None:
    assert reply_for(failure_of(kind)) is kind
    assert failure_of(kind) is not failure_of(kind)


def test_a_failure_without_a_reply_of_its_own_is_the_engines() -> None:
    assert isinstance(failure_of(reply_for(NotReady("unforeseen"))), InferenceFailed)
