"""The documentation is true: pages are complete, commands are taken, Python runs, and quoted messages exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

import pytest_diffusion
from pytest_diffusion.cli import parser
from pytest_diffusion.config.options import OPTIONS
from pytest_diffusion.demo import reference_images, weights_folder
from pytest_diffusion.models.load import load_pipeline

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
NOT_RUN = {
    "from pytest_diffusion import check_scheduler\n\ncheck_scheduler(MyScheduler())": "minutes; tests/conformance makes the same calls",
    "from pytest_diffusion import ADMDiffusion": "minutes; tests/conformance/test_adapters.py makes the same calls",
}
ELSEWHERE = ("make", "pip", "uv", "python", "torchrun")
"""Commands that .ci/run runs as they are, or that need an index of packages."""


def blocks(kind, *, leave=()):
    for name, text in TEXTS.items():
        if name not in leave:
            for found in re.finditer(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
                yield name, found[1]


def commands():
    """Each command of a console block, with its page."""
    for name, block in blocks("console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield name, shlex.split(line.removeprefix("$ "), comments=True)


def name_of(case):
    return f"{case[0]} {' '.join(case[1])[:60]}"


PYTEST = [case for case in commands() if case[1][0] == "pytest"]
OURS = [case for case in commands() if case[1][0] == "pytest-diffusion"]
PYTHON = list(blocks("python", leave=("docs/findings.md",)))  # tests/conformance/test_findings.py runs those


def test_there_is_something_to_try():
    """An empty list of cases would pass without a look."""
    assert len(PYTEST) >= 12
    assert len(OURS) >= 12
    assert len(PYTHON) >= 10
    assert len(MESSAGES) >= 20


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_every_option_is_explained():
    told = TEXTS["docs/options.md"]
    for option in OPTIONS:
        short = f"`-{option.name.rpartition('_')[2]}`"
        assert f"`{option.flag}`" in told or short in told, option.flag


def test_the_page_of_public_names_is_written_anew():
    from docs.api_page import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m docs.api_page"
    helpers = {name for name in pytest_diffusion.__all__ if name.startswith("assert_")}
    assert {name for name in pytest_diffusion.__all__ if f".{name}\n" in page() or f"`{name}`" in page()} >= helpers


def test_extras_that_are_named_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = set(project["optional-dependencies"])
    files = [*PAGES, *(ROOT / "examples" / "ci").iterdir(), ROOT / "action.yml"]
    named = {
        one
        for path in files
        for found in re.findall(r"pytest-diffusion\[([\w,]+)\]", path.read_text(encoding="utf-8"))
        for one in found.split(",")
    }
    assert named
    assert named <= known
    assert all(f"| `{name}` |" in TEXTS["docs/install.md"] for name in known - {"dev"})


def test_every_page_is_in_the_sites_list():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert {name.removeprefix("docs/") for name in TEXTS if name.startswith("docs/")} <= set(listed)


@pytest.fixture
def place(pytester):
    """A folder with all that the commands name."""
    for name in ("my-finetune", "parent", "my-model", "candidate"):
        (pytester.path / name).symlink_to(weights_folder())
    (pytester.path / "val_images").mkdir()
    for index, image in enumerate(reference_images(20)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(pytester.path / "val_images" / f"{index}.png")
    pytester.makefile(".txt", prompts="a red circle\na blue square\n")
    (pytester.path / "pairs.jsonl").write_text('{"image": "val_images/0.png", "prompt": "a red circle"}\n')
    (pytester.path / "parent.diffusion").write_bytes(b"")
    pytester.makepyfile(my_package="from diffusers import DDIMScheduler as MyScheduler\nMyPort = MyScheduler\n")
    pytester.syspathinsert()
    return pytester


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PYTEST, ids=name_of)
def test_pytest_takes_the_command(case, place):
    arguments = [one.replace("my_package.schedulers:", "my_package:") for one in case[1][1:] if one != "..."]
    if any("build/finetune" in one for one in arguments):
        pytest.skip(".ci/run makes the fine-tune and runs this command's folder")
    if "--diffusion-plan" in arguments:
        pytest.skip(".ci/run runs it")
    result = place.runpytest(*arguments, "--collect-only", "-q", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.OK, result.stderr.str() + result.stdout.str()[-2000:]
    result.stdout.fnmatch_lines(["*::*"])


@pytest.mark.parametrize("case", OURS, ids=name_of)
def test_our_own_command_takes_its_arguments(case):
    options = parser().parse_args(case[1][1:])
    assert callable(options.run)


def test_other_commands_are_run_elsewhere():
    others = {case[1][0] for case in commands()} - {"pytest", "pytest-diffusion"}
    assert others <= set(ELSEWHERE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PYTHON, ids=lambda case: f"{case[0]} {case[1].splitlines()[-1][:40]}")
def test_python_runs(case, pytester, shared_cache, demo_settings):
    _, code = case
    for start, reason in NOT_RUN.items():
        if code.startswith(start):
            pytest.skip(reason)
    if "diffusion_scheduler" in code:
        path = pytester.makepyfile(test_block=code)
        common = ("--diffusion-model=demo", "--diffusion-num-samples=256", "--diffusion-steps=4", f"--diffusion-cache-dir={shared_cache}")
        result = pytester.runpytest(*common, "--diffusion-lenses=schedule", str(path), "-k", "test_block", "-p", "no:cacheprovider")
        outcomes = result.parseoutcomes()
        assert outcomes["passed"] >= 1
        # The FID of 256 samples in four steps is larger than the limit.
        assert outcomes.get("failed", 0) <= 1
        assert not outcomes.get("errors")
        return
    names = stand_ins(demo_settings) | {"__name__": "block"}
    if case[0] == "docs/report.md":
        pytester.runpytest("--diffusion-model=demo", "--diffusion-lenses=schedule", "-p", "no:cacheprovider")
    if case[0] == "docs/oracle.md":
        names["images"] = names["grey"]
    exec(compile(code, case[0], "exec"), names)
    for name, found in list(names.items()):
        if name.startswith("test_every"):
            found()


def stand_ins(settings):
    """What the reader has, in the blocks' words."""
    from diffusers import DDIMScheduler

    class Mine(DDIMScheduler):
        pass

    pipeline = load_pipeline(settings)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    pictures, prompts = reference_images(64), [f"a red circle number {index}" for index in range(64)]
    scores = torch.randn(64, generator=generator)
    grey = torch.rand(64, 1, 8, 8, generator=generator) * 2 - 1
    return {
        "MyScheduler": Mine,
        "MyPort": Mine,
        "baseline_scores": scores,
        "candidate_scores": scores + 0.01 * torch.randn(64, generator=generator),
        "prompts": prompts,
        "captions": prompts,
        "images": pictures,
        "quantised_images": pictures,
        "my_scorer": lambda images, texts: images.float().mean((1, 2, 3)) / 255,
        "candidate_pipeline": pipeline,
        "baseline_pipeline": pipeline,
        "pipeline": pipeline,
        "record_attention": pytest_diffusion.record_attention,
        "generator": generator,
        "sample": grey[:4],
        "timestep": 500,
        "grey": grey,
    }


MESSAGES = re.findall(r"^\| (`[^|]+) \|", TEXTS["docs/troubleshooting.md"], re.MULTILINE)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_the_table_exist(message):
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "pytest_diffusion").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts that go on in the next line
    for quoted in re.findall(r"`([^`]+)`", message):
        parts = [part.strip(" :,.") for part in re.split(r"\.\.\.|'X'|\bN\b", quoted)]
        for part in filter(lambda one: len(one) > 3, parts):
            assert part in source, part
