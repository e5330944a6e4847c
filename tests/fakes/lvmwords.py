"""The language of lvm's command lines, as far as ``snapvm.lvm.argv`` uses it."""

from __future__ import annotations

import re

from tests.fakes.lvmvolume import FakeVolume

_FLAGS = {
    "--quiet",
    "--snapshot",
    "--refresh",
    "--yes",
    "--nohistory",
    "--noudevsync",
    "--ignoremonitoring",
    "--ignoreactivationskip",
    "--all",
    "--foreign",
    "--shared",
    "--nosuffix",
}
_DEBUGGING = 4
"""From so much of log/verbose on each line says where it comes from (lvm2, lib/log/log.c)."""


def parse(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the options with all their values, and the operands."""
    options: dict[str, list[str]] = {}
    operands: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in _FLAGS:
            options[word] = []
        elif word.startswith("--"):
            options.setdefault(word, []).append(next(rest))
        else:
            operands.append(word)
    return options, operands


def configured(options: dict[str, list[str]]) -> dict[str, str]:
    """Return what a command line sets otherwise than lvm.conf."""
    section = re.compile(r"(?P<name>\w+)\{(?P<item>[^{}]*)\}")
    texts = (section.sub(r" \g<name>/\g<item> ", text) for text in options.get("--config", ()))
    items = (item for text in texts for item in text.split())
    return {name: value.strip('"') for name, _, value in (item.partition("=") for item in items)}


def printed(said: list[str], report: str, conf: dict[str, str]) -> str:
    """Return what stands on lvs' standard output (lvm2, lib/log/log.c: a report is messages)."""
    begin = "lvs" if conf.get("log/command_names") == "1" else ""
    if int(conf.get("log/verbose", "0")) >= _DEBUGGING:
        begin = "12:00:00.123456 lvs[1] reporter.c:1569 "
    begin += conf.get("log/prefix", "  ")
    return "".join(f"{begin}{line}\n" for line in (*said, *report.splitlines()))


def selects(condition: str, volume: FakeVolume) -> bool:
    """Evaluate the selection language as far as argv.py uses it: tags and uuids, && || ()."""

    def term(match: re.Match[str]) -> str:
        if match["tag"] is not None:
            return str(match["tag"] in volume.tags)
        return str(match["uuid"] == volume.uuid)

    text = re.sub(r"lv_tags=\{(?P<tag>[^}]*)\}|lv_uuid=(?P<uuid>[\w-]+)", term, condition)
    text = text.replace("&&", " and ").replace("||", " or ")
    assert re.fullmatch(r"[\s()]*((True|False|and|or)[\s()]*)+", text), text
    return bool(eval(text))


def dashed(number: int) -> str:
    """Return a number as LVM prints a uuid."""
    digits = f"{number:032d}"
    return "-".join((digits[:6], *(digits[at : at + 4] for at in range(6, 26, 4)), digits[26:]))


def bytes_of(sectors: str) -> str:
    """Return what lvs tells of a read-ahead that was given in sectors, or as `auto`."""
    return sectors if sectors == "auto" else str(int(sectors) * 512)
