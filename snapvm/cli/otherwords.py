"""The words that other programs have for what snapvm does, and what is typed here instead."""

from __future__ import annotations

# None that could mean two things here: `destroy` ends a domain elsewhere, `recover` is vague.
_VERBS = {
    "take": ("backup", "checkpoint", "create", "save", "snap", "snapshot"),
    "list": ("ls",),
    "show": ("describe", "info"),
    "rollback": ("restore", "revert"),
    "delete": ("del", "remove", "rm"),
    "prune": ("expire", "gc", "purge"),
    "check": ("fsck",),
}
_TYPED = {
    "version": "snapvm --version",
    **{word: f"snapvm {verb}" for verb, words in _VERBS.items() for word in words},
}


def instead_of(word: str, verb: str) -> str:
    """Return what to type in place of a word that is no verb; empty when nothing is known of it.

    ``verb`` is the one that stands behind it, as in ``help take``; empty when there is none.
    """
    if word == "help":
        return f"snapvm {verb} --help" if verb else "snapvm --help"
    return _TYPED.get(word, "")
