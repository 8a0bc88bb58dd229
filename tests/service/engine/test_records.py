from __future__ import annotations

import itertools
import math
import socket
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.graphs import Graph
from service.engine.records import (
    LAYOUTS,
    RecordSocket,
    Reply,
    ReplyKind,
    Request,
    RequestKind,
    completion_of,
    reply_for,
    request_for,
    work_item,
)
from service.engine.types import Completion, Failure, Priority, Run, WorkItem

GRAPHS = (
    Graph("model", {"logits": (2,)}, (1,), ()),
    Graph("other", {f"output{number}": (1,) for number in range(64)}, (1,), ()),
)


def pair() -> tuple[RecordSocket[Reply], socket.socket]:
    ours, theirs = socket.socketpair()
    return RecordSocket(ours, Reply), theirs


def reply(ticket: int) -> Reply:
    return Reply(ReplyKind.ANSWERED, ticket, 0.25, 0.5, 2, 4, 100.0)


def packed(record: Reply) -> bytes:
    return LAYOUTS[Reply].pack(*record)


@given(cuts=st.lists(st.integers(0, 5 * LAYOUTS[Reply].size), max_size=6))
def test_records_are_whole_however_their_bytes_arrive(cuts: list[int]) -> None:
    records, theirs = pair()
    stream = b"".join(packed(reply(ticket)) for ticket in range(5))
    edges = [0, *sorted(cuts), len(stream)]
    received = []
    for start, end in itertools.pairwise(edges):
        theirs.sendall(stream[start:end])
        received += records.receive()[0]
    assert received == [reply(ticket) for ticket in range(5)]
    records.close()
    theirs.close()


def test_what_came_before_the_end_is_still_read() -> None:
    records, theirs = pair()
    records.send([reply(0)])
    theirs.sendall(packed(reply(7)))
    theirs.close()
    received, is_open = records.receive()
    while is_open:
        more, is_open = records.receive()
        received += more
    assert [record.ticket for record in received] == [7]
    records.send([reply(1)])
    assert not records.has_unsent
    records.close()


def test_a_reader_that_does_not_read_holds_up_nobody_and_loses_nothing() -> None:
    records, theirs = pair()
    sent = 0
    while not records.has_unsent:
        records.send([reply(sent)])
        sent += 1
    records.send([reply(sent)])
    other = RecordSocket(theirs, Reply)
    received: list[Reply] = []
    while len(received) <= sent:
        received += other.receive()[0]
        records.flush()
    assert [record.ticket for record in received] == list(range(sent + 1))
    assert not records.has_unsent
    records.close()
    other.close()


@pytest.mark.parametrize(
    ("graph", "outputs"),
    [("model", {"logits"}), ("other", {"output0"}), ("other", {"output5", "output63"}), ("other", GRAPHS[1].outputs)],
    ids=["model", "first", "some", "all"],
)
def test_work_comes_back_as_it_was_under_the_engines_names(graph: str, outputs: Iterable[str]) -> None:
    item = WorkItem(2**47, 1023, graph, (33, 65_535), frozenset(outputs), Priority.BULK, math.inf, 12345.678901)
    layout = LAYOUTS[Request]
    request = Request._make(layout.unpack(layout.pack(*request_for(item, GRAPHS))))
    assert request.kind == RequestKind.SUBMIT
    assert work_item(request, GRAPHS, ticket=7, slot=8) == item._replace(ticket=7, slot=8)


@pytest.mark.parametrize("end", [Run(0.25, 0.5, 3, 4, 12345.678901), *Failure], ids=str)
def test_every_end_comes_back_as_it_was(end: Run | Failure) -> None:
    layout = LAYOUTS[Reply]
    reply = Reply._make(layout.unpack(layout.pack(*reply_for(Completion(99, 98, end), ticket=7))))
    assert completion_of(reply, slot=8) == Completion(7, 8, end)


@pytest.mark.parametrize("failure", Failure)
def test_each_image_that_fails_gets_an_error_of_its_own(failure: Failure) -> None:
    assert failure.error() is not failure.error()
