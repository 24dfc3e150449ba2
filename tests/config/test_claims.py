import os
import random
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import SoftFileLease

from pytest_diffusion.config import claims
from pytest_diffusion.config.claims import LEASE, MISSES, Place, is_claimed, local_rank, place, share, to_try
from pytest_diffusion.verdicts.errors import SetupError

PIECES = [range(start, start + 4) for start in range(0, 40, 4)]


def test_the_place_of_a_process_is_in_its_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert (place(), local_rank()) == (Place(0, 1), None)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "8")
    assert (place(), local_rank()) == (Place(3, 8), 3)
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (place(), local_rank()) == (Place(9, 16), 1)
    monkeypatch.setenv("RANK", "16")
    assert place() == Place(3, 8), "a rank beyond its world is none"


def worker(tmp_path, *, seconds=0.0):
    """Files for pieces, and a function that makes them; each says by whom it was made."""

    def unfinished(some):
        return [piece for piece in some if not (tmp_path / f"{piece.start}.done").exists()]

    def make(piece):
        time.sleep(seconds)
        with (tmp_path / f"{piece.start}.done").open("a") as file:
            file.write(f"{threading.current_thread().name}\n")

    return {"folder": tmp_path / "claims", "unfinished": unfinished, "make": make}


def test_each_piece_is_made_once_by_whoever_is_free(tmp_path):
    quick, slow = worker(tmp_path, seconds=0.01), worker(tmp_path, seconds=0.2)
    threads = [threading.Thread(target=share, args=(PIECES,), kwargs={**one, "say": print}) for one in (quick, slow)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    makers = [(tmp_path / f"{piece.start}.done").read_text().split("\n")[:-1] for piece in PIECES]
    assert all(len(one) == 1 for one in makers)
    counts = [sum(one == [thread.name] for one in makers) for thread in threads]
    assert counts[0] > counts[1] > 0, "the slow one holds nobody up"
    assert not list((tmp_path / "claims").iterdir())


@pytest.mark.parametrize(("rank", "first"), [(0, 0), (1, 20)])
def test_processes_begin_at_different_pieces(tmp_path, monkeypatch, rank, first):
    monkeypatch.setattr(claims, "place", lambda: Place(rank, 2))
    made, own = [], worker(tmp_path)
    share(PIECES, **{**own, "make": lambda piece: (made.append(piece.start), own["make"](piece))}, say=print)
    assert made[0] == first
    assert sorted(made) == [piece.start for piece in PIECES]


def test_a_piece_that_fails_is_given_back(tmp_path):
    def fails(piece):
        raise OSError("full")

    own = worker(tmp_path)
    with pytest.raises(OSError, match="full"):
        share(PIECES, **{**own, "make": fails}, say=print)
    assert not is_claimed(own["folder"].parent)
    share(PIECES, **own, say=print)
    assert not own["unfinished"](PIECES)


def test_a_claim_that_nobody_renews_is_taken(tmp_path, monkeypatch):
    """As of a process of another machine, whose death nobody here can see: its marker stands still."""
    monkeypatch.setattr(claims, "LEASE", 0.5)
    own, said = worker(tmp_path), []
    own["folder"].mkdir()
    dead = SoftFileLease(own["folder"] / "0000008.lock", lease_duration=0.5)
    dead.acquire()
    dead._stop_heartbeat()
    marker = own["folder"] / "0000008.lock"
    marker.write_text(marker.read_text().replace("host=", "host=elsewhere-"))
    begun = time.monotonic()
    share(PIECES, **own, say=said.append, patience=0.1)
    assert 0.4 < time.monotonic() - begun < 10
    assert "elsewhere-" in said[0]


def test_an_empty_claim_is_taken_too(tmp_path, monkeypatch):
    """Of a machine that lost its power between making the file and writing it."""
    monkeypatch.setattr(claims, "LEASE", 0.3)
    own = worker(tmp_path)
    own["folder"].mkdir()
    (own["folder"] / "0000008.lock").touch()
    begun = time.monotonic()
    share(PIECES, **own, say=print)
    assert 0.2 < time.monotonic() - begun < 10
    assert not own["unfinished"](PIECES)


def test_what_cannot_be_claimed_is_told_in_one_line(tmp_path):
    own = worker(tmp_path)
    own["folder"].write_text("a file where the folder should be")
    with pytest.raises(SetupError, match=r"Nothing can be claimed in .*claims: .*--diffusion-cache-dir; what is there is kept"):
        share(PIECES, **own, say=print)


def test_whether_anybody_holds_a_claim(tmp_path):
    """In the entry's own folder, or in that of its features; one that is not renewed for minutes is of the dead."""
    assert not is_claimed(tmp_path)
    (tmp_path / "features-x" / "claims").mkdir(parents=True)
    with SoftFileLease(tmp_path / "features-x" / "claims" / "0000000.lock", lease_duration=LEASE):
        assert is_claimed(tmp_path)
    assert not is_claimed(tmp_path)
    dead = tmp_path / "features-x" / "claims" / "0000004.lock"
    dead.write_text("host=elsewhere")
    assert is_claimed(tmp_path)
    os.utime(dead, (1e9, 1e9))
    assert not is_claimed(tmp_path)


def test_pieces_that_nobody_has_are_tried_first_and_of_the_others_a_few(tmp_path):
    for piece in PIECES[:8]:
        (tmp_path / f"{piece.start:07d}.lock").touch()
    assert to_try(PIECES, tmp_path) == PIECES[8:]
    some = to_try(PIECES[:8], tmp_path)
    assert sorted(some, key=PIECES.index) == PIECES[:8]
    many = [range(start, start + 1) for start in range(100)]
    for piece in many:
        (tmp_path / f"{piece.start:07d}.lock").touch()
    assert len(set(to_try(many, tmp_path))) == MISSES


def test_what_others_have_made_meanwhile_is_looked_up_anew_after_some_misses(tmp_path, monkeypatch):
    """A list of free pieces grows old while a long job goes on; each miss costs a claim."""
    monkeypatch.setattr(claims, "place", lambda: Place(0, 1))  # in a worker of xdist, it would begin elsewhere
    own = worker(tmp_path)
    many = [range(start, start + 1) for start in range(100)]
    looks, asked = [], []

    def unfinished(some):
        if len(some) > 1:
            looks.append(len(some))
            if len(looks) == 1:
                return list(some)  # then all but the last are made by others
            for piece in some[:-1]:
                (tmp_path / f"{piece.start}.done").touch()
        else:
            asked.append(some[0].start)
            if some[0].start < 99:
                return []
        return own["unfinished"](some)

    share(many, own["folder"], unfinished=unfinished, make=own["make"], say=print)
    assert list(dict.fromkeys(asked)) == [*range(MISSES), 99]
    assert (tmp_path / "99.done").exists()


def test_pieces_that_others_hold_in_a_store_do_not_hide_the_free_ones(tmp_path, monkeypatch):
    """Their claims cannot be seen in the folder: all pieces are asked for."""
    held = {f"{start:07d}.lock" for start in range(0, 80, 4)}

    class Elsewhere:
        has_store = True

        def __init__(self, folder):
            pass

        @contextmanager
        def claimed(self, lock_file):
            yield Path(lock_file).name not in held or (tmp_path / "96.done").exists()

    monkeypatch.setattr(claims, "RemoteClaims", Elsewhere)
    begun = time.monotonic()
    share([range(start, start + 4) for start in range(0, 100, 4)], **worker(tmp_path), say=print)
    assert time.monotonic() - begun < 5
    assert len(list(tmp_path.glob("*.done"))) == 25


def test_which_claims_of_others_are_asked_for_leaves_the_users_random_numbers_alone(tmp_path):
    many = [range(start, start + 1) for start in range(100)]
    for piece in many:
        (tmp_path / f"{piece.start:07d}.lock").touch()
    random.seed(0)
    before = random.getstate()
    chosen = [tuple(to_try(many, tmp_path)) for _ in range(2)]
    assert random.getstate() == before
    assert chosen[0] != chosen[1]
