"""Recording of attention to text: probabilities are computed beside the model's own attention and reduced at once.

Hooks read the queries and keys that a layer projects. The layer's processor (LoRA, IP-Adapter, xFormers, compiled)
is not replaced and still computes the output. A wrapper around the processor could change the output, because
diffusers passes a processor only the keyword arguments that its signature names.

Fused attention does not store the probabilities, so softmax(Q·Kᵀ/√d) is computed here, for the text tokens and the
conditional part of the batch only. A record hardly grows with the number of steps. It holds entropies (one number
per step, layer and image), running means of token maps, and the maps of the requested steps.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from pytest_diffusion.attention.probe import Probe, Run
from pytest_diffusion.attention.record import AttentionRecord
from pytest_diffusion.attention.tokens import TokenListener
from pytest_diffusion.models.capabilities import denoiser, is_text_conditioned, uncompiled
from pytest_diffusion.verdicts.errors import ModelError, NotApplicable

_RECORDED: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def attention_layers(pipeline: Any) -> list[str]:
    """Names of the denoiser's layers in which the image attends to text. Raises NotApplicable where there is none."""
    network = _network(pipeline)
    if not is_text_conditioned(pipeline):
        raise NotApplicable(f"{type(pipeline).__name__} is not conditioned on text, so it has no cross-attention.")
    if "image_guidance_scale" in inspect.signature(type(pipeline).__call__).parameters:
        raise NotApplicable(f"{type(pipeline).__name__} makes three predictions per step; recording its text attention is not supported.")
    names = [name for name, module in network.named_modules() if _attends_to_text(module)]
    if not names:
        raise NotApplicable(f"{type(network).__name__} has no layer in which the image attends to text.")
    return names


@contextmanager
def record_attention(pipeline: Any, *, layers: Sequence[str] | None = None, steps: Sequence[int] = ()) -> Iterator[AttentionRecord]:
    """Record the attention to text of the pipeline call made inside the `with` block; yields an `AttentionRecord`.

    `layers` are module names of the denoiser (default: every layer in which the image attends to text: `attn2`
    of UNets and PixArt, the joint attention of SD3 and Flux). `steps` are the step indices whose token maps are kept
    individually. Images are the same as without recording. A compiled denoiser runs uncompiled inside the block, so
    its images agree only within rounding. Raises NotApplicable for models without attention to text, ModelError for
    an unknown layer, nested use, or a call with prompt_embeds in place of prompts.
    """
    network = _network(pipeline)
    chosen = list(layers) if layers is not None else attention_layers(pipeline)
    named = dict(network.named_modules())
    missing = [name for name in chosen if not _is_attention(named.get(name))]
    if missing:
        raise ModelError(f"{missing[0]!r} is not an attention layer of {type(network).__name__}.")
    if network in _RECORDED:
        raise ModelError("record_attention is already recording this pipeline; leave the outer block first.")
    record = AttentionRecord()
    run = Run(pipeline, network, record, TokenListener(pipeline), frozenset(steps))
    with ExitStack() as stack:
        _RECORDED.add(network)
        stack.callback(_RECORDED.discard, network)
        stack.enter_context(uncompiled(pipeline))
        handles = run.tokens.listen()
        handles.append(network.register_forward_pre_hook(run.note_call, with_kwargs=True))
        for name in chosen:
            handles += Probe(name, named[name], run).hooks()
        for handle in handles:
            stack.callback(handle.remove)
        yield record
    for layer in record.layers.values():
        layer.settle()


def _network(pipeline: Any) -> torch.nn.Module:
    network = denoiser(pipeline)
    if network is None:
        raise NotApplicable(f"{type(pipeline).__name__} has no UNet or transformer to record.")
    return network


def _is_attention(module: Any) -> bool:
    return all(hasattr(module, part) for part in ("to_q", "to_k", "heads"))


def _attends_to_text(module: Any) -> bool:
    """Cross-attention, or joint attention of image and text."""
    if not _is_attention(module):
        return False
    joins_text = getattr(module, "add_k_proj", None) is not None or getattr(module, "pre_only", False)
    return bool(joins_text or getattr(module, "is_cross_attention", False))
