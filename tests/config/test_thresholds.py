import pytest

from pytest_diffusion.checks import all_checks
from pytest_diffusion.config.resources import data_folder
from pytest_diffusion.config.thresholds import load_thresholds, preset_names
from pytest_diffusion.verdicts.errors import SettingsError


def test_default_has_a_table_for_every_check_and_no_other():
    assert sorted(load_thresholds([]).limits) == sorted(check.name for check in all_checks() if check.lens != "paired")


@pytest.mark.parametrize("name", preset_names())
def test_every_limit_of_every_preset_has_a_source(name):
    thresholds = load_thresholds([name])
    assert all(limits.source and limits.where for limits in thresholds.limits.values())


def test_presets_are_those_of_the_documentation():
    assert preset_names() == ["analytic", "ddpm", "default", "demo", "finetune", "flow", "quantised", "sd15", "sdxl"]


def test_later_files_win_table_by_table(tmp_path):
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text('[fid]\nat_most = 5\nsource = "a"\n[kid]\nat_most = 1\nsource = "a"\n')
    second.write_text('[fid]\nat_most = 7\nsource = "b"\n')
    thresholds = load_thresholds([str(first), str(second)])
    assert thresholds.limits["fid"].at_most == 7
    assert thresholds.limits["fid"].where == f"{second} [fid]"
    assert thresholds.limits["kid"].at_most == 1
    assert thresholds.limits["fid"].min_samples == 10_000  # from default, which nobody changed


def test_a_table_of_counts_keeps_the_limit_below(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text("[fid]\nmin_samples = 256\nmin_reference = 256\n")
    limits = load_thresholds([str(path)]).limits["fid"]
    assert (limits.at_most, limits.min_samples) == (30.0, 256)
    assert "Heusel" in limits.source


def test_inconclusive_may_be_let_through(tmp_path):
    path = tmp_path / "soft.toml"
    path.write_text('[gate]\ninconclusive = "warn"\n')
    assert load_thresholds([]).inconclusive_fails
    assert not load_thresholds([str(path)]).inconclusive_fails


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[fid", "is not valid TOML"),
        ('[fidd]\nat_most = 1\nsource = "x"', "Did you mean 'fid'"),
        ('[fid]\nat_mots = 1\nsource = "x"', "Did you mean 'at_most'"),
        ('[fid]\nat_most = "low"\nsource = "x"', "at_most is 'low'; expected float"),
        ('[fid]\nat_most = true\nsource = "x"', "at_most is True; expected float"),
        ("[fid]\nat_most = 1", "has no source"),
        ("fid = 3", r"\[fid\] is 3; expected a table"),
        ('[gate]\ninconclusive = "maybe"', r"\[gate\]: inconclusive is 'maybe'; expected 'fail' or 'warn'"),
        ('[gate]\nskipped = "warn"', r"\[gate\]: skipped is 'warn'; expected 'ok' or 'fail'"),
        ('[gate]\nrequired = ["fid"]', "Did you mean 'require'"),
        ('[gate]\nrequire = "fid"', "require is 'fid'; expected a list"),
        ('[gate]\nrequire = ["fidd"]', r"\[gate\] require: the name is 'fidd'.*Did you mean 'fid'"),
        ("gate = 1", r"gate is 1; expected a table \[gate\]"),
        ("settings = 1", r"settings is 1; expected a table \[settings\]"),
        ('[fid]\nat_least = 2\nat_most = 1\nsource = "x"', "no figure can meet both"),
        ('[fid]\nat_most = nan\nsource = "x"', "at_most is nan; expected a finite number"),
        ('[fid]\nat_most = inf\nsource = "x"', "at_most is inf; expected a finite number"),
        ('[fid]\nat_most = 1\nmin_samples = -1\nsource = "x"', "min_samples is -1; expected a whole number"),
        ('[fid]\nat_most = 1\nextractor = "demo_judge"\nsource = "x"', "Did you mean 'demo-judge'"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message) as error:
        load_thresholds([str(path)])
    assert str(path) in str(error.value)


def test_unknown_names():
    with pytest.raises(SettingsError, match=r"expected one of: analytic, ddpm, default.*Did you mean 'sd15'"):
        load_thresholds(["sd1.5"])
    with pytest.raises(SettingsError, match=r"missing\.toml does not exist"):
        load_thresholds(["missing.toml"])


def test_fewer_samples_ask_for_fewer_references_and_more_for_no_more(tmp_path):
    path = tmp_path / "own.toml"
    for samples, references in ((500, 500), (20_000, 10_000)):
        path.write_text(f"[fid]\nmin_samples = {samples}\n")
        limits = load_thresholds([str(path)]).for_check("fid")
        assert (limits.min_samples, limits.min_reference, limits.at_most) == (samples, references, 30.0)
        lowered = "min_reference lowered with min_samples, from 10000 to 500" in limits.source
        assert lowered == (samples == 500)
    path.write_text("[fid]\nmin_samples = 500\nmin_reference = 700\n")
    assert "lowered" not in load_thresholds([str(path)]).for_check("fid").source


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_a_margin_with_a_source_for_every_figure(name):
    from pytest_diffusion.gate.figures import FIGURES

    margins = load_thresholds([name]).margins.by_figure
    assert {figure.name for figure in FIGURES} | {"scorer"} == set(margins)
    assert all(margin.source and margin.where for margin in margins.values())
    assert "[paired" in (data_folder("thresholds") / f"{name}.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paired = 3", r"paired is 3; expected a table \[paired\]"),
        ("[paired]\nalhpa = 0.1", "Did you mean 'alpha'"),
        ("[paired]\nalpha = 0.7", r"\[paired\]: alpha is 0.7; expected 0 < alpha < 0.5"),
        ("[paired]\npairs = 3", r"pairs is 3; expected at least 16"),
        ("[paired]\npairs = 20.5", r"pairs is 20.5; expected int"),
        ("[paired.fid]\nmargin = 1", r"\[paired.fid\] has no source"),
        ('[paired.fid]\nsource = "x"', "expected exactly one of margin, spreads, share, not none"),
        ('[paired.fid]\nmargin = 1\nshare = 1\nsource = "x"', "not margin, share"),
        ('[paired.fid]\nmargin = -1\nsource = "x"', "margin is -1.0; expected a finite number of at least 0"),
        ('[paired.fid]\nmargin = "low"\nsource = "x"', "margin is 'low'; expected float"),
        ('[paired.fid]\nmargn = 1\nsource = "x"', "Did you mean 'margin'"),
        ('[paired.fid]\nmargin = 1\nkind = "both"\nsource = "x"', "kind is 'both'; expected one of: equivalence, not_worse, reported"),
        ('[paired.fid]\nmargin = 0\nkind = "equivalence"\nsource = "x"', "a margin of 0 leaves no room under equivalence"),
        ('[paired.fid]\nmargin = 1\nkind = "reported"\nsource = "x"', "a figure that is only reported has no margin"),
    ],
)
def test_margins_that_cannot_be_are_refused(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_thresholds([str(path)])
