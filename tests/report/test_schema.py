"""report.json keeps to its published schema, and is read back as it was written."""

import json
from pathlib import Path

import jsonschema
import pytest

from pytest_diffusion.report import load
from pytest_diffusion.verdicts.errors import SettingsError

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of a run of the schedule lens."""
    folder = tmp_path_factory.mktemp("report")
    command = ["-p", "no:cacheprovider", "-q", "--diffusion-model=demo", "--diffusion-lenses=schedule", f"--rootdir={folder}", str(folder)]
    pytest.main([*command, f"--diffusion-report={folder / 'r.html'}"])
    return folder / "r.json"


def test_a_report_keeps_to_its_schema(written):
    content = json.loads(written.read_text(encoding="utf-8"))
    jsonschema.validate(content, SCHEMA)
    assert any(verdict["measurement"] for verdict in content["verdicts"])
    for broken in ({"gate": "ajar"}, {"schema": 3}, {"verdicts": [{**content["verdicts"][0], "outcome": "good"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**content, **broken}, SCHEMA)


def test_it_is_read_back(written):
    report = load(written)
    content = json.loads(written.read_text(encoding="utf-8"))
    assert report.gate == content["gate"]
    assert [entry.verdict.check for entry in report.entries] == [verdict["check"] for verdict in content["verdicts"]]
    assert report.to_json()["verdicts"] == content["verdicts"]
    with pytest.raises(SettingsError, match="does not exist"):
        load(written.with_name("none.json"))
