"""The client of xenstore, against a small xenstored."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapvm.hypervisor import xenstore
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenstore import StoreRefused, XenStore
from snapvm.refusals import HostLacks
from tests.fakes.xenstored import FakeXenstored, Message


@pytest.fixture
def served() -> Iterator[tuple[FakeXenstored, XenStore]]:
    server = FakeXenstored()
    with server.connected() as store:
        yield server, store


Served = tuple[FakeXenstored, XenStore]


def test_what_is_written_is_read(served: Served) -> None:
    _, store = served
    assert store.read("/a") is None
    assert store.names("/a") == ()
    store.write("/a/b", "one")
    store.write("/a/c", "")
    assert store.names("/a") == ("b", "c")
    assert store.tree("/a") == {"b": "one", "c": ""}


def test_a_value_is_replaced_only_where_the_expected_one_stands(served: Served) -> None:
    server, store = served
    server.values["/x"] = "suspend"
    server.conflicts = 2
    assert store.replace("/x", "suspend", "")
    assert server.values["/x"] == ""
    assert not store.replace("/x", "suspend", "other")
    assert server.values["/x"] == ""


def test_one_that_writes_all_the_time_is_not_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest may write to its own nodes without end: each try ended in a conflict."""
    monkeypatch.setattr(xenstore, "_CONFLICT_SECONDS", 0.1)
    server, store = served
    server.values["/x"] = "suspend"
    server.conflicts = 1 << 30
    with pytest.raises(StoreRefused) as refused:
        store.replace("/x", "suspend", "")
    assert refused.value.code == xenstore.CONFLICT
    server.conflicts = 0
    assert store.replace("/x", "suspend", "")


def test_a_watch_wakes_and_its_events_are_no_answers(served: Served) -> None:
    server, store = served
    server.values["/w"] = "before"
    with store.watched("/w"):
        assert store.wait(5)  # once at the beginning
        assert not store.wait(0.01)
        threading.Timer(0.05, server.set, ("/w", "after")).start()
        assert store.wait(5)
        server.set("/w", "again")
        assert store.read("/w") == "again"
        assert store.wait(0)
        server.set("/w", "once more")
        assert store.read("/w") == "once more"
    assert not store.wait(0)
    server.set("/w", "later")
    assert store.read("/w") == "later" and not store.wait(0)


def test_a_domain_that_goes_on_is_told_of(served: Served) -> None:
    server, store = served
    store.resumed(7)
    assert server.resumed == ["7"]


def test_what_is_too_long_is_refused_here(served: Served) -> None:
    _, store = served
    with pytest.raises(StoreRefused, match="E2BIG"):
        store.write("/a", "x" * 5000)


def test_an_answer_that_comes_too_late_is_none_to_the_next_question(served: Served) -> None:
    server, store = served
    server.values |= {"/a": "one", "/b": "two"}
    store._socket.settimeout(0.05)
    server.on_request = lambda _kind: time.sleep(0.2)
    with pytest.raises(XenFailed, match="timed out"):
        store.read("/a")
    server.on_request = lambda _kind: None
    store._socket.settimeout(5)
    assert store.read("/b") == "two"


def test_what_is_removed_is_gone(served: Served) -> None:
    server, store = served
    server.values["/a"] = "one"
    store.remove("/a")
    store.remove("/a")
    assert store.read("/a") is None


@pytest.mark.parametrize(
    ("refused", "ask"),
    [
        (Message.READ, XenStore.read),
        (Message.DIRECTORY, XenStore.names),
        (Message.RM, XenStore.remove),
    ],
)
def test_what_is_refused_is_not_taken_for_what_is_not_there(
    served: Served, refused: Message, ask: Callable[[XenStore, str], object]
) -> None:
    server, store = served
    server.values["/a/b"] = "one"
    server.refused = {refused}
    with pytest.raises(StoreRefused, match="EIO"):
        ask(store, "/a")
    server.refused = set()
    ask(store, "/c")


def test_a_store_that_goes_away_is_a_failure() -> None:
    mine, theirs = socket.socketpair()
    mine.close()
    with XenStore(theirs) as store, pytest.raises(XenFailed, match="xenstore"):
        store.read("/a")


def test_one_that_lets_nobody_in_any_more_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs, and two have knocked already: every snapvm after them waited without end."""
    monkeypatch.setattr(xenstore, "SOCKETS", (tmp_path / "socket",))
    monkeypatch.setattr(xenstore, "_ANSWER_SECONDS", 0.1)
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(tmp_path / "socket"))
        server.listen(1)
        for _ in range(2):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(tmp_path / "socket"))
        with pytest.raises(HostLacks, match="let nobody in") as lacking:
            xenstore.open_store()
        assert "when `xenstore-ls` answers" in lacking.value.hint()
        server.accept()[0].close()
        with xenstore.open_store() as store, pytest.raises(XenFailed, match="timed out"):
            store.read("/a")
