"""Files of a cache, and what stands for them in the object store behind their folder, if there is one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pytest_diffusion.config.remote import LOCAL_ONLY, USED, NoAnswer, RemoteWarning, remote_of, why


def publish(path: Path) -> None:
    """Copy a file that was just written to the store behind its folder. A failure is a warning: the file is kept, and can be pushed."""
    if remote_of(path) is not None and not path.name.endswith(LOCAL_ONLY):
        publish_bytes(path, path.read_bytes())


def publish_bytes(path: Path, data: bytes) -> bool:
    """Publish what stands for a file, under its name; False, with a warning, where that failed. Without a store there is nothing to do."""
    if (found := remote_of(path)) is None:
        return True
    remote, name = found
    try:
        remote.put(name, data)
    except Exception as error:  # each store has its own
        warnings.warn(
            f"{name} was not published to {remote.url} ({type(error).__name__}: {why(error)}). It is kept in {remote.root}; "
            f"`pytest-diffusion cache push --cache-dir={remote.url}` publishes it.",
            RemoteWarning,
            stacklevel=3,
        )
        return False
    return True


def mark_published(folder: Path) -> None:
    """Remember in the store behind a folder that it was used: `cache prune` goes by it. A failure costs nothing."""
    if (found := remote_of(folder)) is not None:
        with suppress(Exception):
            found[0].put(f"{found[1]}/{USED}", b"")


def fetched(path: Path) -> bytes | None:
    """The bytes of what stands for a file in the store behind its folder; None where there is none, or no store.

    Raises NoAnswer, with a warning, where the store does not answer.
    """
    if (found := remote_of(path)) is None:
        return None
    remote, name = found
    try:
        return remote.get(name)
    except Exception as error:  # each store has its own
        warnings.warn(f"{name} was not read from {remote.url}: {type(error).__name__}: {why(error)}.", RemoteWarning, stacklevel=3)
        raise NoAnswer(name) from error


def is_published(path: Path) -> bool:
    """Whether what stands for a file is in the store behind its folder; False too where there is no store, or no answer."""
    if (found := remote_of(path)) is None:
        return False
    try:
        return found[0].exists(found[1])
    except Exception as error:  # each store has its own
        warnings.warn(f"{found[0].url} did not answer: {type(error).__name__}: {why(error)}.", RemoteWarning, stacklevel=3)
        return False


def published_names(folder: Path) -> set[str]:
    """Names of the files of a folder that are in the store behind it; empty where there is no store, or no answer."""
    if (found := remote_of(folder)) is None:
        return set()
    remote, name = found
    try:
        return {Path(one).name for one in remote.sizes(f"{name}/")}
    except Exception as error:  # each store has its own
        warnings.warn(f"{remote.url} was not listed: {type(error).__name__}: {why(error)}.", RemoteWarning, stacklevel=3)
        return set()


def unpublish(path: Path) -> None:
    """Remove what stands for a file or folder in the store behind it."""
    if (found := remote_of(path)) is not None:
        try:
            found[0].remove(found[1])
        except Exception as error:  # each store has its own
            warnings.warn(f"{found[1]} was not removed from {found[0].url}: {why(error)}.", RemoteWarning, stacklevel=3)


def present(paths: Iterable[Path]) -> set[Path]:
    """Those of some files that are here or in the store behind their folder."""
    wanted = list(paths)
    if len(wanted) == 1:
        return {path for path in wanted if path.is_file() or is_published(path)}
    elsewhere = {folder: published_names(folder) for folder in {path.parent for path in wanted if not path.is_file()}}
    return {path for path in wanted if path.is_file() or path.name in elsewhere.get(path.parent, ())}
