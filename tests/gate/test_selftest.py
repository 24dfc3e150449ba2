"""The self-test on a gate whose limits are known, and on the demo."""

import math
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.data.references import load_reference
from pytest_diffusion.gate import selftest as module
from pytest_diffusion.gate.damage import DAMAGES, Damage, Target
from pytest_diffusion.gate.kinds import Required, all_damages, required_damages
from pytest_diffusion.gate.selftest import FULL, QUICK, Budget, SelfTest, run_selftest
from pytest_diffusion.gate.selftest_check import known_damage, selftest_checks
from pytest_diffusion.gate.side import LiveSide
from pytest_diffusion.gate.stages import Material, scorers_of
from pytest_diffusion.gate.strength import Limit
from pytest_diffusion.gate.trial import PairedGate, Trial
from pytest_diffusion.models.fingerprint import fingerprint
from pytest_diffusion.report.selftest import selftest_text
from pytest_diffusion.verdicts.errors import NotApplicable, SettingsError, SetupError
from tests.nightly import nightly

pytestmark = pytest.mark.filterwarnings("ignore")


def quiet(text):
    pass


@contextmanager
def nothing(target, strength, seed):
    yield target.settings


NOISE = Damage("noise", "noise of {}", nothing, (0.1, 0.4), 0.2, is_continuous=True, sees="a finer gate")
BITS = Damage("bits", "{} bits", nothing, (5, 4, 3), 4, is_long=True)
GONE = Damage("gone", "a part is missing", nothing)
COPY = Damage("copy", "a sound copy", nothing, sound="copy")
TUNED = Damage("tuned", "a sound fine-tune", nothing, sound="fine-tune")


@pytest.fixture
def kinds(monkeypatch):
    monkeypatch.setattr(module, "all_damages", lambda: [NOISE, BITS, GONE, COPY, TUNED])


class Stub:
    """A gate that catches noise above 0.15 and at most 4 bits."""

    is_copy = False
    margins = load_thresholds(["finetune"]).margins

    def __init__(self, seed=0, pipeline=None):
        self.seed, self.asked = seed, []
        self.side = SimpleNamespace(
            pipeline=pipeline or SimpleNamespace(scheduler=DDIMScheduler(), components={}), name="stub", settings=Settings()
        )
        self.saved = SimpleNamespace(floors={"clip_score": 0.01})

    def target(self):
        return Target(self.side.pipeline, Settings())

    def judge(self, damage, strength, seed):
        self.asked.append((damage.name, strength, seed))
        if damage.name == "gone":
            raise NotApplicable("it has no such part")
        caught = {"noise": strength > 0.15, "bits": strength <= 4}.get(damage.name, False)
        return Trial(damage.name, strength, seed, bool(damage.sound), caught_by=["denoising_loss"] if caught else [], seconds=1.0)


def run(level, **rest):
    gates = {}
    found = run_selftest(lambda seed: gates.setdefault(seed, Stub(seed)), level, say=quiet, **rest)
    return found, [one for gate in gates.values() for one in gate.asked]


def test_a_quick_one_tries_each_short_kind_once(kinds):
    found, asked = run(QUICK, absolute=lambda settings: pytest.fail("not in a quick one"))
    assert asked == [("noise", 0.2, 0), ("gone", 0.0, 0), ("copy", 0.0, 0), ("tuned", 0.0, 0)]
    assert found.not_applicable == {"gone": "it has no such part"}
    assert found.left_out == ["bits (for a full self-test)"]
    assert [one.is_caught for one in found.trials] == [True, False, False]


def test_what_is_required_is_tried_first_and_at_its_strength(kinds):
    required = [Required(BITS, 3), Required(NOISE, 0.1), Required(NOISE, 0.2), Required(GONE, 0.0)]
    found, asked = run(QUICK, required=required)
    assert asked[:2] == [("bits", 3, 0), ("noise", 0.1, 0)]
    assert asked.count(("noise", 0.2, 0)) == 1
    assert found.missing(required) == {
        "noise:0.1": "missed with 1 of 1 seeds",
        "gone": "it does not fit this model: it has no such part",
    }


def test_a_full_one_repeats_seeds_looks_for_limits_and_asks_the_absolute_checks(kinds):
    seen = []

    def absolute(settings):
        seen.append(settings)
        return [{"check": "fid", "outcome": "fail" if len(seen) == 4 else "pass", "value": 1.0}]

    found, _ = run(FULL, absolute=absolute)
    assert [one.seed for one in found.of("noise", 0.2)] == [0, 1, 2, 3, 4]
    assert found.limits["noise"].missed < 0.15 <= found.limits["noise"].caught < 0.165
    assert found.limits["bits"] == Limit(4, 5)
    assert len(seen) == 1 + 4  # the model itself, the two sound kinds, and the two others
    assert found.of("noise", 0.2)[0].absolute_by == ["fid"]
    assert found.of("copy", 0.0)[0].absolute_by == []
    assert found.left_out == []
    row = next(one for one in found.to_json()["rows"] if one["damage"] == "noise")
    assert (row["caught"], row["seeds"], row["word"], row["absolute"]) == (5, 5, "worse", ["fid"])
    assert row["interval"] == pytest.approx([0.5655, 1.0], abs=1e-3)
    assert row["title"] == "noise of 20 %"


