"""A domain that stands still, and is made to run again when nobody else does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from snapvm.attention import StuckPaused
from snapvm.errors import Interrupted, UnknownDomain
from snapvm.host import Host
from snapvm.interrupt import shielded, undisturbed
from snapvm.model import Domain, DomainState, DomainUuid
from snapvm.undo import Undo

STATES = (DomainState.PAUSED, DomainState.SUSPENDED)


def find(host: Host, name: str) -> Domain | None:
    """Return the domain, or None when there is none of that name."""
    try:
        return host.hypervisor.find(name)
    except UnknownDomain:
        return None


def name_now(host: Host, uuid: DomainUuid, name: str) -> str:
    """Return the present name of a domain that was called ``name``.

    It may have been renamed.  Where no domain has the uuid ``name`` is returned: a domain that xl
    has created anew has the same name and another uuid.
    """
    domain = find(host, name)
    if domain is not None and domain.uuid == uuid:
        return name
    return host.hypervisor.name_of(uuid) or name


def run_again(host: Host, name: str) -> None:
    """Make a domain run that stands still; harmless for one that runs, or is not there."""
    domain = find(host, name)
    if domain is not None:
        let_run(host, domain)


def let_run(host: Host, domain: Domain) -> None:
    """Make a domain run that stands still, as it was just looked up."""
    if domain.state in STATES:
        host.hypervisor.resume(domain)


@contextmanager
def running_when_interrupted(host: Host, domain: Domain) -> Iterator[None]:
    """Let the domain run if a signal interrupts the block, which holds a window.

    The driver puts signals off while it ends its window, but one may come in the instant before.
    """
    try:
        yield
    except Interrupted:
        if domain.state is DomainState.RUNNING:
            with undisturbed():
                run_again(host, domain.name)
        raise


@contextmanager
def tried_again(host: Host, domain: Domain, undo: Undo) -> Iterator[None]:
    """If the block could not make the domain run, try it once more when everything is put back.

    What held it, such as a stream, has ended by then.  A domain that its owner has paused raises no
    ``StuckPaused``, and is left alone.
    """
    try:
        yield
    except StuckPaused:
        with shielded():
            undo.add(f"the running state of {domain.name}", partial(run_again, host, domain.name))
            raise
