"""What the repository must not hold, and what its papers promise."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from snapvm.cli import commands
from snapvm.cli.columns import HEADERS
from tests.house.source import ROOT, files, modules
from tests.lab import recipe

KNOWN_HOSTS = {"json-schema.org", "www.apache.org", "libvirt.org", "example.org"}
"""Hosts that may be named: specifications and licences, never a place to download from."""

PRIVATE_PATH = re.compile(r"/(?:work|home|Users|opt)/[a-z]|/root/\.")
URL = re.compile(r"https?://[^\s\"'`<>)]+")
FIRST_WORDS = {verb.split()[0] for verb in commands.VERBS}
VERB = re.compile(r"(?<![\w/.-])snapvm (?:-[-a-z]+ )*([a-z][a-z-]*)")

CALL = re.compile(
    rf"(?:(?<![\w/.-])|(?<=/bin/))snapvm (?P<verb>{'|'.join(commands.VERBS)})\b"
    r"(?P<rest>[^\n`|;#)]*)"
)
"""A command as it is typed, to the end of it."""
GUIDES = sorted((ROOT / "docs").glob("*.md"))
SCRIPT = re.compile(r"^```(?:sh|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OPTION = re.compile(r"(?<!\S)--?[a-z][-a-z]*")


def texts() -> dict[Path, str]:
    """Return the files of the repository that are text."""
    found = {}
    for path in files():
        try:
            found[path] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return found


def test_no_path_of_somebodys_machine() -> None:
    here = Path(__file__).resolve()
    for path, text in texts().items():
        if path != here and path.name != "LICENSE":
            assert not PRIVATE_PATH.search(text), path


def test_no_host_of_any_mirror() -> None:
    for path, text in texts().items():
        hosts = {urlsplit(url).hostname for url in URL.findall(text)}
        assert hosts <= KNOWN_HOSTS, (path, hosts)


def test_no_line_of_ours_ends_in_blanks() -> None:
    for path, text in texts().items():
        if path.name != "LICENSE":
            assert not re.search(r"[ \t]+$", text, re.MULTILINE), path


def commands_in(text: str) -> list[str]:
    """Return the verbs used in the code blocks and backquotes of a paper."""
    code = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    return [verb for block in code for verb in VERB.findall(block)]


def test_the_papers_name_verbs_that_exist() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md"):
        for verb in commands_in((ROOT / name).read_text()):
            assert verb in FIRST_WORDS, f"{name} names `snapvm {verb}`"
    assert set(commands_in((ROOT / "README.md").read_text())) == FIRST_WORDS


def test_the_papers_use_options_that_exist() -> None:
    papers = [ROOT / "README.md", *GUIDES]
    used = [CALL.finditer(paper.read_text()) for paper in papers]
    calls = [(call["verb"], OPTION.findall(call["rest"])) for found in used for call in found]
    assert len(calls) > 20
    for verb, options in calls:
        assert set(options) <= commands.options_of(verb), (verb, options)


def test_the_scripts_in_the_papers_can_be_read_by_a_shell() -> None:
    texts = [paper.read_text() for paper in (ROOT / "README.md", *GUIDES)]
    blocks = [block for text in texts for block in SCRIPT.findall(text)]
    assert len(blocks) > 8
    for block in blocks:
        done = subprocess.run(
            ["bash", "-n"], input=block, check=False, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), block


def test_no_message_names_a_verb_that_is_not_there() -> None:
    for module in modules():
        for verb in re.findall(r"`snapvm ([a-z]+)", module.text):
            assert verb in FIRST_WORDS, f"{module.name} names `snapvm {verb}`"


def test_the_papers_name_targets_that_exist() -> None:
    makefiles = (ROOT / "Makefile").read_text() + (ROOT / "tests/lab/lab.mk").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefiles, re.MULTILINE))
    for name in ("README.md", "ARCHITECTURE.md"):
        for target in re.findall(r"`?make ([a-z-]+)", (ROOT / name).read_text()):
            exists = target in targets or (ROOT / f"tests/bench/{target[6:]}.py").exists()
            assert exists, f"{name} names `make {target}`"


def test_the_example_of_a_list_has_the_columns_of_a_list() -> None:
    shown = re.search(r"^SNAPSHOT .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert shown is not None
    assert tuple(shown[0].split()) == HEADERS


def test_the_papers_link_to_files_that_exist() -> None:
    for paper in (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *GUIDES):
        text = paper.read_text()
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (paper.parent / target).exists(), f"{paper.name} links to {target}"
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
        for anchor in re.findall(r"\]\(#([^)]+)\)", text):
            assert anchor in anchors, f"{paper.name} links to #{anchor}"


def test_the_architecture_names_files_that_exist() -> None:
    for name in re.findall(r"`([\w/.]+\.(?:py|json|md))`", (ROOT / "ARCHITECTURE.md").read_text()):
        places = (ROOT, ROOT / "snapvm")
        assert any((place / name).is_file() for place in places), f"ARCHITECTURE.md names {name}"


def test_the_architecture_names_functions_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    flows = text[text.index("## The flow of a `take`") : text.index("## Layers")]
    named = set(re.findall(r"\b([A-Za-z]+)\.(?!py\b|json\b)(\w+)", flows))
    assert len(named) > 15
    for owner, function in named:
        owners = [
            module
            for module in modules()
            if module.path.stem == owner or f"class {owner}" in module.text
        ]
        assert any(f"def {function}(" in module.text for module in owners), f"{owner}.{function}"


def test_every_ignored_rule_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for line in re.findall(r'^ {4}"[A-Z]+\d*",.*$', text, re.MULTILINE):
        assert "#" in line, line


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^A-Za-z-]", line)[0] for line in project["dependencies"]}
    assert declared == {"typer", "rich", "sh", "tenacity", "numpy", "xxhash"}
    for line in project["dependencies"]:
        assert re.search(r">=[\d.]+,<[\d.]+$", line), f"{line}: from what to what was it tried?"


def test_what_the_lab_needs_is_installed() -> None:
    script = (ROOT / "tests" / "lab" / "tools.sh").read_text()
    for program, package in recipe.HOST_TOOLS.items():
        assert f"\nneed {program} {package}\n" in script


def test_shell_scripts_parse() -> None:
    for path, text in texts().items():
        if text.startswith("#!/bin/sh"):
            subprocess.run(["sh", "-n", str(path)], check=True)
