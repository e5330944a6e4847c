"""Pulse domains of the Xen flavour: what xl and xenstore say of them."""

from __future__ import annotations

from tests.lab import recipe
from tests.lab.guests import Guest
from tests.lab.vm import Completed, Lab

_XEN = f"/usr/lib/xen-{recipe.CHOSEN.xen}"
VERIFY_STREAM = f"PYTHONPATH={_XEN}/lib/python python3 {_XEN}/bin/verify-stream-v2 -f xl -i"


class XenGuest(Guest):
    """A PV pulse domain."""

    def state(self) -> str:
        """Return what xl says the domain does, in snapvm's words."""
        done = self.lab.run(["xl", "list", self.name], timeout_seconds=60)
        if done.status:
            return "shut off"
        flags = done.stdout.splitlines()[1].split()[4]
        return "paused" if "p" in flags else "suspended" if "s" in flags else "running"

    def wait_gone(self) -> None:
        """Wait until its daemon has removed it; half a minute at the most."""
        script = f"timeout 30 sh -c 'while xl domid {self.name} 2>/dev/null; do sleep 0.5; done'"
        self.lab.run(script, timeout_seconds=60, check=True)

    @property
    def domid(self) -> int:
        """Return its number, which changes with every start."""
        done = self.lab.run(["xl", "domid", self.name], timeout_seconds=60, check=True)
        return int(done.stdout)

    def connections(self) -> str:
        """Return the guest's halves of its devices: state, rings, event channels."""
        script = f"xenstore-ls -f /local/domain/{self.domid}/device"
        return self.lab.run(script, timeout_seconds=60, check=True).stdout

    def image(self, record: dict[str, object]) -> str:
        """Return the path of a record's memory image."""
        domain = record["domain"]
        assert isinstance(domain, dict)
        return f"/var/lib/snapvm/domains/{domain['uuid']}/{record['id']}/memory.xl"


def verify_stream(lab: Lab, path: str) -> Completed:
    """Let Xen's own checker read an image."""
    return lab.run(f"{VERIFY_STREAM} {path}", timeout_seconds=180)
