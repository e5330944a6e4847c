"""The version of snapvm: one line that pyproject.toml, the man page and records read."""

VERSION = "0.1.0"
