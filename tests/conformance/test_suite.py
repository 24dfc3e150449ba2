"""The suite's own behaviour: names, expected failures, messages, shrinking, and what it leaves alone."""

import copy
import re
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, IPNDMScheduler, PNDMScheduler

from pytest_diffusion import ConformanceFailure, Verdict, check_scheduler, scheduler_checks
from pytest_diffusion.conformance import loops, shrink
from pytest_diffusion.conformance.calls import Crash, calls_begun
from pytest_diffusion.conformance.laws import LAWS, Broken, Claims, Several
from pytest_diffusion.conformance.randomness import Draws
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.recording import recording_to
from tests.broken_schedulers.grids import LastSigmaTwice
from tests.broken_schedulers.steps import PreviousByDivision
from tests.conformance.from_scratch import DDIM, Euler


def test_one_call_gives_a_verdict_for_each_check_in_order():
    seen = []
    with recording_to(seen.append):
        verdicts = check_scheduler(DDIMScheduler())
    assert [verdict.check for verdict in verdicts] == scheduler_checks()
    assert seen == verdicts
    assert {verdict.lens for verdict in verdicts} == {"schedule"}
    assert all(Verdict.from_json(verdict.to_json()).message == verdict.message for verdict in verdicts)
    skipped = [verdict for verdict in verdicts if verdict.outcome == "skipped"]
    assert all("DDIMScheduler" in verdict.message or verdict.check == "devices" for verdict in skipped)


def test_laws_rest_on_earlier_ones_and_say_why():
    names = scheduler_checks()
    for one in LAWS:
        assert all(names.index(base) < names.index(one.name) for base in one.rests_on), one.name
        assert one.source, one.name
        assert len(one.reason) > 40, one.name


def test_it_needs_few_calls():
    begun = calls_begun()
    check_scheduler(DDIMScheduler())
    # 8,009 were measured, about a millisecond each. Seconds would judge the machine.
    assert 1000 < calls_begun() - begun < 10_000


def test_all_failures_stand_in_one_message():
    with pytest.raises(ConformanceFailure, match=r"^LastSigmaTwice fails 1 of the scheduler checks: sigmas_fall\.") as failure:
        check_scheduler(LastSigmaTwice)
    (verdict,) = failure.value.verdicts
    assert "Seen: sigma 0.03 is followed by 0.03 (number 1 and 2 of 3)." in verdict.message
    assert "Smallest configuration: LastSigmaTwice(), num_inference_steps=2" in verdict.message
    again = check_scheduler(LastSigmaTwice, raise_on_failure=False)
    assert [one.check for one in again if one.outcome == "fail"] == ["sigmas_fall"]


def broken_by_an_entry_of_five():
    return PreviousByDivision(timestep_spacing="linspace", clip_sample=False, beta_end=0.015, thresholding=False, num_train_timesteps=500)


def test_the_smallest_configuration_is_found():
    (verdict,) = check_scheduler(broken_by_an_entry_of_five(), only=["point_mass_preserved"], raise_on_failure=False)
    # Of five entries one is to blame, and two steps show it.
    assert "Smallest configuration: PreviousByDivision(timestep_spacing='linspace'), num_inference_steps=2 (" in verdict.message
    assert "(fails at 2, 3, 5, 13, 30 of the numbers tried, 2, 3, 5, 13, 30)" in verdict.message


def test_the_snippet_shows_it_again():
    (verdict,) = check_scheduler(EulerDiscreteScheduler(use_karras_sigmas=True), only=["velocity"], raise_on_failure=False)
    snippet = "\n".join(line.strip() for line in verdict.message.partition("Reproduce it:\n")[2].splitlines())
    assert "from diffusers import EulerDiscreteScheduler" in snippet
    with pytest.raises(ConformanceFailure, match="velocity"):
        exec(compile(snippet, "snippet", "exec"), {})


