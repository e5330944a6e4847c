"""Settings: from the file, from SNAPVM_* variables and from flags; each overrides those before."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from snapvm import compression, cowsize, crashpoint
from snapvm.compression import Compression
from snapvm.cowsize import CowSize
from snapvm.errors import BadSetting
from snapvm.model import CaptureMethod, ForeignPtes, ImageFormat

DEFAULT_FILE = Path("/etc/snapvm/snapvm.toml")
PREFIX = "SNAPVM_"
_FILE_LIMIT_BYTES = 1 << 20
"""A larger file cannot be a settings file, and a device such as /dev/zero has no end."""
_LIMIT = 1e9
"""About thirty years in seconds; a larger number would overflow a clock."""
_FILE_VARIABLE = f"{PREFIX}CONFIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are and how much must stay free.

    The names are the keys of the file; in the environment they are upper case behind ``SNAPVM_``.
    """

    state_dir: Path = Path("/var/lib/snapvm")
    """The folder of records and memory images; mode 0700."""
    run_dir: Path = Path("/run/snapvm")
    """The folder of locks; a reboot empties it."""
    libvirt_uri: str = "qemu:///system"
    """The libvirt to connect to."""
    pool_data_limit_percent: float = 90.0
    """Refuse a take if the data of a thin pool is fuller than this."""
    pool_metadata_limit_percent: float = 80.0
    """Refuse a take if the metadata of a thin pool is fuller than this."""
    group_limit_percent: float = 100.0
    """Refuse if thick snapshots would make a volume group fuller than this."""
    image_limit_percent: float = 100.0
    """Refuse a take if a memory image would make its file system fuller than this."""
    cow_size: CowSize = cowsize.FULL
    """How much of a thick disk may change before its snapshot is lost: full, 20% or 4G."""
    cow_chunk: int = cowsize.DEFAULT_CHUNK_BYTES
    """The chunk size of thick snapshots, 4K to 512K; the same for all snapshots of a disk."""
    window_limit_seconds: float = 30.0
    """Give up and resume the domain if LVM, or `background`, takes longer in the pause."""
    capture: CaptureMethod = CaptureMethod.AUTO
    """How memory of libvirt domains is captured: auto, background, precopy, libvirt or stop."""
    compress: Compression = compression.NONE
    """How memory images of libvirt domains are compressed: none, zstd or zstd:LEVEL."""
    image_format: ImageFormat = ImageFormat.AUTO
    """How memory images of libvirt domains are laid out: auto, plain or sparse."""
    agent_limit_seconds: float = 30.0
    """Give up if a guest agent takes longer than this to freeze the file systems."""
    capture_limit_seconds: float = 3600.0
    """Give up if writing the memory image takes longer than this."""
    precopy_limit_seconds: float = 60.0
    """With `precopy`: pause a guest that still changes memory this long after the first pass."""
    lock_wait_seconds: float = 0.0
    """How long to wait when another snapvm is working on the domain."""
    foreign_ptes: ForeignPtes = ForeignPtes.ZERO
    """What to do with a Xen guest's mappings of frames that are not its own: zero or refuse."""


