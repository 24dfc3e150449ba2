import os
import time
from dataclasses import replace

import pytest
from filelock import FileLock

from pytest_diffusion.cli import main
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.features.store import stored_reference_features
from pytest_diffusion.samples.generate import generate_samples


@pytest.fixture
def cache(demo_pipeline, tmp_path):
    """A cache of two sample sets, one of them ten days old, and one reference."""
    from pytest_diffusion.demo import reference_images
    from pytest_diffusion.features.extractors import load_extractor

    settings = Settings(num_samples=4, steps=2, guidance_scale=4.0, batch_size=2, cache_dir=str(tmp_path))
    old = generate_samples(demo_pipeline, ["a red circle"], settings).folder
    generate_samples(demo_pipeline, ["a red circle"], replace(settings, seed=9))
    stored_reference_features(reference_images(20), load_extractor("demo"), tmp_path)
    past = time.time() - 10 * 86_400
    os.utime(old / "manifest.json", (past, past))
    return tmp_path, old


def run(capsys, *arguments):
    status = main([*arguments])
    return status, capsys.readouterr().out


def test_list(cache, capsys):
    root, old = cache
    status, out = run(capsys, "cache", "list", "--cache-dir", str(root))
    lines = out.splitlines()
    assert status == 0
    assert old.name in lines[0]
    assert "4 of 4 samples 32x32, StableDiffusionPipeline" in lines[0]
    assert "features by 1 extractors" in out
    assert lines[-1].startswith("3 entries, ")


def test_prune_by_age(cache, capsys):
    root, old = cache
    _, out = run(capsys, "cache", "prune", "--older-than", "5", "--dry-run", "--cache-dir", str(root))
    assert f"would remove {old}" in out
    assert old.is_dir()
    before = sorted(path.name for path in old.iterdir())
    run(capsys, "cache", "prune", "--all", "--dry-run", "--cache-dir", str(root))
    assert sorted(path.name for path in old.iterdir()) == before
    _, out = run(capsys, "cache", "prune", "--older-than", "5", "--cache-dir", str(root))
    assert not old.exists()
    assert len(list(root.glob("samples/*"))) == 1
    assert out.splitlines()[-1].startswith("freed ")


def test_prune_leaves_what_is_in_use(cache, capsys):
    root, old = cache
    with FileLock(old / "store.lock"):
        _, out = run(capsys, "cache", "prune", "--all", "--cache-dir", str(root))
    assert f"skipped, in use: {old}" in out
    assert old.is_dir()
    assert len(list(root.glob("samples/*"))) == 1
    assert not list(root.glob("references/*"))


def test_a_cache_of_another_version_can_be_pruned(tmp_path, capsys):
    (tmp_path / "samples" / "abc").mkdir(parents=True)
    _, out = run(capsys, "cache", "list", "--cache-dir", str(tmp_path))
    assert "unreadable, or of another version" in out
    run(capsys, "cache", "prune", "--all", "--cache-dir", str(tmp_path))
    assert not (tmp_path / "samples" / "abc").exists()


def test_an_empty_cache_and_wrong_usage(tmp_path, capsys):
    assert run(capsys, "cache", "list", "--cache-dir", str(tmp_path / "none")) == (0, f"0 entries, 0.0 MB in {tmp_path / 'none'}\n")
    with pytest.raises(SystemExit):
        main(["cache", "prune", "--cache-dir", str(tmp_path)])
    assert "one of the arguments --older-than --all is required" in capsys.readouterr().err


def test_a_reference_that_is_read_is_in_use(cache, capsys):
    from pytest_diffusion.demo import reference_images
    from pytest_diffusion.features.extractors import load_extractor

    root, _ = cache
    past = time.time() - 10 * 86_400
    for path in [*root.glob("references/*"), *root.glob("references/*/features-*")]:
        os.utime(path, (past, past))
    stored_reference_features(reference_images(20), load_extractor("demo"), root)
    run(capsys, "cache", "prune", "--older-than", "5", "--cache-dir", str(root))
    assert len(list(root.glob("references/*"))) == 1


def test_to_verify_nothing_is_an_error(tmp_path, capsys):
    assert main(["cache", "verify", "--cache-dir", str(tmp_path / "misspelt")]) == 2
    assert "holds no samples and no features, so nothing was looked at" in capsys.readouterr().err