def test_expected_failures():
    reason = {"sigmas_fall": "The vendor is told."}
    verdicts = {verdict.check: verdict for verdict in check_scheduler(LastSigmaTwice, expected_failures=reason)}
    assert verdicts["sigmas_fall"].outcome == "fail"
    assert not verdicts["sigmas_fall"].gates
    assert verdicts["sigmas_fall"].message.endswith("This failure is expected: The vendor is told.")
    assert {verdict.outcome for verdict in check_scheduler(Euler, expected_failures=reason)} == {"pass", "skipped"}
    with pytest.raises(
        ConformanceFailure,
        match=r"sigmas_fall passes, though its failure is expected: The vendor is told\. Remove it from expected_failures",
    ):
        check_scheduler(Euler, expected_failures=reason, strict=True)


def test_wrong_names_and_what_is_no_scheduler():
    with pytest.raises(ValueError, match=r"only is 'sigmas_falls'; expected one of: .*Did you mean 'sigmas_fall'\?"):
        check_scheduler(Euler, only=["sigmas_falls"])
    with pytest.raises(ValueError, match=r"expected_failures is 'velocities'.*Did you mean 'velocity'"):
        check_scheduler(Euler, expected_failures={"velocities": "x"})
    with pytest.raises(ValueError, match="only is the text 'runs'; expected a collection"):
        check_scheduler(Euler, only="runs")
    with pytest.raises(ValueError, match="profile is 'quick'; expected one of: standard, thorough"):
        check_scheduler(Euler, profile="quick")
    with pytest.raises(TypeError, match="int is not a scheduler: it has no step, and cannot be called"):
        check_scheduler(3)
    with pytest.raises(TypeError, match="dict is not a scheduler: it has no set_timesteps and no step"):
        check_scheduler(dict)


def test_the_scheduler_is_copied_and_chance_is_left_alone():
    scheduler = EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012)
    before, state = copy.deepcopy(vars(scheduler)), torch.get_rng_state()
    check_scheduler(scheduler, only=["runs", "noise_is_normal", "generator_list", "weak_convergence"])
    assert {key: str(value) for key, value in vars(scheduler).items()} == {key: str(value) for key, value in before.items()}
    check_scheduler(DDIMScheduler(), only=["runs", "point_mass_preserved"])
    assert torch.equal(state, torch.get_rng_state())


def test_what_cannot_be_copied_must_come_from_a_factory():
    class Stubborn(DDIM):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    with pytest.raises(TypeError, match=r"Stubborn cannot be copied \(no copies\); give the class or a function"):
        check_scheduler(Stubborn())


def test_schedulers_of_unknown_kind_are_skipped_not_passed():
    verdicts = {verdict.check: verdict for verdict in check_scheduler(IPNDMScheduler())}
    assert verdicts["runs"].outcome == "pass"
    assert verdicts["second_run"].outcome == "pass"
    for check in ("point_mass_preserved", "convergence_order", "forward_process", "timesteps_well_formed"):
        assert verdicts[check].outcome == "skipped"
        assert "it is unknown how it represents its samples" in verdicts[check].message


def test_a_thorough_run_finds_what_only_another_configuration_shows():
    assert check_scheduler(PNDMScheduler(), only=["point_mass_preserved"])[0].outcome == "pass"
    (verdict,) = check_scheduler(DDIMScheduler(), only=["point_mass_preserved"], raise_on_failure=False, profile="thorough")
    assert verdict.outcome == "fail"
    # Hypothesis shrinks to the one entry that matters (#11347, #12633).
    assert re.search(
        r"Smallest configuration: DDIMScheduler\(timestep_spacing='(linspace|trailing)'\), num_inference_steps=2 ", verdict.message
    )
    assert check_scheduler(Euler, only=["point_mass_preserved"], profile="thorough")[0].outcome == "pass"


def test_a_search_ends_after_a_number_of_calls_on_each_machine(monkeypatch):
    def searched(seconds):
        clock = count(0, seconds)  # between two of its looks at the time
        monkeypatch.setattr(shrink, "time", SimpleNamespace(process_time=lambda: next(clock)))
        begun = calls_begun()
        (verdict,) = check_scheduler(broken_by_an_entry_of_five(), only=["point_mass_preserved"], raise_on_failure=False)
        return calls_begun() - begun, verdict.message

    plain, message = searched(0)
    assert "Smallest configuration: PreviousByDivision(timestep_spacing='linspace'), num_inference_steps=2 (" in message
    assert searched(0.1) == (plain, message)
    assert searched(40)[0] < plain - 200
    monkeypatch.setattr(shrink, "_CALLS", 100)
    calls, message = searched(0)
    assert calls < plain - 200
    assert "Reproduce it:" in message


