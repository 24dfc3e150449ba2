"""A cache in an object store: what one machine made another one finds, whatever the network does."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from pytest_diffusion.cli import main
from pytest_diffusion.config import remote, remote_claims
from pytest_diffusion.config.cache import StoreWarning
from pytest_diffusion.config.remote import Remote, RemoteWarning, checked_url, why
from pytest_diffusion.config.remote_claims import RemoteClaims
from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.features.store import stored_features
from pytest_diffusion.samples import generate
from pytest_diffusion.verdicts.errors import SettingsError, SetupError
from tests.config.loopback_s3 import loopback_s3
from tests.nightly import nightly

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
URL = "s3://bucket/team/cache"
PROMPTS = ["a red circle", "a blue square", "a green cross"]


@pytest.fixture
def s3(monkeypatch):
    with loopback_s3(monkeypatch) as proxy:
        monkeypatch.setattr(remote, "_PAUSE", 0.01)
        yield proxy


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this process a machine of its own, with an empty folder."""

    def become(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        monkeypatch.setattr(remote, "_REMOTES", {})
        return tmp_path / name

    become("first")
    return become


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(generate, "SHARD_SIZE", 4)
    return Settings(num_samples=10, steps=2, guidance_scale=4.0, batch_size=2, cache_dir=URL)


def test_what_one_machine_made_another_one_finds(demo_pipeline, small, s3, machine):
    first = generate.generate_samples(demo_pipeline, PROMPTS, small)
    features = stored_features(first, load_extractor("demo"))
    machine("second")
    second = generate.generate_samples(demo_pipeline, PROMPTS, small)
    assert (first.generated, second.generated) == (10, 0)
    assert first.folder != second.folder
    assert torch.equal(first.images, second.images)
    calls = []
    extractor = load_extractor("demo")
    counted = type(extractor)(extractor.name, lambda images: calls.append(len(images)) or extractor.run(images))
    assert torch.equal(stored_features(second, counted).values, features.values)
    assert calls == []
    machine("third")
    assert generate.generate_samples(demo_pipeline, PROMPTS, replace(small, num_samples=12)).generated == 2, "only what is missing"


@pytest.mark.parametrize("fault", ["refused", "cut", "slowed"])
def test_a_bad_network_changes_nothing(demo_pipeline, small, s3, machine, fault):
    plain = generate.generate_samples(demo_pipeline, PROMPTS, small)
    before = plain.images.clone()
    machine("second")
    remote._file_system.cache_clear()
    setattr(s3, fault, 3)
    again = generate.generate_samples(demo_pipeline, PROMPTS, small)
    assert getattr(s3, fault) < 3, "the fault was met"
    assert torch.equal(again.images, before)


def test_a_store_that_vanishes_costs_nothing_that_is_there(demo_pipeline, small, s3, machine, capsys, monkeypatch):
    own, calls = generate.generate_images, []

    def vanishes(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            s3.refused = 10**6
            remote._file_system(URL)[0].clear_instance_cache()
            remote._file_system.cache_clear()
        return own(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "generate_images", vanishes)
        patch.setattr(remote, "_ATTEMPTS", 1)
        with pytest.warns(RemoteWarning) as told:
            samples = generate.generate_samples(demo_pipeline, PROMPTS, small)
    assert samples.generated == 10
    assert any("was not published to s3://bucket/team/cache" in str(one.message) for one in told)
    assert not any("very-secret" in str(one.message) or "key-id" in str(one.message) for one in told)
    s3.refused = 0
    next(iter(remote._REMOTES.values()))._asked_again = 0.0
    remote._file_system.cache_clear()
    assert main(["cache", "push", f"--cache-dir={URL}"]) == 0
    assert "objects written to s3://bucket/team/cache" in capsys.readouterr().out
    machine("second")
    assert generate.generate_samples(demo_pipeline, PROMPTS, small).generated == 0


def test_a_damaged_object_is_not_believed(demo_pipeline, small, s3, machine, capsys):
    samples = generate.generate_samples(demo_pipeline, PROMPTS, small)
    store = next(iter(remote._REMOTES.values()))
    name = next(name for name in store.sizes() if name.endswith("0000004-0000008.pixels"))
    store.put(name, store.get(name)[:-1] + b"x")
    machine("second")
    assert main(["cache", "verify", f"--cache-dir={URL}"]) == 1
    assert "0000004-0000008.json" in capsys.readouterr().out
    with pytest.warns(StoreWarning, match="Samples 4 to 7 .* in the remote cache are damaged and are generated again"):
        again = generate.generate_samples(demo_pipeline, PROMPTS, small)
    assert again.generated == 4
    assert torch.equal(again.images, samples.images)
    machine("third")
    assert generate.generate_samples(demo_pipeline, PROMPTS, small).generated == 0, "what was made again was published again"


def test_no_answer_is_not_damage(demo_pipeline, small, s3, machine, monkeypatch):
    """Nothing is removed from a store that did not answer, and what it holds is drawn here."""
    first = generate.generate_samples(demo_pipeline, PROMPTS, small)
    machine("second")
    own = Remote.get

    def silent(store, name):
        if name.endswith("0000004-0000008.pixels"):
            raise ConnectionError("reset by peer")
        return own(store, name)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "get", silent)
        with pytest.warns(RemoteWarning, match="was not read from"):
            second = generate.generate_samples(demo_pipeline, PROMPTS, small)
    assert second.generated == 6, "from the shard that was not answered on"
    assert torch.equal(first.images, second.images)
    machine("third")
    assert generate.generate_samples(demo_pipeline, PROMPTS, small).generated == 0


def test_a_record_is_never_published_without_its_pixels(demo_pipeline, small, s3, machine, monkeypatch, capsys):
    own = Remote.put

    def refuses(store, name, data):
        if name.endswith(".pixels"):
            raise PermissionError("denied")
        own(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "put", refuses)
        with pytest.warns(RemoteWarning, match="was not published"):
            generate.generate_samples(demo_pipeline, PROMPTS, small)
    store = next(iter(remote._REMOTES.values()))
    assert not [name for name in store.sizes() if "/shards/" in name]
    assert main(["cache", "push", f"--cache-dir={URL}"]) == 0
    name = next(name for name in store.sizes() if name.endswith("0000004-0000008.pixels"))
    store.remove_one(name)
    assert main(["cache", "push", f"--cache-dir={URL}"]) == 0
    assert "0000004-0000008.pixels" in capsys.readouterr().out.split("objects written")[1], "push repairs what is half there"
    machine("second")
    assert generate.generate_samples(demo_pipeline, PROMPTS, small).generated == 0


def test_pull_does_not_shorten_what_is_there(demo_pipeline, small, s3, machine, tmp_path):
    generate.generate_samples(demo_pipeline, PROMPTS, small)
    here = tmp_path / "here"
    assert main(["cache", "pull", f"--cache-dir={URL}", f"--folder={here}"]) == 0
    (images,) = here.glob("samples/*/images.npy")
    whole = images.read_bytes()
    images.write_bytes(b"x" * 20 + whole[20:])
    (here / "samples" / images.parent.name / "shards" / "0000000-0000004.json").unlink()
    store = next(iter(remote._REMOTES.values()))
    store.put("samples/../../outside", b"x")
    assert main(["cache", "pull", f"--cache-dir={URL}", f"--folder={here}"]) == 0
    assert images.read_bytes() == whole
    assert not list(tmp_path.rglob("outside"))


def test_what_is_used_is_not_pruned(demo_pipeline, small, s3, machine, monkeypatch, capsys):
    generate.generate_samples(demo_pipeline, PROMPTS, small)
    store = next(iter(remote._REMOTES.values()))
    dates = {"manifest.json": 1e9, "used": 4e9}
    monkeypatch.setattr(Remote, "modified", lambda self, name: dates.get(name.rsplit("/", 1)[-1], 0.0))
    main(["cache", "prune", "--older-than=30", f"--cache-dir={URL}"])
    assert [name for name in store.sizes() if "/shards/" in name]
    dates["used"] = 1e9
    store.put(f"{next(iter(store.sizes())).rsplit('/', 1)[0]}/claims/0000000.json", b"{}")
    dates["0000000.json"] = 4e9
    main(["cache", "prune", "--older-than=30", f"--cache-dir={URL}"])
    assert "skipped, in use" in capsys.readouterr().out
    dates["0000000.json"] = 1e9
    main(["cache", "prune", "--older-than=30", f"--cache-dir={URL}"])
    assert not [name for name in store.sizes() if "/shards/" in name]


def test_a_store_that_fails_a_command_is_told_in_one_line(s3, machine, monkeypatch, capsys):
    def fails(store, prefix=""):
        raise OSError("the bucket is gone; secret_access_key=abc")

    monkeypatch.setattr(Remote, "sizes", fails)
    assert main(["cache", "list", f"--cache-dir={URL}"]) == 2
    assert capsys.readouterr().err == "pytest-diffusion: s3://bucket/team/cache: OSError: the bucket is gone; secret_access_key=***\n"
    assert main(["cache", "list", "--cache-dir=s3://key:se/cret@bucket/x"]) == 2
    assert "se/cret" not in capsys.readouterr().err


def test_what_is_in_the_store_counts_for_budget_and_plan(demo_pipeline, small, s3, machine):
    generate.generate_samples(demo_pipeline, PROMPTS, small)
    folder = machine("second")
    assert generate.samples_in_store(demo_pipeline, PROMPTS, small) == 10
    assert generate.samples_in_store(demo_pipeline, PROMPTS, replace(small, num_samples=7)) == 7
    assert generate.samples_in_store(demo_pipeline, PROMPTS, replace(small, num_samples=16)) == 10
    assert not folder.exists(), "nothing is made"


def test_pull_verify_list_and_prune(demo_pipeline, small, s3, machine, capsys, tmp_path):
    first = generate.generate_samples(demo_pipeline, PROMPTS, small)
    stored_features(first, load_extractor("demo"))
    machine("second")
    assert main(["cache", "pull", f"--cache-dir={URL}", f"--folder={tmp_path / 'here'}"]) == 0
    assert main(["cache", "verify", f"--cache-dir={tmp_path / 'here'}"]) == 0
    assert "1 entries, 0 damaged parts" in capsys.readouterr().out
    copied = generate.generate_samples(demo_pipeline, PROMPTS, replace(small, cache_dir=str(tmp_path / "here")))
    assert copied.generated == 0
    (path,) = (tmp_path / "here").glob("samples/*/features-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(["cache", "verify", f"--cache-dir={tmp_path / 'here'}"]) == 1
    assert f"{path.name} is damaged" in capsys.readouterr().out
    assert main(["cache", "list", f"--cache-dir={URL}"]) == 0
    assert "3 shards" in capsys.readouterr().out
    assert main(["cache", "prune", "--older-than=1", f"--cache-dir={URL}"]) == 0
    assert "freed 0.0 MB" in capsys.readouterr().out
    assert main(["cache", "prune", "--all", f"--cache-dir={URL}"]) == 0
    machine("third")
    assert generate.generate_samples(demo_pipeline, PROMPTS, small).generated == 10


def test_only_one_process_has_a_claim_in_the_store(s3, machine, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_claims, "RENEWAL", 0.05)
    folder = remote.remote_folder(URL, tmp_path / "front") / "samples" / "x" / "claims"
    ours, theirs = RemoteClaims(folder), RemoteClaims(folder)
    store = next(iter(remote._REMOTES.values()))
    with ours.claimed("0000000.lock") as first:
        with theirs.claimed("0000000.lock") as second, theirs.claimed("0000004.lock") as other:
            assert (first, second, other) == (True, False, True)
        before = store.get("samples/x/claims/0000000.json")
        assert b"very-secret" not in before
    with theirs.claimed("0000000.lock") as free:
        assert free
    assert store.sizes() == {}


def test_a_claim_of_a_dead_machine_is_taken(s3, machine, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_claims, "EXPIRY", 0.2)
    folder = remote.remote_folder(URL, tmp_path / "front") / "claims"
    next(iter(remote._REMOTES.values())).put("claims/0000000.json", b"{}")
    ours = RemoteClaims(folder)
    with ours.claimed("0000000.lock") as at_once:
        assert not at_once
    import time

    time.sleep(0.3)
    with ours.claimed("0000000.lock") as later:
        assert later


@pytest.mark.parametrize(("url", "can"), [("memory://claims", True), ("local://{tmp}", None)])
def test_a_store_that_cannot_create_once_has_no_claims(tmp_path, url, can):
    store = Remote(url.format(tmp=tmp_path / "store"), tmp_path)
    assert store.create("a", b"1") is can
    if can:
        assert store.create("a", b"2") is False
    store.remove("a")
    store.remove("a")
    assert store.get("a") is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/x", "carries credentials"),
        ("s3://bucket/x?token=abc", "carries credentials"),
        ("s3://k:se/cret@bucket/x", "carries credentials"),
        ("abfs://user:key@account/x", "carries credentials"),
    ],
)
def test_a_url_with_credentials_is_refused(url, message):
    with pytest.raises(ValueError, match=message):
        checked_url(url)
    with pytest.raises(SettingsError, match=message):
        resolve(options={"model": "demo", "cache_dir": url}, ini={})


