"""The cache folder, and how files are written there: whole or not at all, with checksums, by several processes at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytest_diffusion.config.published import publish
from pytest_diffusion.config.remote import is_url, remote_folder

SAMPLES, REFERENCES = "samples", "references"
"""Folders below the cache: samples by their address, features of references by the images' content."""


_HOST = re.sub(r"\W", "-", socket.gethostname())
_DAY = 86_400.0


class StoreWarning(UserWarning):
    """Something in the cache was damaged and is made again."""


def cache_root(cache_dir: str | None) -> Path:
    """The folder of `--diffusion-cache-dir`, else the user's cache folder; for a URL the folder of this machine before that store.

    Raises SetupError for a store that cannot be used.
    """
    if cache_dir is not None and not is_url(cache_dir):
        return Path(cache_dir).expanduser()
    import platformdirs

    own = Path(platformdirs.user_cache_dir("pytest-diffusion"))
    return own if cache_dir is None else remote_folder(cache_dir, own / "remote" / checksum(cache_dir, size=8))


def checksum(part: Any, *, size: int = 16) -> str:
    """BLAKE2b of a bytes-like object or a text, `size` bytes in hex."""
    return checksum_of([part], size=size)


def checksum_of(parts: Iterable[Any], *, size: int = 16) -> str:
    """BLAKE2b of bytes-like objects or texts one after another, `size` bytes in hex; one of them is held at a time."""
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


@contextmanager
def written_whole(path: Path, *, publishes: bool = True) -> Iterator[Path]:
    """The path of a file to write in the block; it takes its name when the block ends, so that a reader sees all or nothing.

    It is then published to the store behind its folder, if there is one.
    """
    _discard_parts_of_the_dead(path)
    part = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.{uuid.uuid4().hex}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # a rename may reach the disk before the bytes do
        part.replace(path)
        if publishes:
            publish(path)
    finally:
        part.unlink(missing_ok=True)


def _discard_parts_of_the_dead(path: Path) -> None:
    """Remove incomplete files of the same name whose process, on this machine, is gone."""
    with suppress(OSError):
        # Not glob, which takes ten times as long for a folder of thousands.
        names = os.listdir(path.parent)  # noqa: PTH208
        for part in [path.with_name(name) for name in names if name.startswith(f".{path.name}.{_HOST}.") and name.endswith(".part")]:
            if not _is_being_written(part):
                with suppress(OSError):
                    part.unlink()


def discard_leftovers(folder: Path) -> None:
    """Remove incomplete files of processes of this machine that are gone, and files and folders that only look like them.

    What a process of another machine left is removed a day later.
    """
    for part in folder.glob("*.part"):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        elif not _is_being_written(part):
            part.unlink(missing_ok=True)


def remove_unless(path: Path, is_right: Callable[[Path], bool]) -> None:
    """Remove what stands in the place of a file or folder of ours, a link included, with a warning."""
    if is_right(path) or not (path.exists() or path.is_symlink()):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    warnings.warn(f"{path} was not what it should be, and is made again.", StoreWarning, stacklevel=3)


def _is_being_written(part: Path) -> bool:
    """Whether the process that began an incomplete file may be alive; one of another machine is, for a day."""
    *_, host, process, _token, _suffix = ["", "", *part.name.split(".")]
    if host == _HOST or not process.isdigit():
        return process.isdigit() and _is_alive(int(process))
    with suppress(OSError):
        return time.time() - part.stat().st_mtime < _DAY
    return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file of which a reader sees all or nothing. Raises OSError."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file is missing, damaged or holds something else."""
    try:
        return parsed_json(path.read_bytes())
    except OSError:
        return {}


def parsed_json(data: bytes) -> dict[str, Any]:
    """A JSON object from its bytes, empty where they are damaged or hold something else."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def mark_used(path: Path) -> None:
    """Remember the use of a file: `pytest-diffusion cache prune` goes by it."""
    try:
        os.utime(path)
    except OSError:
        pass  # a read-only cache is a cache too
