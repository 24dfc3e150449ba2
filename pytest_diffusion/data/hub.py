"""Failures of the hub: they say nothing about the model, and each has its own remedy."""

from __future__ import annotations

from collections.abc import Iterator


def hub_failure(error: BaseException) -> str:
    """What went wrong with the hub, and what to do, in one sentence; empty for an error that is not the hub's."""
    found = list(_chain(error))
    # What the hub's client says is more exact than what its transport says, whichever of them came first.
    return next(filter(None, map(_refusal, found)), "") or next(filter(None, map(_broken_connection, found)), "")


def why(error: BaseException) -> str:
    """The hub's failure in one sentence, or the first line of any other error."""
    return hub_failure(error) or _line(error)


def _refusal(error: BaseException) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "it is gated: accept its terms on its page of the hub, and set HF_TOKEN or run `hf auth login`."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such repository, or it is private: look at its name, or set HF_TOKEN or run `hf auth login`."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return ""  # the hub was not reached: another error in the chain says why
    if isinstance(error, errors.EntryNotFoundError | errors.RevisionNotFoundError):
        return f"the hub has the repository, but not all files that are needed: {_line(error)}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the hub is switched off (HF_HUB_OFFLINE) and its files are not in the cache of the hub's client."
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub refused: {_line(error)}"
    return ""


def _broken_connection(error: BaseException) -> str:
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, ConnectionError | TimeoutError) or package in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
        return f"the hub cannot be reached ({type(error).__name__}). What was downloaded is kept; the next run goes on from there."
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it, the first of them first: libraries replace the hub's own error by a general one."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    yield from reversed(found)


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
