"""From a name or a path to a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.catalog import file_at, find, folder, names
from sim.errors import ConfigError

KINDS = ("hardware", "workload", "scenario", "preset")


@pytest.mark.parametrize("kind", KINDS)
def test_every_shipped_name_is_found(kind: str) -> None:
    """Each name leads to a file of its kind's folder, and names are sorted."""
    assert names(kind) == sorted(names(kind)) != []
    assert all(find(kind, name).parent == folder(kind) for name in names(kind))


def test_a_path_is_looked_for_here_and_then_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the current directory wins over one beside the file that mentions it."""
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        place.mkdir()
    (there / "gpu.yaml").touch()
    monkeypatch.chdir(here)
    assert find("hardware", "gpu.yaml", beside=there / "s.yaml") == there / "gpu.yaml"
    (here / "gpu.yaml").touch()
    assert find("hardware", "gpu.yaml", beside=there / "s.yaml") == Path("gpu.yaml")
    assert file_at("trace", "no.csv", beside=there / "s.yaml") is None


def test_a_folder_does_not_hide_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`roofserve run quickstart` works although an earlier run left a folder of that name."""
    (tmp_path / "quickstart").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find("scenario", "quickstart").name == "quickstart.yaml"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("h100_sxm", "hardware: 'h100_sxm': unknown hardware (valid, nearest first: h100-sxm, "),
        ("./h100-sxm.yaml", "hardware: './h100-sxm.yaml': no such file"),
        (".", "hardware: '.': is a directory, not a file"),
        ("", "hardware: '': is a directory, not a file"),
        ("~nosuchuser/gpu.yaml", "hardware: '~nosuchuser/gpu.yaml': cannot be looked for"),
        ("x" * 300, "hardware: 'xxx"),
        ("a\0b", "hardware: 'a\\x00b': unknown hardware"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, told: str) -> None:
    """One line that names the kind, what was asked for and the nearest shipped names."""
    with pytest.raises(ConfigError) as caught:
        find("hardware", name)
    assert str(caught.value).startswith(told)
