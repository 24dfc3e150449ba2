"""`pytest-diffusion cache`: list, prune and verify the cache of samples and features, and copy it to an object store and back."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_diffusion.config.cache import REFERENCES, SAMPLES, StoreWarning, cache_root
from pytest_diffusion.config.claims import CLAIMS, is_claimed
from pytest_diffusion.config.remote import PIXELS, USED, Remote, remote_of, why
from pytest_diffusion.config.remote_claims import EXPIRY
from pytest_diffusion.verdicts.errors import SettingsError

_DAY = 86_400


@dataclass(frozen=True)
class Entry:
    """One folder of the cache: samples of a model, or features of a reference."""

    folder: Path
    kind: str
    what: str
    size: int
    """Bytes on disk."""
    used: float
    """When it was last read or written, in seconds since the epoch."""


def add_parser(commands: Any) -> None:
    """Add the actions of `cache` to the commands."""
    cache = commands.add_parser("cache", help="samples and features that are kept between runs")
    actions = cache.add_subparsers(dest="action", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--cache-dir", metavar="DIR_OR_URL", help="that of --diffusion-cache-dir (default: the user cache folder)")
    actions.add_parser("list", parents=[common], help="list cached entries, least recently used first")
    prune = actions.add_parser("prune", parents=[common], help="remove entries that were not used recently")
    which = prune.add_mutually_exclusive_group(required=True)
    which.add_argument("--older-than", type=float, metavar="DAYS", help="remove entries last used more than DAYS days ago")
    which.add_argument("--all", action="store_true", help="remove everything")
    prune.add_argument("--dry-run", action="store_true", help="show what would be removed, and remove nothing")
    actions.add_parser("verify", parents=[common], help="look at every checksum, and say what is damaged")
    for action, what in (("push", "copy to a store what it lacks"), ("pull", "copy from a store what this machine lacks")):
        copying = actions.add_parser(action, help=what)
        copying.add_argument("--cache-dir", metavar="URL", required=True, help="the store, as s3://bucket/path")
        copying.add_argument("--folder", metavar="DIR", help="the folder on this machine (default: the one before the store)")
    cache.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises SettingsError in one line for a store that fails."""
    root = cache_root(options.cache_dir)
    found = remote_of(root)
    if found is None:
        return _run(options, root, None)
    try:
        return _run(options, root, found[0])
    except Exception as error:  # each store has its own
        raise SettingsError(f"{found[0].url}: {type(error).__name__}: {why(error)}") from error


def _run(options: argparse.Namespace, root: Path, remote: Remote | None) -> int:
    if options.action in ("push", "pull"):
        return _copy(options.action, remote, Path(options.folder) if options.folder else root)
    if options.action == "verify":
        return _verify(root, remote)
    entries = sorted(_remote_entries(remote) if remote is not None else _entries(root), key=lambda entry: entry.used)
    if options.action == "list":
        return _list(remote.url if remote is not None else str(root), entries)
    return _prune(entries, remote, keep_days=options.older_than, everything=options.all, dry_run=options.dry_run)


def _copy(action: str, remote: Remote | None, folder: Path) -> int:
    from pytest_diffusion.samples.transfer import pull, push

    if remote is None:
        raise SettingsError("--cache-dir must be the URL of a store, as s3://bucket/path.")
    count = 0
    for name in push(folder, remote) if action == "push" else pull(remote, folder):
        _say(name)
        count += 1
    _say(f"{count} objects {'written to' if action == 'push' else 'read from'} {remote.url}")
    return 0


def _verify(root: Path, remote: Remote | None) -> int:
    """Look at a folder; at a store through a copy of it, which is thrown away."""
    from tempfile import TemporaryDirectory

    from pytest_diffusion.samples.transfer import damages_of, entries_of, pull

    with TemporaryDirectory() as copied:
        damaged = list[str]()
        if remote is not None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                root = Path(copied)
                for _ in pull(remote, root):
                    pass
            damaged += [str(one.message) for one in caught if issubclass(one.category, StoreWarning)]
        entries = entries_of(root)
        if not entries and not damaged:
            raise SettingsError(f"{remote.url if remote is not None else root} holds no samples and no features, so nothing was looked at.")
        damaged += [f"{folder.relative_to(root)}/{name} is damaged" for folder in entries for name in damages_of(folder)]
    for line in damaged:
        _say(line)
    _say(f"{len(entries)} entries, {len(damaged)} damaged parts")
    return 1 if damaged else 0


