"""Single files in an object store, as a saved baseline: read into memory and written whole."""

from __future__ import annotations

from pathlib import Path

from pytest_diffusion.config.remote import Remote, checked_url, require_protocol, why
from pytest_diffusion.verdicts.errors import SettingsError


def read_url(url: str, flag: str, *, missing: bytes | None = None) -> bytes:
    """The bytes of a file. Raises SettingsError, with the option, where its store does not give it, or it does not exist.

    With `missing`, these are the bytes of a file that does not exist.
    """
    remote, name = _place(url, flag)
    try:
        data = remote.get(name)
    except Exception as error:  # each store has errors of its own
        raise SettingsError(f"{flag}: {url} cannot be read: {why(error)}.") from None
    if data is None and missing is None:
        raise SettingsError(f"{flag}: the file {url} does not exist.")
    return data if data is not None else missing or b""


def write_url(url: str, data: bytes, flag: str) -> None:
    """Write a file, or replace it. Raises SettingsError, with the option, where the store does not take it."""
    remote, name = _place(url, flag)
    try:
        remote.put(name, data)
    except Exception as error:  # each store has errors of its own
        raise SettingsError(f"{flag}: {url} cannot be written: {why(error)}.") from None


def require_place(url: str, flag: str) -> None:
    """Raise SettingsError or SetupError where a file cannot be written to this URL: before hours are spent on what it will hold."""
    _place(url, flag)[0].require(f"{flag}={url}")


def _place(url: str, flag: str) -> tuple[Remote, str]:
    try:
        checked_url(url)
    except ValueError as error:
        raise SettingsError(f"{flag}: {error}.") from None
    require_protocol(url, flag)
    folder, _, name = url.rpartition("/")
    if not folder.partition("://")[2].strip("/"):
        raise SettingsError(f"{flag}: {url} names no folder or bucket before the file; expected one, as s3://bucket/parent.diffusion.")
    return Remote(folder, Path()), name