def test_other_configurations_end_after_a_number_of_calls(monkeypatch):
    def calls(limit):
        monkeypatch.setattr(shrink, "_THOROUGH_CALLS", limit)
        begun = calls_begun()
        check_scheduler(EulerDiscreteScheduler(), only=["point_mass_preserved"], profile="thorough")
        return calls_begun() - begun

    # The check itself, and then the configurations: none, or those that begin before the limit.
    assert 300 <= calls(300) - calls(0) < 1000


def test_draws_are_seen_and_replaced():
    with Draws() as seen:
        torch.randn(3, generator=torch.Generator().manual_seed(0))
        torch.empty(2).normal_()
        torch.empty(2).normal_(1.0, 2.0)
        torch.rand(2)
        torch.randint(5, (2,))
    assert [(draw.operator, draw.normal) for draw in seen.draws] == [
        ("randn", True),
        ("normal_", True),
        ("normal_", False),
        ("rand", False),
    ]
    assert torch.equal(seen.draws[0].values, torch.randn(3, generator=torch.Generator().manual_seed(0)).double())
    with Draws(torch.zeros_like):
        assert float(torch.randn(4).abs().sum()) == 0
        assert float(torch.empty(4).normal_().abs().sum()) == 0


def test_errors_of_the_scheduler_are_told_from_ours():
    class Dies(DDIM):
        def step(self, *args, **kwargs):
            raise KeyError("lost")

    subject = Subject(Dies)
    with pytest.raises(Crash, match=r"step\(model_output, 999, sample\) raises KeyError: 'lost'"):
        loops.states(subject, 2, torch.zeros(1, 1, 2, 2))
    verdicts = {verdict.check: verdict.outcome for verdict in check_scheduler(Dies, raise_on_failure=False)}
    assert [check for check, outcome in verdicts.items() if outcome == "fail"] == ["runs"]


def test_devices_are_told_apart(monkeypatch):
    class Elsewhere(DDIM):
        def step(self, model_output, timestep, sample, eta=0.0, generator=None):
            gave = super().step(model_output, timestep, sample, eta, generator)
            return self.gave(gave.prev_sample.to("meta") if timestep < 250 else gave.prev_sample)

    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        assert "there is no accelerator on this machine." in check_scheduler(DDIM, only=["devices"], raise_on_failure=False)[0].message
    monkeypatch.setattr("pytest_diffusion.conformance.tensors.accelerator", lambda: torch.device("cpu"))
    assert check_scheduler(DDIM, only=["devices"])[0].outcome == "pass"
    monkeypatch.setattr("pytest_diffusion.conformance.suite.Suite._rests", lambda *_: True)
    (verdict,) = check_scheduler(Elsewhere, only=["devices"], raise_on_failure=False)
    assert verdict.outcome == "fail"
    assert "Expected: samples on cpu.\nSeen: samples on meta." in verdict.message


def test_claims_are_tried_one_after_another():
    def settled(*errors):
        claims = Claims()
        for error in errors:
            with claims.next():
                if error is not None:
                    raise error
        claims.settle()

    settled(None, NotApplicable("no eta"), None)
    with pytest.raises(NotApplicable, match="no eta"):
        settled(NotApplicable("no eta"), NotApplicable("nor another"))
    with pytest.raises(Broken, match="expected one"):
        settled(NotApplicable("no eta"), Broken("one", "two"), Broken("one", "three"), None)
    with pytest.raises(Several) as found:
        settled(Broken("1 with eta=0.5", "2"), Broken("1 with eta=1", "2"), Broken("3 with eta=1", "4"))
    assert [one.expected for one in found.value.findings] == ["1 with eta=0.5", "1 with eta=1"]
