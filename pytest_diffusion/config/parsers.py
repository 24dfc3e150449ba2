"""What the text of an option means: each parser returns its value, or raises ValueError with what was expected."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from pytest_diffusion.config.durations import parsed_duration
from pytest_diffusion.config.remote import checked_url
from pytest_diffusion.verdicts.errors import unknown_name

LENSES = ("metrics", "schedule", "attention", "latent", "paired")
PROFILES = ("standard", "thorough")
KINDS = ("vp", "sigma", "edm", "flow")
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction", "image_minus_noise")
DTYPES = ("float32", "float16", "bfloat16")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("expected a whole number of at least 1")
    return value


def size(text: str) -> int:
    value = positive(text)
    if value % 8:
        raise ValueError("expected a multiple of 8 pixels")
    return value


def scale(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1000:
        raise ValueError("expected a number of at least 0")
    return value


def effort(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 1000:
        raise ValueError("expected a number from 1 to 1000")
    return value


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise ValueError("expected a whole number of at least 0")
    return value


def lenses(text: str) -> tuple[str, ...]:
    lenses = tuple(part.strip() for part in text.split(",") if part.strip())
    for lens in lenses:
        if lens not in LENSES:
            raise ValueError(unknown_name("the lens", lens, LENSES))
    if not lenses:
        raise ValueError(f"expected any of {','.join(LENSES)}")
    return lenses


def selftest(text: str) -> str:
    if text in ("quick", "full"):
        return text
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < 10_000_000:
        raise ValueError("expected quick, full, or a number of seconds of at least 1; write it with =, as in --diffusion-selftest=600")
    return f"{seconds:g}"


def names(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise ValueError("expected names, separated by commas")
    return found


def lora(text: str) -> str:
    path, scale = split_lora(text)
    if not path or not 0 < abs(scale) < 1000:
        raise ValueError("expected FOLDER_OR_FILE or FOLDER_OR_FILE:SCALE, with a scale other than 0")
    return text


def split_lora(text: str) -> tuple[str, float]:
    """Path and scale of an adapter; the scale is 1 where none is given."""
    path, found, scale = text.rpartition(":")
    try:
        return (path, float(scale)) if found else (text, 1.0)
    except ValueError:
        return text, 1.0  # a colon in the path


def layers(text: str) -> tuple[str, ...]:
    layers = tuple(part.strip() for part in text.split(",") if part.strip())
    if not layers:
        raise ValueError("expected names or prefixes of layers, separated by commas")
    return layers


def drops(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    for part in parts:
        drop(part)
    if not parts:
        raise ValueError("expected CHECK:AMOUNT, as in fid:5%,clip_score:0.5")
    return parts


def drop(text: str) -> tuple[str, float, bool]:
    """The check, the amount, and whether it is a share of the earlier figure, of `fid:5%`."""
    name, colon, amount = text.partition(":")
    is_share = amount.endswith("%")
    try:
        size = float(amount.removesuffix("%"))
    except ValueError:
        size = -1.0
    if not colon or not name or not math.isfinite(size) or size < 0:
        raise ValueError(f"{text!r} is not CHECK:AMOUNT, as fid:5% or clip_score:0.5 (at least 0)")
    return name, size / 100 if is_share else size, is_share


def entry(text: str) -> str:
    name, found, _ = text.partition("=")
    if not found or not name.isidentifier():
        raise ValueError("expected key=value, as in beta_schedule=linear")
    return text


def shape(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)+", text):
        raise ValueError("expected the batch and the dimensions of a sample, as 2,16,4,8,8")
    return text


def device(text: str) -> str:
    kind = text.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps", "xpu"):
        raise ValueError(unknown_name("the device", kind, ("cpu", "cuda", "mps", "xpu")))
    return text


def switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def report(text: str) -> str:
    if not text.endswith(".html"):
        raise ValueError("expected a path that ends in .html; the .json lies beside it")
    return text


def one_of(what: str, choices: Sequence[str]) -> Callable[[str], str]:
    """A parser of a text that must be one of the choices."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(unknown_name(what, text, choices))
        return text

    return parse


profile = one_of("the profile", PROFILES)
kind = one_of("the kind", KINDS)
prediction = one_of("the prediction type", PREDICTIONS)
dtype = one_of("the dtype", DTYPES)
compile_mode = one_of("the mode of torch.compile", COMPILE_MODES)
memory_format = one_of("the memory format", ("contiguous_format", "channels_last"))
progress = one_of("the progress", ("auto", "bar", "log", "off"))
cache_dir = checked_url
budget = parsed_duration
