"""A cache that lies in an object store (any URL of fsspec), with a folder of this machine before it.

What is written to the folder is published: first the content, then the record that says it is there. What is missing in the folder
is fetched. Two processes that publish the same thing publish the same bytes, so that nothing needs a lock.
"""

from __future__ import annotations

import inspect
import re
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pytest_diffusion.verdicts.errors import SettingsError, SetupError

_Result = TypeVar("_Result")
_ATTEMPTS, _PAUSE, _REST = 3, 0.5, 60.0
"""Tries of one request (the store's own client tries too), seconds before the second, each pause being twice the last, and seconds
for which nothing is asked after the last."""
_REMOTES: dict[Path, Remote] = {}
"""Remotes by the folder before them."""
_SECRET = re.compile(
    r"""(?ix)([\w-]*(?:signature|sig|token|credential|secret|password|(?:access|account|api|shared)[_-]?key)[\w-]*)
    (['"]?\s*[=:]\s*['"]?)[^&\s'",;]+"""
)
_USER = re.compile(r"//[^/\s@]*:[^@\s]*@")
LOCAL_ONLY = (".lock", ".part", ".npy")
"""Ends of names of files that make sense on one machine alone; the pixels of images.npy are published shard by shard."""
USED = "used"
"""Object of an entry that is written anew whenever the entry is used."""
PIXELS = ".pixels"
"""End of the name of what stands for the pixels of a shard."""


class RemoteWarning(UserWarning):
    """Something was not published; it is kept on this machine."""


class NoAnswer(Exception):  # noqa: N818 - the store's silence, not an error of ours
    """A store did not answer; whether it holds something is not known."""


class Remote:
    """Objects below one URL, by names with slashes. Requests that fail are tried again; the last failure raises OSError."""

    def __init__(self, url: str, root: Path) -> None:
        self.url, self.root = url.rstrip("/"), root
        self._asked_again = 0.0

    @property
    def _fs(self) -> Any:
        return _file_system(self.url)[0]

    def _path(self, name: str) -> str:
        return f"{_file_system(self.url)[1].rstrip('/')}/{name}"

    def _tried(self, action: Callable[[], _Result]) -> _Result:
        """The result of a request, tried again where the network or the store failed it.

        After a last failure nothing is asked for a while, so that a store that has vanished does not hold up each request anew.
        """
        if time.monotonic() < self._asked_again:
            raise OSError("the store did not answer a moment ago")
        pause = _PAUSE
        for attempt in range(_ATTEMPTS):
            try:
                return action()
            except (FileNotFoundError, FileExistsError, PermissionError, NotImplementedError, TypeError, ValueError, ImportError):
                raise
            except Exception as error:
                if "PreconditionFailed" in str(error):
                    raise
                if attempt == _ATTEMPTS - 1:
                    self._asked_again = time.monotonic() + _REST
                    raise
                time.sleep(pause)
                pause *= 2
        raise AssertionError("unreachable")

    def get(self, name: str) -> bytes | None:
        """The bytes of an object; None where there is none."""
        try:
            return bytes(self._tried(lambda: self._fs.cat_file(self._path(name))))
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Write an object, or replace it."""
        self._tried(lambda: self._fs.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> bool | None:
        """Write an object unless there is one; False where there was one, None where the store cannot do this as one step."""
        from fsspec import AbstractFileSystem

        own = getattr(type(self._fs), "_pipe_file", None) or type(self._fs).pipe_file
        if own is AbstractFileSystem.pipe_file or "mode" not in inspect.signature(own).parameters:
            return None  # it would look first and write then
        try:
            self._tried(lambda: self._fs.pipe_file(self._path(name), data, mode="create"))
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError, ValueError):
            return None
        except OSError as error:
            if "PreconditionFailed" in str(error) or "At least one of the pre-conditions" in str(error):
                return False
            raise
        return True

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""

        def found() -> bool:
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._path(name)))

        return self._tried(found)

    def remove_one(self, name: str) -> None:
        """Remove one object, if there is one."""
        try:
            self._tried(lambda: self._fs.rm_file(self._path(name)))
        except FileNotFoundError:
            pass

    def remove(self, name: str) -> None:
        """Remove an object or all below a name, if there are any."""
        try:
            self._tried(lambda: self._fs.rm(self._path(name), recursive=True))
        except FileNotFoundError:
            pass

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Names of the objects below a prefix, relative to the URL, with their sizes in bytes."""
        base = _file_system(self.url)[1].rstrip("/") + "/"

        def found() -> dict[str, Any]:
            self._fs.invalidate_cache()
            return dict(self._fs.find(base + prefix, detail=True))

        try:
            listed = self._tried(found)
        except FileNotFoundError:
            return {}
        return {_below(path, base): int(about.get("size") or 0) for path, about in listed.items()}

    def modified(self, name: str) -> float:
        """When an object was written, in seconds since the epoch; 0 where the store does not say."""
        try:
            return float(self._tried(lambda: self._fs.modified(self._path(name))).timestamp())
        except (NotImplementedError, FileNotFoundError):
            return 0.0

    def require(self, given: str = "") -> None:
        """Raise SetupError, with the option as it was given, unless the store can be read and written: before anything expensive starts."""
        given = given or f"--diffusion-cache-dir={self.url}"
        name = f"probe-{uuid.uuid4().hex}"
        try:
            self.put(name, b"pytest-diffusion")
            if self.get(name) != b"pytest-diffusion":
                raise OSError("what was written is not what is read")
            self.remove(name)
        except ImportError as error:
            raise SetupError(f"{given} needs a package that is not installed: {why(error)}") from error
        except Exception as error:  # each store has its own
            raise SetupError(f"{given} cannot be used: {type(error).__name__}: {why(error)}.") from error