def test_an_absolute_check_that_fails_without_the_damage_has_not_seen_it(kinds):
    def absolute(settings):
        return [{"check": "fid", "outcome": "fail", "value": 90.0}, {"check": "kid", "outcome": "broken" if absolute.calls else "pass"}]

    absolute.calls = 0

    def counting(settings):
        found = absolute(settings)
        absolute.calls += 1
        return found

    found, _ = run(FULL, absolute=counting)
    assert [one.absolute_by for one in found.trials if one.seed == 0] == [["kid"]] * 4
    # What it sees with the first seed is not asked with the others.
    assert found.missing([Required(NOISE, 0.2)]) == {}


def test_a_strength_that_does_not_fit_is_no_kind_that_does_not_fit(kinds, monkeypatch):
    judge = Stub.judge

    def only_three(self, damage, strength, seed):
        if damage.name == "bits" and strength == 4:
            raise NotApplicable("it has no 4 bits")
        return judge(self, damage, strength, seed)

    monkeypatch.setattr(Stub, "judge", only_three)
    found, _ = run(FULL, required=[Required(BITS, 3)])
    assert found.missing([Required(BITS, 3)]) == {}
    assert "bits" in found.not_applicable or "4 bits: it has no 4 bits" in found.left_out


def test_what_was_not_reached_may_still_not_fit_when_limits_are_looked_for(kinds, monkeypatch):
    odd = Damage("odd", "of {}", nothing, (0.1, 0.2), 0.1, is_continuous=True)
    monkeypatch.setattr(module, "all_damages", lambda: [odd])
    judge = Stub.judge

    def refuses(self, damage, strength, seed):
        if strength != 0.1:
            raise NotApplicable("no such part")
        return judge(self, damage, strength, seed)

    monkeypatch.setattr(Stub, "judge", refuses)
    found, _ = run(FULL)
    assert found.left_out == ["the weakest odd: no such part"]
    assert [one.strength for one in found.trials] == [0.1] * 5


def test_time_that_does_not_suffice_is_said(kinds):
    found, asked = run("1", seconds=0.0)
    assert asked == []
    assert "noise of 20 % (seed 0)" in found.left_out
    assert "the weakest noise" in found.left_out
    assert found.missing([Required(NOISE, 0.2)]) == {"noise:0.2": "the time did not suffice for it"}


def test_a_budget_does_not_begin_what_would_not_end():
    budget = Budget(10.0)
    assert budget.allows("trial")
    budget.spent("trial", 8.0)
    assert budget.allows("trial")
    budget.spent("trial", 11.0)
    assert not budget.allows("trial")
    assert budget.allows("absolute")


def test_a_model_that_is_not_as_before_is_never_trusted(kinds, pixel_pipeline):
    class Leaves(Stub):
        def judge(self, damage, strength, seed):
            with torch.no_grad():
                next(self.side.pipeline.unet.parameters()).add_(1e-3)
            return super().judge(damage, strength, seed)

    gate = Leaves(pipeline=pixel_pipeline)
    with pytest.raises(SetupError, match="the model is not as it was before"):
        run_selftest(lambda seed: gate, QUICK, say=quiet)


def of_demo(demo_copy, folder, *thresholds):
    settings = replace(resolve(options={"model": "demo"}, ini={})[0], steps=4, cache_dir=str(folder))
    margins = replace(load_thresholds(["demo", *thresholds]).margins, pairs=64, references=64)
    reference = load_reference("demo", height=32, width=32, limit=64)
    prompts = ["a red circle", "a blue square", "a green triangle", "a purple circle"]
    material = Material()
    side = LiveSide(
        "demo", demo_copy, prompts, settings, fingerprint(demo_copy), scorers_of(demo_copy, prompts, settings, material, {}), say=quiet
    )
    references = dict.fromkeys(("denoising_loss", "text_encoder_loss", "reconstruction_loss"), reference)
    return PairedGate(side, margins, 10, references, material, quiet)