def _path(value: Any) -> Path:
    path = Path(_text(value))
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def require_folder(path: Path) -> None:
    """Raise ``ValueError`` when ``path`` or a parent is no folder; any of them may be missing."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except NotADirectoryError:
        is_folder = False
    except OSError:
        # That it is missing, or may not be looked into, is told when it is used.
        return
    if not is_folder:
        raise ValueError("is not a folder")


def _folder(value: Any) -> Path:
    path = _path(value)
    require_folder(path)
    return path


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a text, in quotes")
    if not value or not value.isprintable():
        raise ValueError("must be a text on one line, and not empty")
    return value


def _percent(value: Any) -> float:
    number = _number(value)
    if not 0 < number <= 100:
        raise ValueError("must be a percentage above 0, and at most 100")
    return number


def _positive(value: Any) -> float:
    number = _number(value)
    if not 0 < number < _LIMIT:
        raise ValueError(f"must be a number above 0 and below {_LIMIT:,.0f}")
    return number


def _from_zero(value: Any) -> float:
    number = _number(value)
    if not 0 <= number < _LIMIT:
        raise ValueError(f"must be a number of at least 0, below {_LIMIT:,.0f}")
    return number


def _number(value: Any) -> float:
    # Python takes true for 1, which would be a limit of one second, or of one percent.
    if isinstance(value, bool):
        raise TypeError("is not a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("is too large a number") from None
    except (TypeError, ValueError):
        raise ValueError("is not a number") from None


def _one_of(choices: type[StrEnum]) -> Callable[[Any], StrEnum]:
    def read(value: Any) -> StrEnum:
        try:
            return choices(_text(value))
        except ValueError:
            raise ValueError(f"must be one of {', '.join(choices)}") from None

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "state_dir": _folder,
    "run_dir": _folder,
    "libvirt_uri": _text,
    "pool_data_limit_percent": _percent,
    "pool_metadata_limit_percent": _percent,
    "group_limit_percent": _percent,
    "image_limit_percent": _percent,
    "cow_size": lambda value: cowsize.parse(_text(value)),
    "cow_chunk": lambda value: cowsize.parse_chunk(_text(value)),
    "window_limit_seconds": _positive,
    "capture": _one_of(CaptureMethod),
    "agent_limit_seconds": _positive,
    "capture_limit_seconds": _positive,
    "precopy_limit_seconds": _positive,
    "compress": lambda value: compression.parse(_text(value)),
    "image_format": _one_of(ImageFormat),
    "lock_wait_seconds": _from_zero,
    "foreign_ptes": _one_of(ForeignPtes),
}


def load(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings file and the environment.

    Raises ``BadSetting`` for a file that is not TOML, a key that does not exist and a value that
    cannot be used.  A missing file is only an error when SNAPVM_CONFIG names it.
    """
    settings = Settings()
    chosen = environment.get(_FILE_VARIABLE)
    if chosen == "":
        raise BadSetting(where=_FILE_VARIABLE, why="it is empty, and names no file")
    path = Path(chosen) if chosen else DEFAULT_FILE
    for key, value in _read_file(path, must_exist=chosen is not None).items():
        settings = _with(settings, key, value, f"{path} ({key})")
    for field in fields(Settings):
        variable = _variable(field.name)
        if variable in environment:
            settings = _with(settings, field.name, environment[variable], variable)
    return settings


def ignored_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a warning for each variable that begins with SNAPVM_ and is not a setting.

    An unknown key of the file is refused, but the environment is not snapvm's alone.
    """
    known = [_FILE_VARIABLE, crashpoint.VARIABLE, *map(_variable, _READERS)]
    strange = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    return [f"{name} in the environment is not a setting{_near(name, known)}" for name in strange]


def _variable(key: str) -> str:
    return f"{PREFIX}{key.upper()}"


def _read_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_LIMIT_BYTES + 1)
        if len(text) > _FILE_LIMIT_BYTES:
            raise BadSetting(where=str(path), why=f"it is larger than {_FILE_LIMIT_BYTES} bytes")
        # Some editors begin a file with a mark that tomllib takes for a statement.
        return tomllib.loads(text.decode("utf-8-sig"))
    except FileNotFoundError:
        if must_exist:
            why = f"there is no file {str(path)!r}"
            raise BadSetting(where=_FILE_VARIABLE, why=why) from None
        return {}
    except OSError as error:
        raise BadSetting(where=str(path), why=str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise BadSetting(where=str(path), why="it is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise BadSetting(where=str(path), why=str(error)) from error


def _with(settings: Settings, key: str, value: Any, where: str) -> Settings:
    reader = _READERS.get(key)
    if reader is None:
        raise BadSetting(where=where, why=_unknown(key, value))
    try:
        return replace(settings, **{key: reader(value)})
    except (TypeError, ValueError) as error:
        raise BadSetting(where=where, why=f"{value!r} {error}") from None


def _unknown(key: str, value: Any) -> str:
    """Say that there is no such setting, and which one may have been meant."""
    if isinstance(value, dict):
        return f"there is no table [{key}]; the settings stand in the file without one"
    return f"there is no setting {key!r}{_near(key.replace('-', '_').lower(), _READERS)}"


def _near(word: str, known: Iterable[str]) -> str:
    """Say which known word may have been meant; return nothing when none looks like it."""
    # heavy: only a mistake needs it
    import difflib

    # With the prefix, which all of them have, all of them would look alike.
    bare = {each.removeprefix(PREFIX): each for each in known}
    near = difflib.get_close_matches(word.removeprefix(PREFIX), bare, n=1)
    return f"; did you mean {bare[near[0]]!r}?" if near else ""
