"""`pytest-diffusion baseline save|show`: keep the scores of a model in one file, to compare candidates with later."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pytest_diffusion.config.options import OPTIONS
from pytest_diffusion.config.remote import is_url
from pytest_diffusion.config.remote_files import require_place
from pytest_diffusion.verdicts.errors import SettingsError

_NOT_HERE = (
    *("model", "baseline", "lora", "lenses", "report", "scheduler_profile", "effort", "attention_layers"),
    *("selftest", "selftest_require", "progress", "budget"),
)


def add_parser(commands: Any) -> None:
    """Add `baseline save` and `baseline show` to the commands; `save` takes the options of pytest that decide samples and scores."""
    parser = commands.add_parser("baseline", help="the scores of a model in production, kept in one small file")
    actions = parser.add_subparsers(dest="action", required=True)
    save = actions.add_parser("save", help="draw the samples of a model, score them, and keep the scores")
    save.add_argument("model", metavar="MODEL", help="whatever --diffusion-model takes")
    save.add_argument("--to", required=True, metavar="FILE.diffusion", help="where the scores are kept: a file, or a URL of fsspec")
    for option in OPTIONS:
        if option.name in _NOT_HERE:
            continue
        text = option.help.replace("%", "%%")
        if option.is_switch:
            save.add_argument(*option.flags, dest=option.ini, action="store_const", const="true", help=text)
        else:
            save.add_argument(
                *option.flags, dest=option.ini, metavar=option.metavar, action="append" if option.many else "store", help=text
            )
    save.set_defaults(run=_save)
    show = actions.add_parser("show", help="say what a saved baseline holds")
    show.add_argument("file", metavar="FILE.diffusion")
    show.set_defaults(run=_show)


def _save(options: argparse.Namespace) -> int:
    from pytest_diffusion.config.settings import resolve
    from pytest_diffusion.gate.save import save_model

    if Path(options.to).suffix != ".diffusion":
        raise SettingsError(f"--to is {options.to!r}; expected a name that ends in .diffusion, by which --diffusion-baseline knows it.")
    if is_url(options.to):
        require_place(options.to, "--to")
    given = {option.name: getattr(options, option.ini, None) for option in OPTIONS}
    # Named as its own baseline, so that options of the comparison are taken.
    settings, _ = resolve(options={**given, "model": options.model, "baseline": options.model}, ini={})
    saved = save_model(settings, options.to, say=lambda text: print(f"pytest-diffusion: {text}", file=sys.stderr))  # noqa: T201
    _describe(saved)
    return 0


def _show(options: argparse.Namespace) -> int:
    from pytest_diffusion.gate.saved import load_baseline

    if not is_url(options.file) and not Path(options.file).is_file():
        raise SettingsError(f"the file {options.file} does not exist.")
    _describe(load_baseline(options.file))
    return 0


def _describe(saved: Any) -> None:
    about = saved.about
    losses = [f"{name} on {len(one['images'])} images" for name, one in about["losses"].items()]
    lines = [
        f"{saved.path}: {about['model']} ({about['pipeline']}, weights {about['weights']}), saved {about['created']}",
        f"  {len(about['digests'])} samples of {about['size'][1]}x{about['size'][0]}, steps {about['steps']}, "
        f"guidance {about['guidance_scale']}, seed {about['seed']}",
        f"  scores: {', '.join(about['scorers'])}",
        f"  features: {about['extractor'] or 'none'}",
        f"  losses: {', '.join(losses) or 'none'}",
        f"  floor: {', '.join(f'{name} {value:.2g}' for name, value in about['floors'].items())}",
        f"  device {about['device']}, {about['versions']}",
    ]
    for line in lines:
        print(line)  # noqa: T201 - a command's output
