"""The driver for the domains of a Xen host, by the names that ``xl`` shows."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from snapvm import crashpoint, retry
from snapvm.clock import WindowClock
from snapvm.errors import UnknownDomain
from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.hypervisor import (
    xencapturable,
    xencfg,
    xenconfig,
    xendisks,
    xenkeeper,
    xenneighbours,
    xenprocessor,
    xenrestorable,
    xensaver,
    xenways,
    xenxl,
)
from snapvm.hypervisor.base import Capture, Drives, MemoryImage, Reliance, XenImages
from snapvm.hypervisor.xenagent import NoAgent
from snapvm.hypervisor.xencapture import XenJob, XenPauseCapture, capturing
from snapvm.hypervisor.xencontrol import XenControl, open_control
from snapvm.hypervisor.xendomains import XenDomains, state_of
from snapvm.hypervisor.xenfailing import doing, refusing, stuck
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenrequest import SuspendRequest
from snapvm.hypervisor.xenstandstill import lift, unwatch
from snapvm.hypervisor.xenstore import XenStore, open_store
from snapvm.interrupt import shielded
from snapvm.model import (
    Domain,
    DomainState,
    DomainUuid,
    HypervisorKind,
    Progress,
    SidePlace,
)
from snapvm.process import Runner
from snapvm.refusals import DomainRefused, HostLacks
from snapvm.settings import Settings

log = logging.getLogger(__name__)

_NO_MORE_LIBVIRTS = (
    "%s belongs to xl now: libvirt, which had started it, shows it shut off, and can start it "
    "again when it has ended (xl shutdown)"
)


class XenHypervisor:
    """Domains of this Xen host; see ``Hypervisor`` for what each method promises.

    xl does not keep domains that do not run, so a domain that is off is unknown here.
    """

    kind = HypervisorKind.XEN
    agent = NoAgent()

    def __init__(
        self, control: XenControl, store: XenStore, runner: Runner, settings: Settings
    ) -> None:
        self._control = control
        self._store = store
        self._domains = XenDomains(control, store)
        self._runner = runner
        self._settings = settings
        self._libvirts: set[DomainUuid] = set()
        """Domains that were libvirt's when they were ended here."""
        self._attached: dict[DomainUuid, xendisks.Attached] = {}
        """What domains had when their drives were asked for: a capture is planned with that."""

    def find(self, name: str) -> Domain:
        """Return the domain as it is now; raise ``UnknownDomain``."""
        with refusing(name):
            info = self._domains.named(name)
        if info is None:
            raise UnknownDomain(domain=name)
        return Domain(
            name=name,
            uuid=DomainUuid(info.uuid),
            hypervisor=self.kind,
            state=state_of(info),
            memory_bytes=info.memory_bytes,
            vcpus=info.max_vcpu_id + 1,
            definition=self._listed(name, info.domid),
            run=str(info.domid),
        )

    def name_of(self, uuid: DomainUuid) -> str:
        """See ``Hypervisor.name_of``."""
        with refusing(uuid):
            return self._domains.name_of(uuid)

    def drives(self, domain: Domain) -> Drives:
        """Return its drives; raise ``DiskRefused`` for one that cannot be captured."""
        with refusing(domain.name):
            domid = self._domains.get(domain).domid
            attached = xendisks.attached(self._store, domid)
            found = xendisks.classify(domain.name, attached.vbds)
            domids = self._domains.numbers()
            xenneighbours.require_alone(self._store, domain.name, domid, attached.vbds, domids)
        self._attached[domain.uuid] = attached
        besides = xenconfig.left_out(domain.name, domain.definition)
        return Drives(disks=found.disks, omitted=found.omitted + besides)

    def boots_as(self, domain: Domain) -> Domain:
        """See ``Hypervisor.boots_as``: it is booted from the configuration of `xl list -l`."""
        return domain

    def relying(self, domain: Domain) -> Iterable[Reliance]:  # noqa: ARG002 - xl knows of none
        """See ``Hypervisor.relying``: xl makes no overlays, and keeps no memory by itself."""
        return ()

    def side_places(self, domain: Domain) -> tuple[SidePlace, ...]:  # noqa: ARG002 - none has
        """See ``Hypervisor.side_places``: none keeps UEFI variables or a TPM's state in files."""
        return ()

    def check_capture(self, domain: Domain, *, with_memory: bool) -> None:
        """Raise ``DomainRefused`` when the domain cannot be captured now."""
        xencapturable.require_state(domain)
        with refusing(domain.name):
            self._domains.require_unique(domain)
            if with_memory:
                xencapturable.require(domain, self._settings, self._control, self._domains)
        if not with_memory:
            config = xenconfig.parse(domain.name, domain.definition)
            xencapturable.require_known_disks(domain, config)
            xencfg.warn_of_no_way_back(domain.name, config)

    def foresee(self, domain: Domain) -> str:
        """See ``Hypervisor.foresee``; of PV it depends on the memory this host can spare now."""
        return xenways.foreseen(domain)

    @contextmanager
    def capture(
        self,
        domain: Domain,
        folder: Path,
        *,
        image: MemoryImage | None,
        clock: WindowClock,
        progress: Progress,
        domain_ends: bool = False,  # noqa: ARG002 - one that is paused is refused
    ) -> Iterator[Capture]:
        """Prepare a capture; see ``Hypervisor.capture``."""
        with capturing(domain):
            info = self._domains.in_its_run(domain)
            known = self._attached.get(domain.uuid)
            job = XenJob(
                domain=domain,
                config=xenconfig.parse(domain.name, domain.definition),
                info=info,
                attached=known or xendisks.attached(self._store, info.domid),
                control=self._control,
                store=self._store,
                folder=folder,
                clock=clock,
                progress=progress,
                foreign_ptes=self._settings.foreign_ptes,
            )
        with ExitStack() as stack:
            if not isinstance(image, XenImages):
                yield XenPauseCapture(job)
                return
            progress.phase(f"copying the memory of {domain.name}")
            with capturing(domain):
                capture = stack.enter_context(xenways.with_memory(job, image))
            yield capture

    def check_processor(
        self,
        domain: Domain,
        cookie: str,
        processor: bytes,
        versions: Mapping[str, str],  # noqa: ARG002 - the image has it all
    ) -> None:
        """See ``Hypervisor.check_processor``: Xen takes away in silence what it has not."""
        info = self._domains.known(domain)
        domid = None if info is None else info.domid
        xenprocessor.require(self._control, domain, domid, cookie, processor)

    def check_restore(
        self,
        domain: Domain,
        image: Path | None,
        *,
        memory_bytes: int = 0,
        cookie: str = "",
        starts: bool = True,
    ) -> None:
        """Raise ``Refused`` when it could not be started; ``cookie`` is its configuration."""
        with refusing(domain.name):
            xenrestorable.require(
                domain,
                image,
                self._runner,
                self._domains,
                memory_bytes=memory_bytes,
                stored=cookie,
                starts=starts,
            )

    @contextmanager
    def frozen(self, domain: Domain) -> Iterator[None]:
        """See ``Hypervisor.frozen``; a domain that its owner has paused meanwhile stays paused."""
        with doing("suspended", domain):
            info = xenrestorable.as_found(self._domains, self._store, domain, self._attached)
        if info is None or state_of(info) is not DomainState.RUNNING:
            yield
            return
        try:
            with doing("suspended", domain), crashpoint.around("suspend"):
                xenrestorable.hold(self._control, info.domid)
            yield
        except BaseException:
            with shielded():
                self.resume(domain)
            raise

    def resume(self, domain: Domain) -> None:
        """Make a paused domain run; raise ``StuckPaused`` when it does not."""
        retry.resume(lambda: self._resume(domain))

    def touched(self) -> tuple[DomainUuid, ...]:
        """See ``Hypervisor.touched``: here every changed domain has a journal."""
        return ()

    def abandon(self, domain: Domain) -> None:
        """Withdraw a request to suspend; mappings and grants ended with the dead snapvm."""
        with doing("freed of what a killed snapvm left in it", domain):
            info = self._domains.known(domain)
            if info is None:
                return
            xensaver.forget(self._control, info)
            request = SuspendRequest(self._control, self._store, info.domid)
            if not request.is_noted:
                return
            request.take_back()
            if self._domains.known(domain) is None:
                return
        self.resume(domain)

    def stop(self, domain: Domain) -> None:
        """End the domain at once; harmless when it is off."""
        with doing("ended", domain):
            info = self._domains.known(domain)
            if info is None:
                xenkeeper.let_go(xenkeeper.keepers(domain.name))  # somebody else ended the domain
                return
            if xenkeeper.is_libvirts(info.domid, info.uuid):
                self._libvirts.add(domain.uuid)
            unwatch(self._control, self._store, info.domid)
            try:
                xenxl.destroy(self._runner, info.domid)
            except CommandTimedOut as slow:
                log.debug("xl goes on all the same: %s", slow)
            except CommandFailed:
                if not self._domains.is_going(info.domid):
                    raise
            self._domains.wait_until_gone(info.domid)

    def restore(
        self,
        domain: Domain,
        image: Path,
        *,
        paused: bool,
        channels: int = 1,  # noqa: ARG002 - xl reads an image in one go
    ) -> None:
        """Start the domain from a memory image."""
        with doing("restored", domain):
            self._require_off(domain)
            xenxl.restore(self._runner, image, paused=paused)
            self._expect(domain, paused=paused)

    def start(self, domain: Domain, *, paused: bool) -> None:
        """Boot the domain from its disks and its recorded configuration."""
        config = xenconfig.parse(domain.name, domain.definition)
        text = xencfg.tell(domain.name, config)
        with doing("started", domain), xencfg.in_memory(text) as path:
            self._require_off(domain)
            xenxl.create(self._runner, path, paused=paused, memory_bytes=domain.memory_bytes)
            self._expect(domain, paused=paused)

    def versions(self, domain: Domain) -> dict[str, str]:  # noqa: ARG002 - of all domains
        """Return the versions of Xen and of this control domain's kernel."""
        libraries = self._control.libraries
        return {"xen": f"{libraries.major}.{libraries.minor}", "dom0": os.uname().release}

    # --- inside ---

    def _listed(self, name: str, domid: int) -> str:
        try:
            # By number, because xl would take a name that is a number for a domid.
            return self._runner.run(["xl", "list", "-l", str(domid)]).stdout
        except (CommandFailed, CommandTimedOut) as failure:
            raise DomainRefused(domain=name, why=str(failure)) from failure

    def _resume(self, domain: Domain) -> None:
        try:
            info = self._domains.get(domain)
            request = SuspendRequest(self._control, self._store, info.domid)
            is_ours = not (info.is_suspended and request.is_anothers)
            lift(self._control, info.domid, suspend=is_ours, pause=True)
            if not is_ours:
                return
            request.end()
            now = self._domains.get(domain)
        except XenFailed as failure:
            raise stuck(domain, str(failure)) from failure
        if now.is_paused or now.is_suspended:  # one that has shut down or crashed stands for nobody
            raise stuck(domain, f"it is {state_of(now)}")

    def _require_off(self, domain: Domain) -> None:
        if self._domains.named(domain.name) is not None:
            raise XenFailed("a domain of this name runs")

    def _expect(self, domain: Domain, *, paused: bool) -> None:
        info = self._domains.named(domain.name)
        wanted = DomainState.PAUSED if paused else DomainState.RUNNING
        state = DomainState.SHUTOFF if info is None else state_of(info)
        if state is not wanted:
            raise XenFailed(f"it is {state} and not {wanted}")
        if domain.uuid in self._libvirts:
            log.warning(_NO_MORE_LIBVIRTS, domain.name)


def open_hypervisor(settings: Settings, runner: Runner) -> XenHypervisor:
    """Connect to the Xen of this host; raise ``HostLacks``."""
    try:
        return XenHypervisor(open_control(), open_store(), runner, settings)
    except XenFailed as failure:
        raise HostLacks(
            what=f"access to Xen ({failure})", remedy="run snapvm as root, in the control domain"
        ) from None