def test_secrets_do_not_get_into_messages():
    assert why(OSError("GET https://x/y?X-Amz-Signature=abc123&part=1 failed")) == "GET https://x/y?X-Amz-Signature=***&part=1 failed"
    assert why(OSError("sig=abc&se=1\nsecond line")) == "sig=***&se=1"
    for text in (
        "aws_secret_access_key=abc",
        "AccountKey=abc",
        "api_key: abc",
        "{'secret': 'abc'}",
        "https://user:abc@host/x",
        "sas_token=abc",
    ):
        assert "abc" not in why(OSError(text))
    assert why(KeyError("no key in the bucket")) == "'no key in the bucket'"
    assert checked_url("abfs://container@account.dfs.core.windows.net/x")
    assert checked_url("s3://bucket/team@home/x")


def test_a_store_that_cannot_be_used_is_told_before_anything_starts(machine, tmp_path, demo_pipeline, small, s3):
    with pytest.raises(SettingsError, match="fsspec knows no nowhere"):
        generate.generate_samples(demo_pipeline, PROMPTS, replace(small, cache_dir="nowhere://x"))
    with pytest.raises(SetupError, match=r"--diffusion-cache-dir=s3://no-such-bucket/x cannot be used: "):
        generate.generate_samples(demo_pipeline, PROMPTS, replace(small, cache_dir="s3://no-such-bucket/x"))


@nightly("a minute for two comparisons")
def test_the_gate_takes_the_parents_samples_from_the_store(tmp_path, s3, machine):
    """As a CI job that begins with an empty disk: generate once, then judge on another machine, and no secret in any file."""
    options = ["--diffusion-model=demo", "--diffusion-num-samples=64", "--diffusion-steps=2", f"--diffusion-cache-dir={URL}"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    def start(module, name):
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / name / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", module, *options]
        return subprocess.run(command, cwd=tmp_path / name, env=environment, capture_output=True, text=True, check=False)

    made = start("pytest_diffusion.generate", "one")
    assert made.returncode == 0, made.stderr
    judged = start("pytest", "two")
    report = (tmp_path / "two" / "diffusion-report.json").read_text()
    assert json.loads(report)["run"]["generated"] == 0
    for text in (report, (tmp_path / "two" / "diffusion-report.html").read_text(), judged.stdout, judged.stderr, made.stderr):
        assert "very-secret" not in text
        assert "key-id" not in text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shutil.rmtree(tmp_path / "two")
