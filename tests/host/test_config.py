from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from harness.config import Problem, Section, load_yaml, read_document
from harness.errors import ConfigError


class Inner(Section):
    size: int = Field(gt=0)
    label: str = "x"


class Item(Section):
    name: str
    inner: Inner | None = None


class Sample(Section):
    version: int
    title: str = "none"
    items: Annotated[tuple[Item, ...], Field(strict=False)] = ()
    inner: Inner | None = None

    @model_validator(mode="after")
    def _not_seven(self) -> Sample:
        if self.version == 7:
            raise ValueError("seven is taken")
        return self


@pytest.fixture
def broken(tmp_path: Path):
    def load(text: str) -> ConfigError:
        path = tmp_path / "f.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_yaml(path, Sample)
        assert str(caught.value).startswith(str(path))
        return caught.value

    return load


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("# c\nversion: 1\nitems:\n  - name: a\n    inner: {size: 2}\n  - name: b\n")
    value = load_yaml(path, Sample)
    assert value == Sample(version=1, items=(Item(name="a", inner=Inner(size=2)), Item(name="b")))


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("version: 1\n\ntitel: x\n", 3, ["titel", "unknown key", "did you mean title?"]),
        ("version: 1\nzzzzzz: x\n", 2, ["zzzzzz", "unknown key", "version, title, items, inner"]),
        ("version: 1\nitems:\n  - name: a\n    innr: {}\n", 4, ["items[0].innr", "did you mean inner?"]),
        (
            "version: 1\nitems:\n  - name: a\n    inner:\n      size: 1\n      labl: a\n",
            6,
            ["items[0].inner.labl", "mean label?"],
        ),
        ("# c\nversion: one\n", 2, ["version", "valid integer", "'one'"]),
        ("version: true\n", 1, ["version", "valid integer"]),
        ("version: 1\ntitle: 12\n", 2, ["title", "must be text", "a number", "quotes"]),
        ("version: 1\ntitle: no\n", 2, ["title", "true or false", "quotes"]),
        ("version: 1\ntitle:\n", 2, ["title", "valid string", "empty"]),
        ("version: 1\nitems:\n  - name: a\n  - inner: {size: 1}\n", 4, ["items[1].name", "missing"]),
        ("\n\ntitle: x\n", 3, ["version", "missing"]),
        ("version: 1\ninner:\n  label: x\n", 2, ["inner.size", "missing"]),
        ("version: 1\ninner: [1]\n", 2, ["inner", "must be a mapping", "a list"]),
        ("version: 1\nitems: {a: 1}\n", 2, ["items", "valid tuple", "a mapping"]),
        ("version: 1\ninner:\n\n  size: -1\n", 4, ["inner.size", "greater than 0", "-1"]),
        ("\nversion: 7\n", 2, ["seven is taken"]),
        ("- a\n- b\n", 1, ["must be a mapping", "a list"]),
        ("version: 1\nversion: 2\n", 2, ["version", "twice", "first in line 1"]),
        ("version: 1\ninner:\n  size: 1\n  label: a\n  size: 2\n", 5, ["inner.size", "twice", "line 3"]),
        ("version: 1\ntitle: [a\nitems: 2\n", 3, ["not valid YAML"]),
        ("version: 1\n\ttitle: a\n", 2, ["not valid YAML"]),
        ("version: 1\ntitle: !!python/name:os.system\n", 2, ["not valid YAML", "python/name"]),
        ("version: 1\n---\nversion: 2\n", 2, ["not valid YAML", "document"]),
        ("", 1, ["empty"]),
        ("# only a comment\n", 1, ["empty"]),
    ],
)
def test_each_mistake_has_its_line(broken, text: str, line: int, words: list[str]) -> None:
    message = str(broken(text))
    assert "problems" not in message, message
    assert f"f.yaml:{line}:" in message, message
    for word in words:
        assert word in message


def test_all_mistakes_are_in_one_error_in_the_order_of_the_file(broken) -> None:
    error = broken("title: 3\nitems:\n  - nam: a\n  - name: b\n    inner: {size: 0}\n")
    rows = str(error).splitlines()[1:]
    places = [row.split("f.yaml")[1].rsplit(": ", 1)[0] for row in rows]
    assert [place.split(": ")[0] for place in places] == [":1", ":1", ":3", ":3", ":5"]
    assert {"version", "title", "items[0].nam", "items[0].name", "items[1].inner.size"} == {
        row.split(": ")[1] for row in rows
    }


def test_a_hopeless_file_does_not_flood(broken) -> None:
    text = "version: 1\n" + "".join(f"key{number}: 1\n" for number in range(200))
    message = str(broken(text))
    assert "200 problems" in message
    assert len(message.splitlines()) < 30


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_yaml(tmp_path / "absent.yaml", Sample)
    assert "absent.yaml" in str(caught.value)
    (tmp_path / "latin.yaml").write_bytes(b"title: \xff\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path / "latin.yaml", Sample)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path, Sample)


def test_an_alias_to_its_own_parent_is_refused(broken) -> None:
    assert "inner" in str(broken("version: 1\ninner: &a\n  size: 1\n  label: *a\n"))


def test_what_is_read_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("version: 1\n")
    value = load_yaml(path, Sample)
    with pytest.raises(ValueError, match="frozen"):
        value.version = 2


def test_later_checks_can_name_lines_too(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("version: 1\nitems:\n  - name: a\n  - name: b\n")
    document = read_document(path, Sample)
    one = document.refuse([Problem(("items", 1, "name"), "is odd")], remedy="change it")
    assert str(one) == f"{path}:4: items[1].name: is odd\n  what to do: change it"
    two = document.refuse([Problem(("items", 1, "inner"), "B"), Problem(("version",), "A")])
    assert str(two) == f"{path}: 2 problems\n  {path}:1: version: A\n  {path}:4: items[1].inner: B"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_a_value_or_a_config_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        load_yaml(path, Sample)
    except ConfigError as error:
        assert str(path) in str(error)  # noqa: PT017 - both ends are good


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 30), st.integers(0, 5))
def test_the_line_is_right_wherever_the_mistake_stands(tmp_path: Path, before: int, gap: int) -> None:
    path = tmp_path / "any.yaml"
    items = "".join(f"  - name: n{number}\n" for number in range(before))
    path.write_text(f"version: 1\nitems:\n{items}" + "\n" * gap + "  - name: x\n    oops: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_yaml(path, Sample)
    assert caught.value.where == f"{path}:{before + gap + 4}: items[{before}].oops"
