"""Mutation testing: change one thing in the code, and see whether the tests of its module notice.

    python -m tests.mutation            # maths/, verdicts/ and 200 mutants of checks/; goes on where it stopped
    python -m tests.mutation --minutes 30 --jobs 2
    python -m tests.mutation --report   # the score and the survivors so far, as docs/testing.md has them

Mutants are those of cosmic-ray, one of its replacements at each place, in a seeded order, so that a run that was stopped
is a random sample of the whole. Results lie in build/mutation/session.sqlite, cosmic-ray's own format. Importing torch
and diffusers takes longer than most tests: they are imported once, and each mutant runs in a fork with a copy of the tree.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import shutil
import signal
import sys
import time
import tomllib
import traceback
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.mutating import apply_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "mutation"
SEED = 20_261_124
SAMPLED = {"checks": 200}
"""How many mutants of a package are run; all of them where it is not named."""
PACKAGES = ("maths", "verdicts", "checks")
LEFT_OUT = ("verdicts/drawing.py", "checks/plots.py", "checks/assertions.py", "checks/pictures.py")
"""Drawings and declarations: what they show is looked at, not computed with."""
COPIED = ("pytest_diffusion", "tests", "templates", "thresholds", "docs", "examples", "pyproject.toml", "README.md")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    session = FOLDER / "session.sqlite"
    os.chdir(ROOT)
    with use_db(str(session), WorkDB.Mode.create) as database:
        if not database.num_work_items:
            _plan(database)
        if options.report:
            print(_report(database))  # noqa: T201
            return 0
        pending = sorted(database.pending_work_items, key=lambda item: item.job_id)
    _run(session, pending, options.minutes * 60, options.jobs)
    with use_db(str(session), WorkDB.Mode.open) as database:
        print(_report(database))  # noqa: T201
    return 0


def tests_of(module: str) -> list[str]:
    """Test files of a module, given by its path below the package."""
    own = f"tests/{Path(module).parent}/test_{Path(module).stem}.py"
    listed = tomllib.loads((ROOT / "tests" / "tested_in.toml").read_text(encoding="utf-8")).get(module, [])
    found = ([own] if (ROOT / own).is_file() else []) + listed
    if module.startswith("checks/"):
        found = ["tests/checks/test_subjects.py", *found]
    if not found:
        raise SystemExit(f"tests/tested_in.toml does not say where {module} is tested.")
    return list(dict.fromkeys(found))


def _plan(database: WorkDB) -> None:
    """One mutant for each place, drawn from cosmic-ray's replacements; job ids are the seeded order."""
    draw = random.Random(SEED)
    chosen = []
    for package in PACKAGES:
        files = sorted((ROOT / "pytest_diffusion" / package).glob("*.py"))
        files = [one for one in files if one.name != "__init__.py" and f"{package}/{one.name}" not in LEFT_OUT]
        skipped = {file.relative_to(ROOT): _places_without_effect(file.read_text(encoding="utf-8")) for file in files}
        init(list(skipped), database, {})
        places = {}
        for item in list(database.work_items):
            mutation = item.mutations[0]
            if not any(first <= mutation.start_pos and mutation.end_pos <= last for first, last in skipped[mutation.module_path]):
                places.setdefault((str(mutation.module_path), mutation.start_pos, mutation.end_pos), []).append(item)
        found = [draw.choice(sorted(items, key=lambda item: item.mutations[0].operator_name)) for _, items in sorted(places.items())]
        chosen += draw.sample(found, min(len(found), SAMPLED.get(package, len(found))))
    database.clear()
    draw.shuffle(chosen)
    database.add_work_items(type(item)(f"{place:05d}", item.mutations) for place, item in enumerate(chosen))


