"""``snapvm verify`` and ``snapvm inspect``: look into a memory image without changing it."""

from __future__ import annotations

from typing import Annotated

import typer

from snapvm.cli.arguments import AsJson
from snapvm.cli.completion import complete_reference
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session

VERIFY_MANUAL = Manual(
    prerequisites=(
        "None: an image of `xl save` or of snapvm can be checked on any machine. Of a libvirt "
        "image the header, the length and the checksum are checked; if it is named as a file, or "
        "its record has no checksum, the header and the end."
    ),
    success=(
        "The image can be restored, and the domain is then what it was: every page that it owns is "
        "in the image, page tables lead where they should level by level, and the state of its "
        "vCPUs is complete. What is merely unusual is printed."
    ),
    failure=(
        "Each problem is printed on a line of its own: memory that a restore would silently lose, "
        "and what it would refuse. `xl save` is known to drop page tables of a guest that maps "
        "other domains' pages."
    ),
    example="snapvm verify demo@latest",
)
INSPECT_MANUAL = Manual(
    prerequisites=(
        "The image is of a Xen PV domain. Either `--va` or `--frame` is given; numbers may be "
        "hexadecimal (0x...)."
    ),
    success=(
        "The output shows what an address maps to: the frame, the rights, and the entry that says "
        "so; with `--frame` the addresses by which the frame can be reached, up to 256."
    ),
    failure="Nothing is changed.",
    example="snapvm inspect demo@latest --va 0xffffffff81000000",
)

Image = Annotated[
    str,
    typer.Argument(
        metavar="DOM@ID|FILE",
        help="A snapshot, or the path of an image.",
        show_default=False,
        autocompletion=complete_reference,
    ),
]


def verify(image: Image, as_json: AsJson = False) -> Job:
    """Check a memory image in depth."""

    def run(session: Session) -> None:
        # heavy: numpy; `snapvm --help` does without
        from snapvm.cli import imagelook

        imagelook.verify(session, image, as_json=as_json)

    return Job(json=as_json, run=run)


def inspect(
    image: Image,
    va: Annotated[
        str | None,
        typer.Option(
            "--va", metavar="ADDRESS", help="Show what this address maps to.", show_default=False
        ),
    ] = None,
    frame: Annotated[
        str | None,
        typer.Option(
            "--frame",
            metavar="PFN",
            help="Show which addresses map to this frame.",
            show_default=False,
        ),
    ] = None,
    cr3: Annotated[
        str | None,
        typer.Option(
            "--cr3",
            metavar="ADDRESS",
            help="The root of the page tables; by default that of vCPU 0.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> Job:
    """Walk the page tables in a memory image."""
    asked = {name: _number(name, text) for name, text in (("va", va), ("frame", frame))}
    given = [name for name, number in asked.items() if number is not None]
    if len(given) != 1:
        problem = "only one of them can be given" if given else "one of them is needed"
        raise typer.BadParameter(problem, param_hint="--va --frame")
    root = _number("cr3", cr3)

    def run(session: Session) -> None:
        # heavy: numpy; `snapvm --help` does without
        from snapvm.cli import imagelook

        imagelook.inspect(
            session, image, va=asked["va"], frame=asked["frame"], cr3=root, as_json=as_json
        )

    return Job(json=as_json, run=run)


def _number(name: str, text: str | None) -> int | None:
    """Read a number in any of Python's notations; refuse one that does not fit into 64 bits."""
    if text is None:
        return None
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise typer.BadParameter(f"{text!r} is not a number of 64 bits", param_hint=f"--{name}")
    return value
