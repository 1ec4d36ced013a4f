"""Errors for people: one line that names file, key, value and the nearest valid choice."""

from __future__ import annotations

import pytest

from sim.errors import ConfigError, GateFailed, InvariantError, SimError


def test_the_message_names_everything_in_order() -> None:
    """File and line, key, value, problem, choices."""
    error = ConfigError(
        "unknown policy", file="a.yaml", line=7, key="engine.scheduler", value="chuncked",
        choices=["continuous", "chunked"],
    )  # fmt: skip
    assert str(error) == (
        "a.yaml:7: engine.scheduler: 'chuncked': unknown policy (valid, nearest first: chunked, continuous)"
    )
    assert error.choices == ["chunked", "continuous"]


def test_parts_may_be_left_out() -> None:
    """No file, no line, no value, no choices: the rest still reads well."""
    assert str(ConfigError("is empty")) == "is empty"
    assert str(ConfigError("is empty", file="a.yaml")) == "a.yaml: is empty"
    assert str(ConfigError("is missing", key="model")) == "model: is missing"


def test_none_is_a_value() -> None:
    """A key written without a value is shown as such, unlike a key whose value is not the matter."""
    assert str(ConfigError("must be a number", key="seed", value=None)) == "seed: None: must be a number"


def test_the_nearest_choice_to_an_unknown_key_comes_first() -> None:
    """Without a value the last part of the key is the word that was meant."""
    error = ConfigError("unknown key", key="engine.max_num_seq", choices=["block_size", "max_num_seqs", "preset"])
    assert error.choices[0] == "max_num_seqs"


def test_many_choices_are_counted_not_listed() -> None:
    """A dozen names and how many there are."""
    text = str(ConfigError("unknown", key="model", value="zzz", choices=[f"model-{i}" for i in range(50)]))
    assert text.count("model-") == 12
    assert text.endswith("... (50 in all))")


def test_the_message_is_one_line() -> None:
    """Line breaks in values or problems become spaces, and long values are cut."""
    text = str(ConfigError("wrong\n  indeed", key="k", value="x" * 500))
    assert "\n" not in text
    assert "wrong indeed" in text
    assert len(text) < 150


@pytest.mark.parametrize(("error", "code"), [(SimError, 1), (ConfigError, 2), (GateFailed, 3), (InvariantError, 1)])
def test_exit_codes(error: type[SimError], code: int) -> None:
    """2 for what the user wrote, 3 for a gate, 1 for a bug; all are caught by one name."""
    assert error.exit_code == code
    assert issubclass(error, SimError)
