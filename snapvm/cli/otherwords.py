"""The verbs of other programs for what snapvm does, and what to type here instead."""

from __future__ import annotations

# Ambiguous words are left out: `destroy` ends a domain elsewhere, `recover` is vague.
_VERBS = {
    "take": (
        "backup",
        "checkpoint",
        "create",
        "save",
        "snap",
        "snapshot",
        "snapshot-create",
        "snapshot-create-as",
    ),
    "list": ("listsnapshot", "ls", "snapshot-list"),
    "show": ("describe", "info", "snapshot-info"),
    "rollback": ("restore", "revert", "snapshot-revert"),
    "delete": ("del", "delsnapshot", "remove", "rm", "snapshot-delete"),
    "prune": ("expire", "gc", "purge"),
    "check": ("fsck",),
}
_TYPED = {
    "version": "snapvm --version",
    **{word: f"snapvm {verb}" for verb, words in _VERBS.items() for word in words},
}


def instead_of(word: str, verb: str) -> str:
    """Return what to type in place of ``word``, which is not a verb; empty when that is not known.

    ``verb`` is the verb that follows it, as in ``help take``, or empty.
    """
    if word == "help":
        return f"snapvm {verb} --help" if verb else "snapvm --help"
    return _TYPED.get(word, "")
