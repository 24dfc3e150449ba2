"""Known damage of a pipeline, in memory and taken back: what the self-test holds the gate against. Sound changes stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pytest_diffusion.config.registry import Registry
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.gate.attribution import TEXT_PARTS
from pytest_diffusion.models.capabilities import denoiser, has_vae
from pytest_diffusion.verdicts.errors import NotApplicable

Sound = Literal["", "copy", "fine-tune"]
"""Empty: damage. Sound for a copy of the parent, and so for a fine-tune too; or for a fine-tune alone."""


@dataclass(frozen=True)
class Target:
    """What is damaged: a pipeline, the settings of its run, and its prompts, None where it takes none."""

    pipeline: Any
    settings: Settings
    prompts: Sequence[str] | None = None

    @property
    def denoiser(self) -> torch.nn.Module:
        """Its UNet or transformer. Raises NotApplicable where it has neither."""
        part = denoiser(self.pipeline)
        if part is None:
            raise NotApplicable("it has no denoiser that is a UNet or a transformer")
        return part

    @property
    def text_encoder(self) -> torch.nn.Module:
        """Its first text encoder. Raises NotApplicable where it has none."""
        part = getattr(self.pipeline, "text_encoder", None)
        if not isinstance(part, torch.nn.Module):
            raise NotApplicable("it has no text encoder")
        return part

    @property
    def vae(self) -> Any:
        """Its VAE. Raises NotApplicable where it has none."""
        if not has_vae(self.pipeline) or not hasattr(self.pipeline.vae, "decoder"):
            raise NotApplicable("it has no VAE")
        return self.pipeline.vae


SCORES_OF_CLIP = "a CLIP that knows the prompts (--diffusion-clip-model)"
LOSSES_OF_REFERENCES = "reference images with captions (--diffusion-reference), for the losses"
"""What sees most kinds of damage."""
Apply = Callable[[Target, float, int], AbstractContextManager[Settings]]
"""Damages the target with a strength and a seed while the context lasts, which gives the settings of the damaged run.

Raises NotApplicable, before anything is changed, for a pipeline that it does not fit.
"""


@dataclass(frozen=True)
class Damage:
    """A kind of damage, or a sound change. Its name is its id on the command line and in reports."""

    name: str
    title: str
    """What is done, with {} for the strength."""
    apply: Apply
    strengths: tuple[float, ...] = ()
    """From the weakest to the strongest; empty where it has no strength."""
    usual: float = 0.0
    """The strength of a quick self-test."""
    is_continuous: bool = False
    """Whether strengths in between mean something, so that the weakest that is caught can be looked for."""
    in_code: bool = False
    """Whether it is in code or settings, and not in the weights and configurations that are compared part by part."""
    sound: Sound = ""
    sees: str = ""
    """Which check or material would see it, where no configured check does."""
    is_long: bool = False
    """Whether it usually takes hundreds of pairs to decide, so that a quick self-test leaves it out."""

    def told(self, strength: float) -> str:
        """What is done, in words."""
        shown = f"{100 * strength:g} %" if self.is_continuous else f"{strength:g}"
        return self.title.format(shown)

    def is_sound_under(self, *, is_copy: bool) -> bool:
        """Whether a gate must let it pass: one for copies, or one for fine-tunes."""
        return self.sound == "copy" or (self.sound == "fine-tune" and not is_copy)


DAMAGES: Registry[Damage] = Registry("damage")
"""Kinds of damage and sound changes by name, in the order in which they are tried."""


def damage(
    title: str,
    *,
    strengths: Sequence[float] = (),
    usual: float = 0.0,
    is_continuous: bool = False,
    in_code: bool = False,
    sound: Sound = "",
    sees: str = "",
    is_long: bool = False,
) -> Callable[[Callable[[Target, float, int], Iterator[Settings]]], Damage]:
    """Decorator that declares a kind of damage: a generator that changes the target, yields the run's settings, and takes it back.

    The arguments are the fields of `Damage`. Raises ValueError for a name that is taken, and for a usual strength that is none of them.
    """
    if (usual in strengths) != bool(strengths):
        raise ValueError(f"usual is {usual}; expected one of the strengths, {list(strengths)}.")

    def register(function: Callable[[Target, float, int], Iterator[Settings]]) -> Damage:
        name = function.__name__
        made = Damage(name, title, contextmanager(function), tuple(strengths), usual, is_continuous, in_code, sound, sees, is_long)
        return DAMAGES.add(name, made, declared=function)

    return register


@contextmanager
def kept_weights(*parts: torch.nn.Module) -> Iterator[None]:
    """Put weights, buffers and dtypes of these modules back, bit by bit. Raises NotApplicable where they are not in memory as a whole."""
    weights: list[torch.Tensor] = [weight for part in parts for weight in (*part.parameters(), *part.buffers())]
    if any(weight.is_meta for weight in weights):
        raise NotApplicable("its weights are not in memory as a whole")
    kept = [(weight, weight.detach().to("cpu", copy=True)) for weight in weights]
    try:
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for weight, original in kept:
                if weight.dtype != original.dtype:
                    weight.data = weight.data.to(original.dtype)
                weight.copy_(original)


@contextmanager
def quantised_weights(target: Target, bits: int) -> Iterator[None]:
    """Matrices of denoiser and text encoders rounded to so many bits, with one scale for each row, while the context lasts."""
    texts = [getattr(target.pipeline, name, None) for name in TEXT_PARTS]
    parts = [target.denoiser, *(one for one in texts if isinstance(one, torch.nn.Module))]
    with kept_weights(*parts):
        for weight in (one for part in parts for one in part.parameters() if one.ndim > 1):
            plain = weight.float()
            scale = plain.flatten(1).abs().amax(1).clamp(min=1e-9) / (2 ** (bits - 1) - 1)
            scale = scale.view(-1, *[1] * (weight.ndim - 1))
            weight.copy_((plain / scale).round() * scale)
        yield


@contextmanager
def kept_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an object with another value, which is taken back at the end."""
    had, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def kept_config(part: Any, **entries: Any) -> Iterator[None]:
    """A part with other entries in its configuration, which are taken back at the end."""
    before = {name: part.config[name] for name in entries}
    part.register_to_config(**entries)
    try:
        yield
    finally:
        part.register_to_config(**before)