def _remote_entries(remote: Remote) -> Iterator[Entry]:
    sizes = remote.sizes()
    for entry in sorted({"/".join(name.split("/")[:2]) for name in sizes if name.startswith((SAMPLES, REFERENCES))}):
        own = [name for name in sizes if name.startswith(f"{entry}/")]
        shards = sum(name.endswith(PIXELS) for name in own)
        what = f"{shards} shards" if entry.startswith(SAMPLES) else f"features by {len(own)} extractors"
        touched = next((name for name in (f"{entry}/{USED}", f"{entry}/manifest.json") if name in sizes), own[-1])
        # Where a store does not say when, the entry counts as used now.
        used = remote.modified(touched) or time.time()
        yield Entry(Path(entry), entry.split("/")[0].rstrip("s"), what, sum(sizes[name] for name in own), used)


def _entries(root: Path) -> Iterator[Entry]:
    # With the folders of this machine before stores.
    for folder in sorted([*root.glob(f"{SAMPLES}/*"), *root.glob(f"remote/*/{SAMPLES}/*")]):
        manifest = folder / "manifest.json"
        try:
            known = json.loads(manifest.read_text(encoding="utf-8"))
            ranges = [path.stem.split("-") for path in folder.glob("shards/*-*.json")]
            held = sum(int(stop) - int(first) for first, stop in ranges)
            size = "x".join(str(side) for side in reversed(known["shape"][1:]))
            what = f"{held} of {known['count']} samples {size}, {known['pipeline']} {known['weights']}, {known['scheduler'].split()[0]}"
        except (OSError, ValueError, KeyError, TypeError):
            what = "unreadable, or of another version"
        yield _entry(folder, "samples", what, manifest)
    for folder in sorted([*root.glob(f"{REFERENCES}/*"), *root.glob(f"remote/*/{REFERENCES}/*")]):
        features = sorted(folder.glob("features-*"), key=lambda path: path.stat().st_mtime)
        yield _entry(folder, "reference", f"features by {len(features)} extractors", features[-1] if features else folder)


def _entry(folder: Path, kind: str, what: str, touched: Path) -> Entry:
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    # Blocks on disk: images.npy is sparse until all samples are written.
    size = sum(getattr(status, "st_blocks", 0) * 512 or status.st_size for status in files)
    used = touched.stat().st_mtime if touched.exists() else folder.stat().st_mtime
    return Entry(folder, kind, what, size, used)


def _list(root: str, entries: Sequence[Entry]) -> int:
    for entry in entries:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        _say(f"{day}  {entry.size / 1e6:>10.1f} MB  {entry.kind:<9}  {entry.folder.name}  {entry.what}")
    _say(f"{len(entries)} entries, {sum(entry.size for entry in entries) / 1e6:.1f} MB in {root}")
    return 0


def _prune(entries: Sequence[Entry], remote: Remote | None, *, keep_days: float | None, everything: bool, dry_run: bool) -> int:
    from filelock import FileLock, Timeout

    limit = time.time() if everything or keep_days is None else time.time() - keep_days * _DAY
    removed, busy = 0, 0
    for entry in entries:
        if entry.used > limit:
            continue
        if dry_run:
            _say(f"would remove {entry.folder} ({entry.size / 1e6:.1f} MB)")
            removed += entry.size
            continue
        if remote is not None:
            claimed = [name for name in remote.sizes(f"{entry.folder.as_posix()}/") if f"/{CLAIMS}/" in name]
            if any(time.time() - remote.modified(name) < 2 * EXPIRY for name in claimed):
                busy += 1
                _say(f"skipped, in use: {entry.folder}")
                continue
            _say(f"removing {entry.folder} ({entry.size / 1e6:.1f} MB)")
            remote.remove(entry.folder.as_posix())
            removed += entry.size
            continue
        try:
            if is_claimed(entry.folder):
                raise Timeout(str(entry.folder))
            with FileLock(entry.folder / "store.lock", timeout=0):
                _say(f"removing {entry.folder} ({entry.size / 1e6:.1f} MB)")
                shutil.rmtree(entry.folder)
                removed += entry.size
        except Timeout:
            busy += 1
            _say(f"skipped, in use: {entry.folder}")
        except OSError as error:
            print(f"pytest-diffusion: {entry.folder} cannot be removed: {error}", file=sys.stderr)  # noqa: T201
            return 1
    _say(f"{'would free' if dry_run else 'freed'} {removed / 1e6:.1f} MB" + (f", {busy} in use" if busy else ""))
    return 0


def _say(line: str) -> None:
    print(line)  # noqa: T201 - a command's output
