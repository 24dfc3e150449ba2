"""The options: one table of names, parsers and help texts for the command line, the ini file and markers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_diffusion.config import parsers
from pytest_diffusion.config.sources import listed


@dataclass(frozen=True)
class Option:
    """One option: its name in `Settings`, how to read its text, and its help."""

    name: str
    parse: Callable[[str], Any]
    metavar: str
    help: str
    many: bool = False
    """Whether it may be given more than once; its value is then a tuple."""
    is_switch: bool = False
    """Whether it is given without a value on the command line; in the ini file it is true or false."""
    is_path: bool = False
    """Whether its text may be a path, which in the ini file is relative to that file."""
    is_list: bool = False
    """Whether its text is a list with commas."""
    bare: str = ""
    """What it says without a value, where it may be given so."""
    aliases: tuple[str, ...] = ()
    """Earlier names that are still taken, as options, in the ini file and in markers."""

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return self.flags[0]

    @property
    def flags(self) -> list[str]:
        """The option as it is typed, and its earlier names."""
        return ["--diffusion-" + name.replace("_", "-") for name in (self.name, *self.aliases)]

    @property
    def ini(self) -> str:
        """Its name in the ini file."""
        return f"diffusion_{self.name}"

    @property
    def ini_names(self) -> list[str]:
        """Its name in the ini file, and its earlier names."""
        return [f"diffusion_{name}" for name in (self.name, *self.aliases)]


OPTIONS = (
    Option(
        "model",
        str,
        "NAME",
        f"what is tested: {listed('model')}",
        is_path=True,
    ),
    Option(
        "baseline",
        str,
        "NAME",
        "the model in production, with which the model is compared: whatever --diffusion-model takes, a saved baseline "
        "(NAME.diffusion), or the report.json of an earlier run",
        is_path=True,
    ),
    Option(
        "lora",
        parsers.lora,
        "PATH[:SCALE]",
        "an adapter (LoRA) on the baseline: compared are the baseline with it and without it",
        is_path=True,
    ),
    Option(
        "lenses",
        parsers.lenses,
        "parsers.LENSES",
        "any of metrics,schedule,attention,latent,paired (default: all that the model supports; paired with a baseline)",
        is_list=True,
        aliases=("modes",),
    ),
    Option(
        "reference",
        str,
        "REF",
        f"real images: {listed('reference')}",
        is_path=True,
    ),
    Option(
        "prompts", str, "FILE", f"prompts: {listed('prompts')} (default: those of a reference of pairs, else a built-in list)", is_path=True
    ),
    Option(
        "retention",
        str,
        "REF",
        "images of what a fine-tune must not forget, with captions, for the denoising loss (default: those of the reference)",
        is_path=True,
    ),
    Option(
        "scorer",
        str,
        "NAME",
        f"a score of each image for the comparison with the baseline: {listed('score')}; may be given more than once",
        many=True,
        is_path=True,
    ),
    Option("subject", str, "REF", "pictures of the subject of a fine-tune, for the scorer dinov2:PATH_OR_ID", is_path=True),
    Option(
        "max_samples", parsers.positive, "N", "most pairs of samples that are drawn for the comparison (default: by the thresholds file)"
    ),
    Option("num_samples", parsers.positive, "N", "samples generated for the metrics (default: 10000)"),
    Option("steps", parsers.positive, "N", "inference steps (default: 50)"),
    Option("guidance_scale", parsers.scale, "X", "classifier-free guidance (default: the pipeline's own)"),
    Option("height", parsers.size, "PIXELS", "height of the samples (default: the pipeline's own)"),
    Option("width", parsers.size, "PIXELS", "width of the samples (default: the pipeline's own)"),
    Option("seed", parsers.seed, "N", "sample i is drawn from seed N + i (default: 0)"),
    Option(
        "scheduler",
        str,
        "CLASS",
        f"{listed('scheduler')}, built from the configuration of the model's scheduler; without a model it is tested by the "
        "scheduler checks",
    ),
    Option(
        "scheduler_config", parsers.entry, "KEY=VALUE", "an entry of the scheduler's configuration; may be given more than once", many=True
    ),
    Option(
        "scheduler_profile",
        parsers.profile,
        "NAME",
        "how far the scheduler checks go: standard or thorough (default: standard)",
    ),
    Option(
        "scheduler_plan", parsers.entry, "KEY=VALUE", "an argument of every set_timesteps in the scheduler checks, as shift=5", many=True
    ),
    Option("scheduler_step", parsers.entry, "KEY=VALUE", "an argument of every step in the scheduler checks, as omega=10", many=True),
    Option(
        "scheduler_kind",
        parsers.kind,
        "KIND",
        "the form of the scheduler's samples, where nothing tells it: vp, sigma, edm or flow",
    ),
    Option(
        "scheduler_prediction_type",
        parsers.prediction,
        "TYPE",
        "what the scheduler's model predicts, where nothing tells it: epsilon, ...",
    ),
    Option(
        "scheduler_names_end",
        parsers.switch,
        "",
        "the last of the scheduler's timesteps is the end of the plan, which its pipelines leave out",
        is_switch=True,
    ),
    Option("scheduler_shape", parsers.shape, "SHAPE", "the only shape of samples that the scheduler takes, as 2,16,4,8,8"),
    Option("scheduler_expected", parsers.entry, "CHECK=REASON", "a scheduler check that is known to fail, and why", many=True),
    Option("scheduler_baseline", str, "CLASS", "the scheduler before it was rewritten or ported: both must give the same samples"),
    Option(
        "slices",
        str,
        "NAME",
        "compare by slice too: words that prompts share (words), or a column of the prompts or images; may be given more than once",
        many=True,
    ),
    Option(
        "selftest",
        parsers.selftest,
        "LEVEL",
        "what would this gate catch on this model? Known damage is held against it: quick, full, or a number of seconds (default: quick)",
        bare="quick",
    ),
    Option(
        "selftest_require",
        parsers.names,
        "DAMAGE[:STRENGTH],...",
        "damage that the self-test must show to be caught, as denoiser_noise:0.05,channels_swapped",
        is_list=True,
    ),
    Option("device", parsers.device, "DEVICE", "cpu, cuda, cuda:1, mps (default: cuda, else mps, else cpu)"),
    Option(
        "dtype",
        parsers.dtype,
        "DTYPE",
        "float32, float16 or bfloat16 (default: float32 on cpu, else as a local folder is stored)",
    ),
    Option(
        "compile",
        parsers.compile_mode,
        "MODE",
        "compile the denoiser with torch.compile: default, reduce-overhead, max-autotune or max-autotune-no-cudagraphs",
        bare="default",
    ),
    Option("memory_format", parsers.memory_format, "FORMAT", "channels_last or contiguous_format, for the weights (default: as loaded)"),
    Option("batch_size", parsers.positive, "N", "samples in a batch (default: by device and size; halves when memory runs out)"),
    Option(
        "effort",
        parsers.effort,
        "X",
        "how many times as many prompts, seeds and images the attention and latent lenses use (default: 1)",
    ),
    Option(
        "features",
        str,
        "NAME",
        f"feature extractor: {listed('extractor')} (default: inception)",
    ),
    Option(
        "clip_model", str, "NAME", f"CLIP for the CLIP score: {listed('scorer')} (default: openai/clip-vit-large-patch14)", is_path=True
    ),
    Option(
        "attention_layers",
        parsers.layers,
        "LAYERS",
        "layers whose attention is judged, by name or prefix, separated by commas (default: up_blocks, else all)",
        is_list=True,
    ),
    Option(
        "thresholds",
        str,
        "NAME",
        "a preset or a TOML file; may be given twice, later wins (default: by model family)",
        many=True,
        is_path=True,
    ),
    Option("report", parsers.report, "PATH", "HTML report (default: diffusion-report.html); the .json lies beside it", is_path=True),
    Option(
        "trust_remote_code",
        parsers.switch,
        "",
        "let a model's folder or repository run code of its own, which is refused otherwise",
        is_switch=True,
    ),
    Option(
        "history",
        parsers.cache_dir,
        "FILE_OR_URL",
        "an SQLite file, or a URL of one, to which the figures of each run are added; the report shows their trend",
        is_path=True,
    ),
    Option(
        "fail_on_drop",
        parsers.drops,
        "CHECK:AMOUNT,...",
        "how much worse figures may be than those of the history's last run with an open gate, as fid:5%,clip_score:0.5",
        is_list=True,
    ),
    Option("budget", parsers.budget, "TIME", "longest that drawing samples may take, as 2h: a run that would take longer does not start"),
    Option("progress", parsers.progress, "HOW", "how stages are shown: auto, bar, log (a line a minute) or off (default: auto)"),
    Option(
        "cache_dir",
        parsers.cache_dir,
        "DIR_OR_URL",
        "where samples are kept between runs: a folder, or a URL of fsspec, as s3://bucket/path (default: the user cache folder)",
        is_path=True,
    ),
)
