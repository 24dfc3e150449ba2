"""Shares of parts, on models whose figure is a known function of their parts."""

from types import SimpleNamespace

import pytest
import torch

from pytest_diffusion.gate.hybrids import Blame, Share, blame, blocks_of, with_parts

COUNT = 40


def part(value, *, size=3):
    module = torch.nn.Linear(size, 1, bias=False)
    torch.nn.init.constant_(module.weight, value)
    return module


def model(**values):
    return SimpleNamespace(**{name: part(value) for name, value in values.items()})


def value_of(module):
    return float(module.weight.detach()[0, 0])


def rows_of(pipeline, combine, *, spread=0.0, seed=0):
    """A figure that `combine` makes of the values of the parts, with noise that all pipelines share, and some of its own."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(COUNT, dtype=torch.float64, generator=generator)
    own = spread * torch.randn(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + hash(str(vars(pipeline))) % 1000))
    rows = combine(**{name: value_of(one) for name, one in vars(pipeline).items()}) + shared + own
    return float(rows.mean()), rows


def shares(combine, candidate, baseline, **rest):
    before = [dict(vars(one)) for one in (candidate, baseline)]
    found = blame(candidate, baseline, sorted(vars(candidate)), lambda pipeline: rows_of(pipeline, combine, **rest))
    assert [dict(vars(one)) for one in (candidate, baseline)] == before
    return {one.part: one for one in found.parts}, found


def test_shares_of_a_sum_are_exact():
    found, whole = shares(lambda a, b, c: 3 * a + b + 0 * c, model(a=1, b=1, c=1), model(a=0, b=0, c=0))
    assert {name: one.share for name, one in found.items()} == pytest.approx({"a": 0.75, "b": 0.25, "c": 0.0}, abs=1e-9)
    assert [one.part for one in whole.parts] == ["a", "b", "c"]
    assert whole.named == ["a", "b"]
    assert whole.text == "75 % of it (75 to 75) comes with a, 25 % (25 to 25) with b."


def test_what_two_parts_do_together_is_shared_between_them():
    found, _ = shares(lambda a, b: a * b, model(a=2, b=3), model(a=1, b=1))
    # Shapley's values of a product: (2 - 1)(1 + 3)/2 and (3 - 1)(1 + 2)/2 of 5.
    assert {name: one.share for name, one in found.items()} == pytest.approx({"a": 0.4, "b": 0.6}, abs=1e-9)


def test_where_no_part_has_a_share_of_its_own_none_is_named():
    _, found = shares(
        lambda **parts: sum(parts.values()), model(**dict.fromkeys("abcdefghijkl", 1)), model(**dict.fromkeys("abcdefghijkl", 0))
    )
    assert found.named == []
    assert found.text.startswith("No single part did it: 8 % of it (8 to 8) comes with a, 8 % (8 to 8) with b")


def test_the_only_part_needs_no_measurement():
    found = blame(model(a=1), model(a=0), ["a"], lambda pipeline: pytest.fail("measured"))
    assert found.text == "It comes with a, the only part that differs and has a say in it."
    assert found.named == ["a"]


def test_what_is_not_finite_comes_with_the_part_that_breaks_it():
    found, _ = shares(lambda a, b: float("nan") if a == 1 else b, model(a=1, b=1), model(a=0, b=0))
    assert {name: one.share for name, one in found.items()} == {"a": 1.0, "b": 0.0}


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = runs = 0
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        effects = {name: mean + torch.randn(COUNT, dtype=torch.float64, generator=generator) for name, mean in (("a", 3.0), ("b", 1.0))}

        def measure(pipeline, effects=effects):
            rows = sum(effects[name] * value_of(getattr(pipeline, name)) for name in "ab")
            return float(rows.mean()), rows

        for one in blame(model(a=1, b=1), model(a=0, b=0), ["a", "b"], measure).parts:
            held += one.interval[0] <= {"a": 0.75, "b": 0.25}[one.part] <= one.interval[1]
            runs += 1
    assert 0.92 < held / runs < 0.975


def test_pairs_of_one_prompt_count_together():
    generator = torch.Generator().manual_seed(0)
    effect = (2 + torch.randn(COUNT // 4, dtype=torch.float64, generator=generator)).repeat_interleave(4)

    def measure(pipeline):
        rows = effect * value_of(pipeline.a) + value_of(pipeline.b)
        return float(rows.mean()), rows

    widths = []
    for clusters in (None, [index // 4 for index in range(COUNT)]):
        (one, *_) = blame(model(a=1, b=1), model(a=0, b=0), ["a", "b"], measure, clusters=clusters).parts
        widths.append(one.interval[1] - one.interval[0])
    assert widths[1] > 1.6 * widths[0]


def test_parts_that_do_not_fit_are_refused_with_the_reason():
    candidate, baseline = model(a=1, b=1, c=1, d=1), model(a=0, b=0, c=0)
    candidate.b = part(1, size=4)
    candidate.c = torch.nn.Conv2d(1, 1, 1)
    candidate.a.weight = torch.nn.Parameter(torch.ones(1, 3, dtype=torch.int8), requires_grad=False)
    baseline.e = part(0)
    found = blame(candidate, baseline, ["a", "b", "c", "d", "e", "pipeline"], lambda pipeline: pytest.fail("measured"))
    assert found.parts == []
    assert found.text == (
        "Which part did it cannot be said: a (its weights are quantised in one of the models), b (its shapes differ), "
        "c (Conv2d in place of Linear), "
        "d (only one of the models has it), e (only one of the models has it), pipeline (it is no part that can be swapped)."
    )


def test_a_part_stored_in_another_dtype_is_swapped_in_that_of_the_part_it_stands_for():
    def measure(pipeline):
        assert {one.weight.dtype for one in vars(pipeline).values()} == {pipeline.c.weight.dtype}
        return rows_of(pipeline, lambda a, b, c: a + b + c)

    candidate, baseline = model(a=3, b=1, c=0), model(a=0, b=0, c=0)
    kept = dict(vars(candidate))
    for one in vars(baseline).values():
        one.half()
    found = {one.part: one.share for one in blame(candidate, baseline, ["a", "b"], measure).parts}
    assert found == {"a": pytest.approx(0.75), "b": pytest.approx(0.25)}
    assert vars(candidate) == kept
    assert {one.weight.dtype for one in vars(candidate).values()} == {torch.float32}


def test_parts_are_taken_back_after_an_error():
    pipeline = model(a=1)
    own = pipeline.a
    with pytest.raises(ZeroDivisionError), with_parts(pipeline, {"a": None}):
        1 / 0  # noqa: B018
    assert pipeline.a is own


class Denoiser(torch.nn.Module):
    """Three blocks and a list of eight layers, each a number."""

    def __init__(self, values):
        super().__init__()
        self.first, self.second = part(values["first"]), part(values["second"])
        self.layers = torch.nn.ModuleList([part(values.get(f"layers.{index}", 0)) for index in range(8)])

    def value(self):
        return value_of(self.first) + value_of(self.second) + sum(map(value_of, self.layers))


def test_blocks_of_the_denoiser_are_found_and_put_back():
    baseline = SimpleNamespace(unet=Denoiser({"first": 0, "second": 0}), text_encoder=part(0))
    candidate = SimpleNamespace(unet=Denoiser({"first": 1, "second": 0, "layers.2": 3}), text_encoder=part(4))
    kept = [{name: id(one) for name, one in side.unet.named_modules()} for side in (candidate, baseline)]

    def measure(pipeline):
        rows = torch.full((COUNT,), pipeline.unet.value() + value_of(pipeline.text_encoder), dtype=torch.float64)
        return float(rows.mean()), rows

    assert list(blocks_of(candidate.unet, baseline.unet)) == ["first", "layers.2 to 3"]
    found = blame(candidate, baseline, ["text_encoder", "unet"], measure, by_block=measure)
    assert {one.part: one.share for one in found.parts} == {"unet": 0.5, "text_encoder": 0.5}
    assert {one.part: one.share for one in found.blocks} == {"layers.2 to 3": 0.75, "first": 0.25}
    assert found.text.endswith("Within the denoiser, 75 % of it (75 to 75) comes with layers.2 to 3, 25 % (25 to 25) with first.")
    assert [{name: id(one) for name, one in side.unet.named_modules()} for side in (candidate, baseline)] == kept


def test_shares_are_plain_values_for_the_report():
    found = Blame([Share("unet", 1.0, (1.0, 1.0))], refused={"vae": "its shapes differ"})
    assert found.to_json() == {
        "parts": [{"part": "unet", "share": 1.0, "interval": (1.0, 1.0)}],
        "blocks": [],
        "refused": {"vae": "its shapes differ"},
    }
    assert found.text == "100 % of it (100 to 100) comes with unet. Not swapped: vae (its shapes differ)."
