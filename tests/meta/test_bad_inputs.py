"""Inputs that are wrong: each must be refused with a sentence that says what and how, before an image is drawn.

Each row is a command, files, the exit code, and a sentence. A new kind of mistake is a new row.
"""

import json
import os
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pytest_diffusion.verdicts.gate import BROKEN_SETUP
from tests.meta.test_open_gates import PIXELS, lay_out

pytestmark = pytest.mark.filterwarnings("ignore")

OF_PIXELS = ("--diffusion-model=pixels:make", "--diffusion-num-samples=8", "--diffusion-steps=1", "--diffusion-features=pixels")
NAMES = "fid,kid"


@dataclass
class Mistake:
    arguments: tuple[str, ...]
    sentence: str
    code: int = 4
    files: dict[str, object] = field(default_factory=dict)
    """Texts, or functions that make a file at a path."""


def option(name, value, sentence, code=4, **files):
    return Mistake(("--diffusion-model=demo", "--diffusion-lenses=schedule", f"--diffusion-{name}={value}"), sentence, code, files)


def limits(text, sentence):
    return Mistake(
        ("--diffusion-model=demo", "--diffusion-lenses=schedule", "--diffusion-thresholds=own.toml"), sentence, 4, {"own.toml": text}
    )


def reference(name, files, sentence, code=BROKEN_SETUP):
    chosen = OF_PIXELS if name != "digits" else OF_PIXELS[:3]
    return Mistake((*chosen, f"--diffusion-reference={name}", "--diffusion-lenses=metrics"), sentence, code, {**PIXELS, **files})


def model(body, sentence, code=1, name="make"):
    factory = f"import torch, diffusers, types\n{body}\n"
    arguments = (f"--diffusion-model=own_model:{name}", "--diffusion-lenses=metrics", *OF_PIXELS[1:])
    return Mistake(arguments, sentence, code, {"own_model.py": factory, "pytest.ini": PIXELS["pytest.ini"]})


def features(body, sentence, code=BROKEN_SETUP):
    arguments = (*OF_PIXELS[:3], "--diffusion-features=own_features:run", "--diffusion-lenses=metrics")
    return Mistake(arguments, sentence, code, {**PIXELS, "own_features.py": f"import torch\n{body}\n"})


def prompts(content, sentence):
    return Mistake(("--diffusion-model=demo", "--diffusion-prompts=p.txt", "--diffusion-lenses=metrics"), sentence, 4, {"p.txt": content})


def image(path):
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)


