"""Inception v3 as FID defines it: torch-fidelity's network and weights, folded and laid out for speed."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pytest_diffusion.config.imports import import_past_torchvision
from pytest_diffusion.verdicts.errors import SetupError

WEIGHTS_VARIABLE = "PYTEST_DIFFUSION_INCEPTION_WEIGHTS"
"""Environment variable with the path of torch-fidelity's weights, for machines without a network."""
RESIZE_PROTOCOL = "299x299 in the network, bilinear as in TensorFlow 1, not antialiased"
_MODULE = "torch_fidelity.feature_extractor_inceptionv3"


def load_state(path: str | None) -> dict[str, torch.Tensor]:
    """Weights from a file (`path`, else the environment variable), or downloaded once; plain tensors only.

    Raises SetupError, with instructions to get the file, and ImportError without torch-fidelity.
    """
    named = path or os.environ.get(WEIGHTS_VARIABLE)
    source = _module().URL_INCEPTION_V3
    try:
        if named:
            state = torch.load(Path(named).expanduser(), map_location="cpu", weights_only=True)
        else:
            state = torch.hub.load_state_dict_from_url(source, map_location="cpu", progress=False, weights_only=True, check_hash=True)
    except Exception as error:  # pickle, zip, network and file errors share no base
        raise SetupError(
            f"--diffusion-features=inception: the weights {named or source} cannot be fetched or read: {str(error).splitlines()[0]} "
            f"On a machine without a network, copy {source} there and give it as inception:PATH or in {WEIGHTS_VARIABLE}."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SetupError(f"--diffusion-features=inception: {named} holds no state_dict of tensors.")
    return dict(state)


def random_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of the right shapes, scaled so that activations keep their size; for parity tests without a download."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    with torch.device("meta"):
        shapes = _bare_network().state_dict()
    for name, meta in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.int64)
        elif name.endswith("running_var"):
            state[name] = torch.rand(meta.shape, generator=generator) + 0.5
        elif meta.ndim > 1:
            state[name] = torch.randn(meta.shape, generator=generator) * (2 / meta[0].numel()) ** 0.5
        elif name.endswith("weight"):
            state[name] = torch.rand(meta.shape, generator=generator) + 0.5
        else:
            state[name] = 0.1 * torch.randn(meta.shape, generator=generator)
    return state


def build_network(state: dict[str, torch.Tensor]) -> Any:
    """The network with these weights: uint8 images (N, 3, H, W) to features (N, 2048) and unbiased logits (N, 1008).

    Batch norms are folded into the convolutions, and weights are in channels-last layout. Features agree with
    torch-fidelity's to 1e-6 relative, at 1.3 times the speed on a CPU. Raises SetupError for other weights.
    """
    # The constructor unpickles its file without protection, so it gets our own bytes, made from checked tensors.
    plain = io.BytesIO()
    torch.save(state, plain)
    plain.seek(0)
    try:
        network = _module().FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=plain)
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise SetupError(f"--diffusion-features=inception: these are not torch-fidelity's weights: {reason}") from error
    for block in network.modules():
        if isinstance(getattr(block, "bn", None), torch.nn.BatchNorm2d):
            block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), torch.nn.Identity()
    return network.to(memory_format=torch.channels_last).eval()


def _bare_network() -> Any:
    """The network without weights. Its constructor always loads a file, so the loading is disabled."""
    network_class = _module().FeatureExtractorInceptionV3

    class Bare(network_class):  # type: ignore[misc, valid-type]
        def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
            """Nothing to load."""

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    return Bare("inception", ["2048"], feature_extractor_weights_path=empty)


def _module() -> ModuleType:
    """torch-fidelity's module of the network, also where the rest of that package cannot be imported."""
    return import_past_torchvision(_MODULE, purpose="--diffusion-features=inception", install="'pytest-diffusion[inception]'")
