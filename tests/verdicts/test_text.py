"""What is shown has no character that a terminal obeys, and no credentials."""

import json

import pytest

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.report.contents import Report
from pytest_diffusion.report.html import render
from pytest_diffusion.report.markdown import summary
from pytest_diffusion.verdicts.errors import ModelError, NotApplicable, SettingsError
from pytest_diffusion.verdicts.gate import Course, decide
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.text import masked, printable, shown
from pytest_diffusion.verdicts.verdict import skipped

ESCAPES = "\x1b[31mred\x1b[0m \x07 \u202eevil \u2066x \x9b \r\x00 \ud800"


def test_control_characters_are_spelled_out_and_text_is_kept():
    assert printable("ᾱ ± 3 \"quoted\" 'so' 红 é\n\tnext") == "ᾱ ± 3 \"quoted\" 'so' 红 é\n\tnext"
    assert printable(ESCAPES) == r"\x1b[31mred\x1b[0m \x07 \u202eevil \u2066x \x9b \r\x00 \ud800"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://ada:pass@host/a", "https://***@host/a"),
        ("https://ada@host/a", "https://***@host/a"),
        ("s3://bucket/a?X-Amz-Signature=abc&b=1", "s3://bucket/a?X-Amz-Signature=***&b=1"),
        ("https://h/a?token=abc", "https://h/a?token=***"),
        ("access_token=abc, next", "access_token=*** next"),
        ("https://h/a?sig=abc%20d&se=1", "https://h/a?sig=***&se=1"),
        ("API_KEY=abc password='x'", "API_KEY=*** password='x'"),
        ("hf_abcdefghijklmnopqrst is a token", "hf_*** is a token"),
        ("owner/name@main and a@b.c", "owner/name@main and a@b.c"),
        ("tokens=5 tokenizer=clip monkey=1", "tokens=5 tokenizer=clip monkey=1"),
    ],
)
def test_credentials_are_masked(text, expected):
    assert masked(text) == expected


@pytest.mark.parametrize("error", [ModelError, SettingsError, NotApplicable])
def test_errors_show_no_escapes_and_no_credentials(error):
    assert str(error("\x1b[2J https://ada:pass@host")) == r"\x1b[2J https://***@host"


def test_no_page_and_no_file_holds_them():
    reason = f"[link](http://evil) `code` <b> | {ESCAPES} https://ada:pass@host"
    entries = [Entry(skipped("fid", reason, lens="metrics"), "diffusion::fid")]
    settings = Settings(model="https://ada:pass@host/\x1b[2J", reference="r?token=abc")
    report = Report.of(decide(entries, Course()), settings, command="pytest `x` \n## y")
    for text in (render(report), summary(report), json.dumps(report.to_json())):
        assert "\x1b" not in text
        assert "pass@" not in text
        assert "abc" not in text
        assert "\u202e" not in text
    text = summary(report)
    assert r"\[link\](http://evil) \`code\` &lt;b> \|" in text
    assert "`` pytest `x` ## y ``" in text, "a code span that holds the backticks, on one line"


def test_both():
    assert shown("\x1b token=a") == r"\x1b token=***"
