"""Tells whether every failure of a test run was the death of a lab: ``python -m … JUNIT.XML``.

An emulated host that falls over says nothing about snapvm; a test that failed does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def only_deaths(report: str) -> bool:
    """Tell whether a JUnit report holds failures and each of them is a ``LabDied``."""
    root = ET.fromstring(report)
    failures = [node for tag in ("failure", "error") for node in root.iter(tag)]
    return bool(failures) and all("LabDied" in node.get("message", "") for node in failures)


if __name__ == "__main__":
    sys.exit(not only_deaths(Path(sys.argv[1]).read_text(encoding="utf-8")))