def is_url(text: str) -> bool:
    """Whether a text is the URL of a store, and not a path."""
    return "://" in text


def checked_url(text: str) -> str:
    """A cache folder or URL as it was given. Raises ValueError for a URL that carries credentials, which would get into reports."""
    protocol, mark, rest = text.partition("://")
    host = rest.partition("/")[0]
    # Azure names a container before the @.
    has_user = "@" in host and protocol not in ("abfs", "abfss")
    if mark and (has_user or re.search(r":[^@]*@", rest) or "?" in rest):
        raise ValueError("it carries credentials or parameters; give them by the environment or by fsspec's configuration")
    return text


def require_protocol(url: str, flag: str) -> None:
    """Raise SettingsError, with the option, for a kind of store that fsspec does not know."""
    import fsspec

    protocol = url.partition("://")[0]
    if protocol not in fsspec.available_protocols():
        raise SettingsError(f"{flag} is {url!r}; fsspec knows no {protocol}. Use one of its protocols, as s3, gs, az or hf.")


def remote_folder(url: str, root: Path) -> Path:
    """The folder of this machine before a store, which is looked at once."""
    if root not in _REMOTES:
        try:
            checked_url(url)
        except ValueError as error:
            raise SettingsError(f"the URL of the cache cannot be used: {error}.") from None
        require_protocol(url, "--diffusion-cache-dir")
        remote = Remote(url, root)
        remote.require()
        _REMOTES[root] = remote
    return root


def remote_of(path: Path) -> tuple[Remote, str] | None:
    """The remote of a file or folder of a cache, and the name that it has there."""
    for root, remote in _REMOTES.items():
        if path.is_relative_to(root):
            return remote, path.relative_to(root).as_posix()
    return None


def why(error: BaseException) -> str:
    """The first line of an error, without anything that looks like a credential."""
    line = (str(error).splitlines() or [""])[0]
    return _USER.sub("//...@", _SECRET.sub(r"\1\2***", line)).rstrip(".")


@cache
def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    return found


def _below(path: str, base: str) -> str:
    """A path as the file system names it, relative to the base; some put a slash before it, and some a protocol."""
    return path.partition(base.lstrip("/"))[2] if base.lstrip("/") else path.lstrip("/")
