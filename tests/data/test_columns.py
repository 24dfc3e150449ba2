"""Columns of tables: read for the pairs and for the reference, and refused where no table has them."""

import json

import pytest
from PIL import Image

from pytest_diffusion.data.columns import places_of, prompt_columns, require_columns
from pytest_diffusion.data.references import load_reference
from pytest_diffusion.verdicts.errors import SetupError


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,topic\na cat,animals\nbread,\n")
    return str(path)


@pytest.mark.parametrize("place", [0, 1])
def test_columns_are_those_of_the_table_of_the_prompts(table, place):
    tables = [table, None] if place == 0 else [None, table]
    assert prompt_columns(*tables, ["topic"]) == {"topic": ["animals", ""]}
    assert prompt_columns(*tables, ["topic", "subject"]) == {"topic": ["animals", ""]}
    assert prompt_columns(*tables, []) == {}
    assert prompt_columns("prompts.txt", table, ["topic"]) == {}


def test_a_column_that_no_table_has_is_refused(table, tmp_path):
    require_columns(["topic"], (None, table))
    require_columns([], (None,))
    with pytest.raises(SetupError, match=r"--diffusion-slices: the column of .*prompts.csv is 'topics'; expected one of: prompt, topic"):
        require_columns(["topic", "topics"], (table, None))
    other = tmp_path / "pairs.jsonl"
    other.write_text(json.dumps({"prompt": "a cat", "subject": "cat"}) + "\n")
    require_columns(["topic", "subject"], (table, str(other)))
    with pytest.raises(SetupError, match="topic is a column, and the built-in list has none"):
        require_columns(["topic"], (None, None))
    with pytest.raises(SetupError, match=r"topic is a column, and prompts\.txt has none"):
        require_columns(["topic"], ("prompts.txt", None))
    require_columns(["topic"], (None, "hf:someone/pairs"))


def test_a_reference_keeps_the_columns_of_its_table(tmp_path):
    rows = [{"image": f"{index}.png", "prompt": f"image {index}", "topic": "odd" if index % 2 else "even"} for index in range(4)]
    rows[3] |= {"topic": None, "year": 2026, "tags": ["a", "list"]}
    for row in rows:
        Image.new("RGB", (8, 8)).save(tmp_path / row["image"])
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_reference(str(tmp_path / "pairs.jsonl"), height=8, width=8, limit=10)
    assert found.columns == {"topic": ["even", "odd", "even", None], "year": [None, None, None, "2026"]}
    assert load_reference(str(tmp_path), height=8, width=8, limit=10).columns == {}


def test_tables_with_too_many_values_or_another_encoding_are_told_in_a_sentence(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,topic\na cat, a dog,animals\n")
    with pytest.raises(SetupError, match="is 'style'; expected one of: prompt, topic"):
        require_columns(["style"], (str(path),))
    path.write_bytes("prompt,topic\ncaf\u00e9,food\n".encode("latin-1"))
    with pytest.raises(SetupError, match=r"--diffusion-slices: .*prompts.csv is not UTF-8 \(byte 16\); save it as UTF-8"):
        require_columns(["topic"], (str(path),))


def test_a_table_of_pairs_is_that_of_the_prompts_too(table):
    assert places_of(["topic"], None, table, None) == {"topic": "prompts"}
    assert places_of(["topic"], "prompts.txt", table, None) == {"topic": "reference"}
    assert places_of(["topic"], "prompts.txt", None, table) == {"topic": "retention"}
    assert places_of(["topic"], None, "hf:someone/pairs", None) == {"topic": "reference"}
