"""Parity with torch-fidelity, where it is installed: `make peers` installs it, `.ci/run` runs this file there."""

import io
from importlib.util import find_spec

import pytest
import torch

from pytest_diffusion.features import inception
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.verdicts.errors import ModelError

needs_fidelity = pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="torch-fidelity (extra: inception) is not installed")


@pytest.fixture(scope="module")
def state():
    return inception.random_state()


def theirs(state):
    saved = io.BytesIO()
    torch.save(state, saved)
    saved.seek(0)
    network = inception._module().FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=saved)
    return network.eval()


@needs_fidelity
@pytest.mark.parametrize("size", [32, 299, 512])
def test_folded_features_equal_torch_fidelity(state, size):
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for got, expected in zip(inception.build_network(state)(images), theirs(state)(images), strict=True):
            assert expected.std() > 1e-3
            assert float((got - expected).norm() / expected.norm()) < 1e-5


@needs_fidelity
def test_weights_by_path_or_environment(state, tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    by_path = load_extractor(f"inception:{path}")
    monkeypatch.setenv(inception.WEIGHTS_VARIABLE, str(path))
    by_environment = load_extractor("inception")
    assert by_path.name == by_environment.name
    assert by_path.name.startswith("inception-v3-compat-")
    features = by_path(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert features.values.shape == (2, 2048)
    assert features.probabilities.shape == (2, 1008)
    assert "TensorFlow 1" in features.protocol["resize"]


@needs_fidelity
def test_files_that_are_not_weights(state, tmp_path, monkeypatch):
    class Runs:
        def __reduce__(self):
            return (print, ("code ran",))

    path = tmp_path / "weights.pth"
    for content, message in (
        (Runs(), "cannot be fetched or read"),
        ([1, 2], "holds no state_dict"),
        ({"a": torch.zeros(2)}, "not torch-fidelity"),
    ):
        torch.save(content, path)
        with pytest.raises(ModelError, match=message):
            load_extractor(f"inception:{path}")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(
        ModelError, match=f"no network On a machine without a network, copy https.*inception:PATH or in {inception.WEIGHTS_VARIABLE}"
    ):
        load_extractor("inception")


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_without_the_extra_the_way_out_is_named():
    with pytest.raises(ImportError, match=r"needs torch-fidelity.*pip install 'pytest-diffusion\[inception\]'"):
        load_extractor("inception")