def bomb(path):
    """A file of a few bytes that claims 100,000 pixels a side."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def denoiser_alone(path):
    """The keys of a UNet of Stable Diffusion, without a VAE and a text encoder."""
    keys = ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight", "out.2.weight")
    save_file({f"model.diffusion_model.{key}": torch.zeros(4, 4) for key in keys}, path)


def arrays(**values):
    return lambda path: np.savez(path, **values)


def rows(*lines):
    return "\n".join(json.dumps(line) for line in lines)


EYE = np.eye(192)
NO_COVARIANCE = "*sigma is no covariance: it "
NOT_DEFINITE = EYE - 2 * np.outer(np.eye(192)[0], np.eye(192)[0])

MISTAKES = {
    # Values of options.
    "an empty model": Mistake(("--diffusion-model=",), "--diffusion-model is empty*"),
    "a model with a typo": Mistake(("--diffusion-model=dmeo",), "*expected 'demo', analytic:NAME, a diffusers folder*"),
    "a folder that is not there": Mistake(("--diffusion-model=./nowhere",), "*the folder ./nowhere does not exist*"),
    "a pickled checkpoint": Mistake(("--diffusion-model=weights.ckpt",), "*pickled checkpoints can run code*"),
    "a file that is not there": Mistake(("--diffusion-model=weights.safetensors",), "*the file weights.safetensors does not exist*"),
    "a function that is not there": Mistake(("--diffusion-model=os.path:nofn",), "*--diffusion-model: os.path has no 'nofn'.*"),
    "no identifier": Mistake(("--diffusion-model=json:not an identifier",), "*expected package.module:name*"),
    "a module that is not there": Mistake(("--diffusion-model=no_such:make",), "*no module named 'no_such'*"),
    "an unknown closed form": Mistake(("--diffusion-model=analytic:moons",), "*the analytic model is 'moons'; expected one of*", 1),
    "no samples": option("num-samples", 0, "*--diffusion-num-samples is '0': expected a whole number of at least 1*"),
    "fewer than none": option("num-samples", -5, "*at least 1*"),
    "samples in words": option("num-samples", "many", "*--diffusion-num-samples is 'many': expected a number*"),
    "samples with an exponent": option("num-samples", "1e3", "*--diffusion-num-samples is '1e3': expected a number*"),
    "no steps": option("steps", 0, "*--diffusion-steps is '0'*at least 1*"),
    "guidance that is no number": option("guidance-scale", "nan", "*--diffusion-guidance-scale is 'nan'*"),
    "an odd height": option("height", 100, "*--diffusion-height is '100': expected a multiple of 8 pixels*"),
    "a negative seed": option("seed", -1, "*--diffusion-seed is '-1'*"),
    "a seed that torch cannot take": option("seed", 2**64, "*--diffusion-seed*"),
    "a lens with a typo": Mistake(("--diffusion-model=demo", "--diffusion-lenses=latents"), "*Did you mean 'latent'*"),
    "no lens": Mistake(("--diffusion-model=demo", "--diffusion-lenses=,"), "*expected any of metrics,schedule,attention,latent*"),
    "an unknown dtype": option("dtype", "half", "*expected one of: bfloat16, float16, float32*"),
    "an unknown device": option("device", "gpu", "*expected one of: cpu, cuda, mps, xpu*"),
    "a report of another kind": option("report", "report.pdf", "*ends in .html*"),
    "no effort": option("effort", 0, "*--diffusion-effort is '0': expected a number from 1 to 1000*"),
    "an empty batch": option("batch-size", 0, "*--diffusion-batch-size is '0'*"),
    "a scheduler with a typo": option("scheduler", "DDIMSchedular", "*Did you mean 'DDIMScheduler'*"),
    "a scheduler of no module": option("scheduler", "no_such:Euler", "*no module named*"),
    "a scheduler that is no class": Mistake(("--diffusion-scheduler=json:loads",), "*json:loads() cannot be made*", 2),
    "a configuration without a value": option("scheduler-config", "beta_start", "*expected key=value*"),
    "a profile with a typo": option("scheduler-profile", "thorougher", "*Did you mean 'thorough'*"),
    "an extractor with a typo": option("features", "inceptoin", "*Did you mean 'inception'*"),
    "an extractor without a path": option("features", "clip:", "*expected clip:PATH_OR_ID*"),
    "a CLIP that is not there": option("clip-model", "/no/such/clip", "*the folder /no/such/clip does not exist*"),
    "layers without a name": option("attention-layers", ",", "*expected names or prefixes of layers*"),
    "a reference that is not there": option("reference", "./none", "*does not exist; expected 'demo', an image folder*"),
    "statistics that are not there": option("reference", "stats.npz", "*the file stats.npz does not exist*"),
    "prompts that are not there": option("prompts", "prompts.txt", "*the file prompts.txt does not exist*"),
    "thresholds that are not there": option("thresholds", "own.toml", "*own.toml does not exist*"),
    "thresholds with a typo": option("thresholds", "sd16", "*Did you mean 'sd15'*"),
    "an unknown ini key": Mistake((), "*diffusion_modle*Did you mean*", 4, {"pytest.ini": "[pytest]\ndiffusion_modle = demo\n"}),
    "words in an ini file": Mistake(
        ("--diffusion-model=demo",),
        "*ini diffusion_steps is 'ten': expected a number*",
        4,
        {"pytest.ini": "[pytest]\ndiffusion_steps = ten\n"},
    ),
    "an option without a model": Mistake(("--diffusion-steps=5",), "*--diffusion-steps*", 4, {"test_a.py": "def test_a(): pass\n"}),
    # Limits.
    "no TOML": limits("[fid", "*own.toml is not valid TOML*"),
    "a table with a typo": limits('[fdi]\nat_most = 3\nsource = "x"\n', "*Did you mean 'fid'*"),
    "a key with a typo": limits('[fid]\nat_mots = 3\nsource = "x"\n', "*Did you mean 'at_most'*"),
    "a limit in words": limits('[fid]\nat_most = "3"\nsource = "x"\n', "*at_most is '3'; expected float*"),
    "limits that nothing meets": limits('[fid]\nat_least = 4\nat_most = 3\nsource = "x"\n', "*no figure can meet both*"),
    "a limit that is no number": limits('[fid]\nat_most = nan\nsource = "x"\n', "*at_most is nan; expected a finite number*"),
    "a limit without a source": limits("[fid]\nat_most = 3\n", "*has no source: say where the limit comes from*"),
    "a negative count": limits("[fid]\nmin_samples = -1\n", "*min_samples is -1*"),
    "a limit for no extractor": limits('[fid]\nextractor = "inceptoin"\n', "*Did you mean 'inception*"),
    "a gate with a typo": limits('[gate]\ninconclusiv = "warn"\n', "*Did you mean 'inconclusive'*"),
    "a gate with another value": limits('[gate]\ninconclusive = "ignore"\n', "*expected 'fail' or 'warn'*"),
    "a promise with a typo": limits('[gate]\nrequire = ["fdi"]\n', "*Did you mean 'fid'*"),
    "limits that choose the model": limits('[settings]\nmodel = "demo"\n', "*may not set model*"),
    "limits that choose the cache": limits('[settings]\ncache_dir = "/tmp"\n', "*may not set cache_dir*"),
    "limits that name code": limits('[settings]\nfeatures = "os:getcwd"\n', "*may not name code*"),
    "limits that are no text": Mistake(
        ("--diffusion-model=demo", "--diffusion-thresholds=own.toml"),
        "*own.toml is not valid TOML*",
        4,
        {"own.toml": lambda path: path.write_bytes(b"\xff\xfe\x00")},
    ),
    # References.
    "an empty folder": reference("real", {"real": lambda path: path.mkdir()}, "*real holds no images*"),
    "a folder of other files": reference("real", {"real/notes.md": "none"}, "*real holds no images*"),
    "a damaged image": reference("real", {"real/a.png": "no image"}, "*a.png cannot be read as an image*"),
    "one image": reference("real", {"real/a.png": image}, "*holds 1 images; at least 5 are needed*"),
    "three images": reference("real", {f"real/{name}.png": image for name in "abc"}, "*holds 3 images; at least 5*"),
    "an image that fills the memory": reference("real", {"real/a.png": bomb}, "*a.png cannot be read as an image*10000000000 pixels*"),
    "a pipe": reference("real", {"real/a.png": lambda path: os.mkfifo(path)}, "*it is no regular file*"),
    "rows without a header": reference("pairs.csv", {"pairs.csv": "a.png,a red circle\n"}, "*pairs.csv*header*"),
    "rows with semicolons": reference("pairs.csv", {"pairs.csv": "image;prompt\na.png;red\n"}, "*pairs.csv*comma*"),
    "no rows": reference("pairs.jsonl", {"pairs.jsonl": ""}, "*pairs.jsonl*"),
    "broken rows": reference("pairs.jsonl", {"pairs.jsonl": '{"image": '}, "*pairs.jsonl, line 1*"),
    "rows that are lists": reference("pairs.jsonl", {"pairs.jsonl": "[1, 2]\n"}, "*pairs.jsonl, line 1*"),
    "a row without an image": reference("pairs.jsonl", {"pairs.jsonl": rows({"prompt": "a"})}, "*line 1 has no 'image'*"),
    "a row whose image is missing": reference("pairs.jsonl", {"pairs.jsonl": rows({"image": "none.png"})}, "*none.png*does not exist*"),
    "a row whose image is a folder": reference(
        "pairs.jsonl", {"pairs.jsonl": rows({"image": "sub"}), "sub": lambda path: path.mkdir()}, "*sub cannot be read as an image*"
    ),
    "a mask of another shape": reference(
        "pairs.jsonl",
        {
            "pairs.jsonl": rows({"image": "a.png", "mask": "m.png", "words": "red", "prompt": "red"}),
            "a.png": image,
            "m.png": lambda path: Image.new("L", (8, 16)).save(path),
        },
        "*the mask of a.png is 8x16, its image 8x8*",
    ),
    "pickled arrays": reference("r.npz", {"r.npz": arrays(arr_0=np.array([{}], dtype=object))}, "*pickled*"),
    "no archive": reference("r.npz", {"r.npz": "no archive"}, "*r.npz cannot be read as an .npz of plain arrays*"),
    "arrays of other names": reference("r.npz", {"r.npz": arrays(values=np.zeros(3))}, "*expected 'mu' and 'sigma'*"),
    "moments of two sizes": reference("r.npz", {"r.npz": arrays(mu=np.zeros(192), sigma=np.eye(3))}, "*expected (D,) and (D, D)*"),
    "moments of other features": reference(
        "r.npz", {"r.npz": arrays(mu=np.zeros(5), sigma=np.eye(5))}, "*5 features; --diffusion-features=pixels has 192*"
    ),
    "moments that are no numbers": reference("r.npz", {"r.npz": arrays(mu=np.full(192, np.nan), sigma=EYE)}, "*r.npz: mu has *"),
    "a matrix that is no covariance": reference(
        "r.npz", {"r.npz": arrays(mu=np.zeros(192), sigma=NOT_DEFINITE)}, NO_COVARIANCE + "has a negative eigenvalue*"
    ),
    "a matrix that is not symmetric": reference(
        "r.npz", {"r.npz": arrays(mu=np.zeros(192), sigma=np.triu(np.ones((192, 192))))}, NO_COVARIANCE + "is not symmetric*"
    ),
    "a reference function without images": reference(
        "own_reference:make", {"own_reference.py": "def make():\n    return 3\n"}, "*own_reference:make*"
    ),
    "a reference function that fails": reference(
        "own_reference:make", {"own_reference.py": "def make():\n    raise KeyError('lost')\n"}, "*own_reference:make*KeyError*lost*"
    ),
    # Prompts.
    "no prompts": prompts("", "*--diffusion-prompts: p.txt is empty*"),
    "blank prompts": prompts("\n \n", "*--diffusion-prompts: p.txt is empty*"),
    "prompts that are no text": prompts(lambda path: path.write_bytes(b"\xff\xfe\x00\xff"), "*p.txt*UTF-8*"),
    # Models.
    "a folder without an index": Mistake(("--diffusion-model=./folder",), "*folder*model_index.json*", 4, {"folder/config.json": "{}"}),
    "an index that is no JSON": Mistake(("--diffusion-model=./folder",), "*model_index.json*", 4, {"folder/model_index.json": "{"}),
    "an index with code": Mistake(
        ("--diffusion-model=./folder",),
        "*--diffusion-trust-remote-code*",
        4,
        {"folder/model_index.json": '{"_class_name": ["own", "Pipeline"]}', "folder/own.py": ""},
    ),
    "a model of nothing": model("def make():\n    return None", "*own_model:make returned NoneType*"),
    "a factory with arguments": model("def make(name):\n    return name", "*own_model:make*name*"),
    "a factory that fails": model("def make():\n    raise OSError('no disk')", "*own_model:make*no disk*"),
    "a factory that is no function": model("make = 3", "*own_model:make*"),
    "a scheduler in place of a model": model(
        "def make():\n    return diffusers.DDIMScheduler()", "*own_model:make returned DDIMScheduler*"
    ),
    "a damaged checkpoint": Mistake(
        ("--diffusion-model=w.safetensors",),
        "*w.safetensors*",
        1,
        {"w.safetensors": lambda path: path.write_bytes(b"\x10" * 64)},
    ),
    "a function with another name": model("def maker():\n    return 3", "*own_model has no 'make'. Did you mean 'maker'?*", 4),
    "a checkpoint of a denoiser alone": Mistake(
        ("--diffusion-model=unet.safetensors",),
        "*unet.safetensors holds a denoiser without a VAE and a text encoder*",
        1,
        {"unet.safetensors": denoiser_alone},
    ),
    # Features.
    "features of one image": features("def run(images):\n    return torch.zeros(1, 4)", "*returned shape (1, 4) for 2 images*"),
    "features without rows": features("def run(images):\n    return torch.zeros(4)", "*returned shape (4,) for 2 images*"),
    "features that are no numbers": features("def run(images):\n    return torch.full((len(images), 4), torch.nan)", "*finite*"),
    "an extractor that fails": features("def run(images):\n    raise ValueError('only 299x299')", "*ValueError: only 299x299*"),
    "a CLIP without weights": Mistake(
        ("--diffusion-model=demo", "--diffusion-clip-model=./clip", "--diffusion-num-samples=8", "--diffusion-lenses=metrics"),
        "*--diffusion-clip-model: ./clip cannot be loaded*",
        BROKEN_SETUP,
        {"clip/config.json": "{}"},
    ),
    "an extra that is not installed": reference(
        "digits", {"conftest.py": "import sys\nsys.modules['torch_fidelity'] = None\n"}, "*needs torch-fidelity*pip install*", 1
    ),
    # What does not fit.
    "a thousand million samples": Mistake(
        ("--diffusion-model=pixels:make", "--diffusion-num-samples=1000000000000", "--diffusion-lenses=metrics"),
        "*1000000000000 samples of 8x8 need 192 TB in the cache folder*",
        BROKEN_SETUP,
        PIXELS,
    ),
    "an image of four thousand million pixels": Mistake(
        (*OF_PIXELS, "--diffusion-height=1048576", "--diffusion-width=65536", "--diffusion-lenses=metrics"),
        "*One image of 65536x1048576 needs 1.65 TB of memory*",
        BROKEN_SETUP,
        PIXELS,
    ),
    "more steps than it was trained on": Mistake(
        (OF_PIXELS[0], "--diffusion-steps=5000", "--diffusion-features=pixels", "--diffusion-lenses=metrics"),
        "*--diffusion-steps is 5000: DDPMScheduler, trained on 1000 steps, refuses it*",
        BROKEN_SETUP,
        PIXELS,
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_before_an_image_is_drawn(pytester, name):
    mistake = MISTAKES[name]
    lay_out(pytester.path, {name: text for name, text in mistake.files.items() if isinstance(text, str)})
    for file, make in mistake.files.items():
        if callable(make):
            path = pytester.path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
    cache = () if "cache" in name else ("--diffusion-cache-dir=cache",)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *mistake.arguments, *(cache if mistake.arguments else ()))
    said = result.outlines + result.errlines
    pattern = mistake.sentence.strip("*")
    found = any(all(part in " ".join(said[i : i + 4]) for part in pattern.split("*")) for i in range(len(said)))
    assert found, "\n".join(said[-40:])
    assert result.ret == mistake.code, "\n".join(said[-40:])
    assert not list(pytester.path.glob("cache/**/images.npy")), "an image was drawn"


def test_there_are_at_least_eighty():
    assert len(MISTAKES) >= 80