def _places_without_effect(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans of annotations, which are never evaluated, and of decorators, which declare."""
    tree = ast.parse(text)
    nodes = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            nodes += [one.annotation for one in arguments if one is not None and one.annotation is not None]
            nodes += [node.returns] if node.returns is not None else []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            nodes += node.decorator_list
        if isinstance(node, ast.AnnAssign):
            nodes.append(node.annotation)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            nodes.append(node)
    return [((node.lineno, node.col_offset - 1), (node.end_lineno, node.end_col_offset)) for node in nodes]


def _run(session: Path, pending: list, seconds: float, jobs: int) -> None:
    """Run mutants in forks until all are done or the time is over; one process writes the results."""
    _import_heavy()
    trees = [_copy(f"tree-{job}") for job in range(jobs)]
    baselines: dict[str, float] = {}
    end = time.monotonic() + seconds
    running: dict[int, tuple] = {}
    free = list(range(jobs))
    queue = list(pending)
    done = 0
    while (queue and time.monotonic() < end) or running:
        while free and queue and time.monotonic() < end:
            item = queue.pop(0)
            mutation = item.mutations[0]
            module = str(mutation.module_path.relative_to("pytest_diffusion"))
            tests = tests_of(module)
            if module not in baselines:
                baselines[module] = _baseline(trees[free[0]], tests)
            job = free.pop(0)
            operator = get_operator(mutation.operator_name)(**mutation.operator_args)
            target = trees[job] / mutation.module_path
            original = target.read_bytes()
            _, mutated = apply_mutation(target, operator, mutation.occurrence)
            if mutated is None:
                # The plan was made for another version of the module: its mutant says nothing of this one.
                print(f"{item.job_id}: no such place in {module} any more; make a new plan.", flush=True)  # noqa: T201
                free.append(job)
                continue
            pid = _forked(trees[job], tests)
            running[pid] = (item, job, original, target, mutated, time.monotonic() + 20 + 6 * baselines[module])
        for pid, (item, job, original, target, mutated, limit) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and time.monotonic() < limit:
                continue
            if not ended:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            survived = bool(ended) and os.waitstatus_to_exitcode(status) == 0
            target.write_bytes(original)
            outcome = TestOutcome.SURVIVED if survived else TestOutcome.KILLED
            with use_db(str(session), WorkDB.Mode.open) as database:
                database.set_result(item.job_id, WorkResult(WorkerOutcome.NORMAL, "", outcome, _difference(original.decode(), mutated)))
            del running[pid]
            free.append(job)
            done += 1
            if done % 20 == 0:
                print(f"{done} of {len(pending)}", flush=True)  # noqa: T201
        time.sleep(0.05)


def _difference(original: str, mutated: str) -> str:
    import difflib

    lines = difflib.unified_diff(original.splitlines(), mutated.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


def _import_heavy() -> None:
    """What the tests import of other packages; nothing of ours, which a fork must import with its mutant."""
    import accelerate.utils
    import diffusers
    import hypothesis
    import matplotlib.figure
    import pytest
    import scipy.stats
    import sklearn.covariance
    import torch
    import torchmetrics.functional.image
    import transformers
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

    torch.set_num_threads(1)
    del accelerate, diffusers, hypothesis, matplotlib, pytest, scipy, sklearn, torchmetrics, transformers
    del StableDiffusionPipeline, CLIPModel, CLIPTokenizer


def _copy(name: str) -> Path:
    tree = FOLDER / name
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    for entry in COPIED:
        source = ROOT / entry
        if source.is_dir():
            shutil.copytree(source, tree / entry, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / entry)
    return tree


def _baseline(tree: Path, tests: list[str]) -> float:
    """Seconds of a module's tests without a mutant. Raises SystemExit where they fail."""
    start = time.monotonic()
    _, status = os.waitpid(_forked(tree, tests), 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{' '.join(tests)} fail without a mutant (in {tree}).")
    return time.monotonic() - start


def _forked(tree: Path, tests: list[str]) -> int:
    """The process id of a fork that runs tests in a tree and exits with pytest's status."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        os.setpgid(0, 0)
        os.chdir(tree)
        sys.path[:] = [str(tree), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
        sys.dont_write_bytecode = True
        for name in [name for name in sys.modules if name.partition(".")[0] in ("pytest_diffusion", "tests")]:
            del sys.modules[name]
        os.environ["PYTHONPATH"] = str(tree)
        quiet = os.open(os.environ.get("MUTATION_LOG", os.devnull), os.O_RDWR | os.O_CREAT, 0o644)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        import pytest

        code = int(pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(tree), *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _report(database: WorkDB) -> str:
    """A Markdown table of scores, and the survivors."""
    results = dict(database.results)
    items = [(item.mutations[0], results[item.job_id]) for item in database.work_items if item.job_id in results]
    lines = ["| package | mutants run | of | killed |", "|---|---|---|---|"]
    for package in (*PACKAGES, "all"):
        of = [one for one in database.work_items if package in ("all", one.mutations[0].module_path.parts[1])]
        run = [result for mutation, result in items if package in ("all", mutation.module_path.parts[1])]
        killed = sum(result.test_outcome == TestOutcome.KILLED for result in run)
        share = f"{killed / len(run):.1%}" if run else "–"
        lines.append(f"| {package} | {len(run)} | {len(of)} | {killed} ({share}) |")
    lines += ["", "Survivors:", ""]
    for mutation, result in sorted(items, key=lambda pair: (str(pair[0].module_path), pair[0].start_pos)):
        if result.test_outcome == TestOutcome.SURVIVED:
            change = [line for line in (result.diff or "").splitlines() if line.startswith(("-", "+"))]
            shown = " → ".join(line[1:].strip() for line in change[:2])
            lines.append(f"- `{mutation.module_path}` line {mutation.start_pos[0]}: `{shown}`")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
