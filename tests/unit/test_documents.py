"""YAML with line numbers, and what is said about a document that does not suit its schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from sim.documents import Document, canonical_json, load_yaml, parse_value, parse_yaml, validate
from sim.errors import ConfigError

FILE = Path("f.yaml")


class Inner(BaseModel):
    """A part of a document."""

    model_config = ConfigDict(extra="forbid")

    size: int = Field(default=1, gt=0)
    kind: Literal["small", "large"] = "small"


class Outer(BaseModel):
    """A document."""

    model_config = ConfigDict(extra="forbid")

    inner: Inner
    items: list[Inner] = []
    either: str | dict[str, Any] | None = None


def complaint(text: str) -> str:
    """What is said about a document."""
    with pytest.raises(ConfigError) as caught:
        validate(Outer, parse_yaml(text, FILE))
    return str(caught.value)


def test_lines_of_keys_and_items() -> None:
    """Every key and item knows its line; what is not written has the line of its nearest parent."""
    document = parse_yaml("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n", FILE)
    keys = [("a",), ("a", "b"), ("a", "c", 0), ("a", "c", 1, "d"), ("a", "nowhere"), ("nowhere",)]
    assert [document.line(key) for key in keys] == [1, 2, 4, 5, 1, None]


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "0.001", ".1e-2"])
def test_numbers_with_an_exponent_are_numbers(text: str) -> None:
    """YAML 1.1 calls 1e-3 a text; people do not."""
    assert parse_value(text) == 0.001
    assert parse_yaml(f"a: {text}").data == {"a": 0.001}


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever a file contains, the answer is a mapping or one line of complaint."""
    try:
        assert isinstance(parse_yaml(text, FILE).data, dict)
    except ConfigError as error:
        assert str(error).startswith("f.yaml")
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("inner: {size: 2, siez: 3}", "f.yaml:1: inner.siez: unknown key (valid, nearest first: size, kind)"),
        ("inner: {}\ninnner: {}", "f.yaml:2: innner: unknown key (valid, nearest first: inner, either, items)"),
        ("items: []", "f.yaml: inner: is required but missing"),
        ("inner:\n  size: -1", "f.yaml:2: inner.size: -1: input should be greater than 0"),
        ("inner: 3", "f.yaml:1: inner: 3: expected a mapping"),
        ("inner:", "f.yaml:1: inner: is empty; expected a mapping"),
        ("inner: [1]", "f.yaml:1: inner: expected a mapping"),
        ("inner: {}\nitems:\n- size: 1\n- size: x", "f.yaml:4: items.1.size: 'x': input should be a valid integer"),
        (
            "inner: {kind: smal}",
            "f.yaml:1: inner.kind: 'smal': is not a valid choice (valid, nearest first: small, lar",
        ),
        ("inner: {}\neither: 3", "f.yaml:2: either: 3: expected text or a mapping"),
        ("inner: {3: 4}", "f.yaml:1: inner.3: a key must be text; put it in quotes"),
    ],
)
def test_the_first_mistake_is_explained(text: str, told: str) -> None:
    """One line with file, line, key, value, and the valid choices, nearest first."""
    assert complaint(text).startswith(told)


def test_unknown_keys_come_before_missing_ones() -> None:
    """A misspelt key is what a person did; the missing one beside it only follows from that."""
    assert complaint("iner: {}") == "f.yaml:1: iner: unknown key (valid, nearest first: inner, either, items)"


def test_a_key_set_elsewhere_is_blamed_there() -> None:
    """A key that came from the command line, its children and parents made for it are not said of the file."""
    document = Document(FILE, {}, {("a",): 1, ("a", "b"): 2}, {("a", "c"): "--set", ("x", "y"): "--set"})
    told = [str(document.error(key, "no")) for key in [("a", "b"), ("a", "c"), ("a", "c", 0, "d"), ("x",), ("a",), ()]]
    assert told == ["f.yaml:2: a.b: no", "--set: a.c: no", "--set: a.c.0.d: no", "--set: x: no", "f.yaml:1: a: no",
                    "f.yaml: no"]  # fmt: skip


def test_an_error_without_a_file_is_blamed_on_a_key() -> None:
    """What a constructor says is placed at the key that caused it, its own if it is written; other files' stay."""
    document = Document(FILE, {}, {("a",): 1, ("a", "b"): 2})

    def blamed(error: ConfigError) -> str:
        with pytest.raises(ConfigError) as caught, document.blamed(("a",), under=("a",)):
            raise error
        return str(caught.value)

    assert blamed(ConfigError("no")) == "f.yaml:1: a: no"
    assert (
        blamed(ConfigError("no", key="b", value=3, choices=["4"])) == "f.yaml:2: a.b: 3: no (valid, nearest first: 4)"
    )
    assert blamed(ConfigError("no", key="z", value=None)) == "f.yaml:1: a: None: no"
    assert blamed(ConfigError("no", file="g.yaml", key="b")) == "g.yaml: b: no"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder and bytes that are no text are refused by name."""
    (tmp_path / "latin.yaml").write_bytes("a: \xe9".encode("latin-1"))
    for name, told in (("no.yaml", "No such file"), (".", "Is a directory"), ("latin.yaml", "not UTF-8 text")):
        with pytest.raises(ConfigError, match=told) as caught:
            load_yaml(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))


def test_canonical_json_has_one_spelling() -> None:
    """The order in which keys were written does not matter."""
    assert (
        canonical_json({"b": 1, "a": [1.5, None]})
        == canonical_json({"a": [1.5, None], "b": 1})
        == '{"a":[1.5,null],"b":1}'
    )
