"""A cache as a whole: what of it is damaged, and copies of it to an object store and back. Damaged things are not copied."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pytest_diffusion.config.cache import REFERENCES, SAMPLES, StoreWarning, checksum, checksum_of, parsed_json, written_whole
from pytest_diffusion.config.claims import CLAIMS
from pytest_diffusion.config.remote import LOCAL_ONLY, PIXELS, Remote
from pytest_diffusion.features.sealed import read_sealed
from pytest_diffusion.samples.array_file import ArrayFile
from pytest_diffusion.samples.records import Record, Records, indices_of


def entries_of(root: Path) -> list[Path]:
    """The folders of a cache: samples of models, and features of references."""
    return sorted(folder for kind in (SAMPLES, REFERENCES) for folder in root.glob(f"{kind}/*") if folder.is_dir())


def damages_of(folder: Path) -> list[str]:
    """What is damaged in an entry, by name; nothing is repaired or removed."""
    found, images = list[str](), ArrayFile(folder / "images.npy")
    for path in sorted((folder / "shards").glob("*-*.json")):
        record = Records(path.parent, folder.name).opened(path)
        if record is None or not _matches(images, record):
            found.append(f"shards/{path.name}")
    return found + [path.relative_to(folder).as_posix() for path in _sealed_files(folder) if not _is_whole(path)]


def push(root: Path, remote: Remote) -> Iterator[str]:
    """Copy what a remote lacks; gives the name of each object that was written."""
    there = remote.sizes()
    for folder in entries_of(root):
        name, images = folder.relative_to(root).as_posix(), ArrayFile(folder / "images.npy")
        for path in sorted((folder / "shards").glob("*-*.json")):
            record = Records(path.parent, folder.name).opened(path)
            if record is None or _is_there(there, f"{name}/shards/{path.stem}", record) or not _matches(images, record):
                continue
            # The record last: it says that the pixels are there.
            pixels = b"".join(images.bytes_of(indices_of(record), record["shape"]))
            yield from _put(remote, f"{name}/shards/{path.stem}{PIXELS}", pixels)
            yield from _put(remote, f"{name}/shards/{path.name}", path.read_bytes())
        for path in [*_sealed_files(folder), *folder.glob("manifest.json")]:
            own = path.relative_to(root).as_posix()
            if there.get(own) != path.stat().st_size and (path.suffix == ".json" or _is_whole(path)):
                yield from _put(remote, own, path.read_bytes())


def pull(remote: Remote, root: Path) -> Iterator[str]:
    """Copy what the folder lacks, each shard only where its pixels match its record; gives the name of each object that was read."""
    for name in sorted(remote.sizes()):
        path = root / name
        is_foreign = ".." in path.parts or CLAIMS in path.parts or not name.startswith((SAMPLES, REFERENCES))
        if is_foreign or path.exists() or name.endswith((PIXELS, *LOCAL_ONLY)):
            continue
        data = remote.get(name)
        if data is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name != "shards":
            _write(path, data)
            yield name
        elif _pull_shard(remote, name, path, data):
            yield name


def _pull_shard(remote: Remote, name: str, path: Path, data: bytes) -> bool:
    folder = path.parent.parent
    record = Records(path.parent, folder.name).of(parsed_json(data), path.name)
    pixels = remote.get(f"{name.removesuffix('.json')}{PIXELS}") if record is not None else None
    if record is None or pixels is None or checksum(pixels) != record["checksum"]:
        warnings.warn(f"{name} in {remote.url} is damaged and was not copied.", StoreWarning, stacklevel=2)
        return False
    from filelock import FileLock

    images, indices = ArrayFile(folder / "images.npy"), indices_of(record)
    with FileLock(folder / "store.lock"):
        if images.room(record["shape"]) < indices.stop:
            # Never shorter than what is there, also where header and length do not agree.
            stops = [int(one.stem.partition("-")[2]) for one in path.parent.glob("*-*.json")]
            images.make_room(max([indices.stop, *stops]), record["shape"])
    images.write(indices.start, np.frombuffer(pixels, dtype=np.uint8).reshape(len(indices), *record["shape"]))
    _write(path, data)
    return True


def _write(path: Path, data: bytes) -> None:
    with written_whole(path, publishes=False) as part:
        part.write_bytes(data)


def _is_there(there: dict[str, int], stem: str, record: Record) -> bool:
    """Whether a store has a shard's record and all of its pixels."""
    size = len(indices_of(record)) * math.prod(record["shape"])
    return f"{stem}.json" in there and there.get(f"{stem}{PIXELS}") == size


def _put(remote: Remote, name: str, data: bytes) -> Iterator[str]:
    remote.put(name, data)
    yield name


def _matches(images: ArrayFile, record: Record) -> bool:
    try:
        return bool(checksum_of(images.bytes_of(indices_of(record), record["shape"])) == record["checksum"])
    except OSError:
        return False


def _sealed_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _is_whole(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)
        return read_sealed(path, "rows") is not None