@nightly("half a minute; tests/plugin/test_selftest.py runs a small one")
def test_the_demos_gate_catches_damage_and_lets_copies_pass(demo_copy, tmp_path):
    gate = of_demo(demo_copy, tmp_path, "finetune")
    before = fingerprint(demo_copy)
    known = {one.name: one for one in all_damages()}
    assert gate.judge(known["denoiser_noise"], 0.2, 0).caught_by == ["denoising_loss"]
    assert gate.judge(known["text_encoder_noise"], 0.8, 0).caught_by[0] in ("denoising_loss", "text_encoder_loss")
    assert gate.judge(known["channels_swapped"], 0.0, 0).caught_by == ["reconstruction_loss"]
    repeated = gate.judge(known["images_repeated"], 1.0, 0)
    assert repeated.is_caught
    sound = gate.judge(known["bfloat16_weights"], 0.0, 0)
    assert sound.sound
    assert sound.caught_by == []
    assert {one.name for one in sound.figures} >= {"denoising_loss", "reconstruction_loss", "brightness"}
    assert all(math.isfinite(one.change) for one in sound.figures)
    assert fingerprint(demo_copy) == before


@nightly("half a minute; tests/gate/test_damage.py tells them by one")
def test_what_changes_nothing_and_what_cannot_run_are_told_apart(demo_copy, tmp_path):
    gate = of_demo(demo_copy, tmp_path, "quantised")
    idle = Damage("idle", "nothing", nothing)
    assert gate.judge(idle, 0.0, 0).note == "changes nothing"

    @contextmanager
    def breaks(target, strength, seed):
        forward = target.pipeline.unet.forward
        target.pipeline.unet.forward = lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("no kernel"))
        try:
            yield target.settings
        finally:
            target.pipeline.unet.forward = forward

    found = gate.judge(Damage("breaks", "cannot run", breaks, in_code=True), 0.0, 0)
    assert found.caught_by == ["error"]
    assert "no kernel" in found.note

    @contextmanager
    def fills_memory(target, strength, seed):
        forward = target.pipeline.unet.forward
        target.pipeline.unet.forward = lambda *args, **kwargs: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
        try:
            yield target.settings
        finally:
            target.pipeline.unet.forward = forward

    # The machine's fault is no catch.
    with pytest.raises(Exception, match="ut of memory"):
        gate.judge(Damage("full", "fills memory", fills_memory, in_code=True), 0.0, 0)

    @contextmanager
    def cannot(target, strength, seed):
        raise AttributeError("no to_v")
        yield target.settings

    with pytest.raises(NotApplicable, match="it cannot be done: AttributeError: no to_v"):
        gate.judge(Damage("cannot", "of a part that is not there", cannot), 0.0, 0)
    assert gate.is_copy
    assert gate.judge(DAMAGES["int8_weights"], 0.0, 0).sound
    assert not DAMAGES["other_solver"].is_sound_under(is_copy=True)


def test_a_timestep_that_is_too_high_is_seen_by_the_loss(demo_copy, tmp_path):
    gate = of_demo(demo_copy, tmp_path)
    found = gate.judge(DAMAGES["timestep_shift"], 30, 0)
    assert found.note == ""
    assert "denoising_loss" in {one.name for one in found.figures}
    assert next(one.change for one in found.figures if one.name == "denoising_loss") != 0


def test_the_check_reports_what_is_missed_and_requires_what_it_is_told():
    trials = [Trial("denoiser_noise", 0.05, 0), Trial("few_bits", 4, 0, caught_by=["fid"]), Trial("bfloat16_weights", 0.0, 0, True)]
    test = SelfTest(QUICK, "demo", trials)
    found = known_damage(test, Settings())
    assert (found.value, found.own_limits) == (1.0, None)
    assert "1 of 2 kinds of damage are caught; missed: noise of 5 % in the denoiser's weights." in found.hint
    needs = known_damage(test, Settings(selftest_require=("few_bits", "denoiser_noise")))
    assert needs.value == 1.0
    assert needs.own_limits.at_most == 0
    assert needs.hint.startswith("denoiser_noise:0.05: missed with 1 of 1 seeds.")
    alarmed = replace(test, trials=[Trial("bfloat16_weights", 0.0, 0, True, caught_by=["fid"])])
    assert "Sound changes that are called worse: weights rounded to bfloat16." in known_damage(alarmed, Settings()).hint
    assert [one.damage for one in alarmed.false_alarms] == ["bfloat16_weights"]
    with pytest.raises(SettingsError, match="the damage is 'nonsense'"):
        selftest_checks(Settings(selftest_require=("nonsense",)))


def test_what_was_not_compared_did_not_pass():
    test = SelfTest(QUICK, "demo", [Trial("bfloat16_weights", 0.0, 0, True, note="changes nothing"), Trial("int8_weights", 0.0, 0, True)])
    assert test.sound == []
    assert [row["word"] for row in test.to_json()["rows"]] == ["not judged", "not judged"]
    assert "0 of 0 sound trials" in selftest_text({"selftest": test.to_json()})[0]


def test_a_damage_that_an_absolute_check_alone_catches_is_caught():
    trial = Trial("few_bits", 4, 0, absolute=[{"check": "fid", "outcome": "fail"}])
    test = SelfTest(FULL, "demo", [trial])
    assert test.missing(required_damages(["few_bits:4"])) == {}
    assert known_damage(test, Settings()).value == 0
