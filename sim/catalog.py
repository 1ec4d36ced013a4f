"""One place turns a name or a path into a file: GPU profiles, workloads, scenarios, models, engine presets."""

from __future__ import annotations

from pathlib import Path

from sim.errors import ConfigError

_PACKAGE: Path = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent
_INSTALLED = _PACKAGE / "data" / "shipped"

# kind -> (folder, suffix). The three YAML folders stand beside the package in a checkout, inside it in a wheel.
_USER_FOLDERS: dict[str, str] = {"hardware": "hardware_profiles", "workload": "workloads", "scenario": "scenarios"}
_PACKAGE_FOLDERS: dict[str, str] = {"model": "models", "preset": "presets"}


def folder(kind: str) -> Path:
    """Where the shipped files of a kind (`hardware`, `workload`, `scenario`, `model`, `preset`) live."""
    if kind in _PACKAGE_FOLDERS:
        return _PACKAGE / "data" / _PACKAGE_FOLDERS[kind]
    checkout, installed = _CHECKOUT / _USER_FOLDERS[kind], _INSTALLED / _USER_FOLDERS[kind]
    return checkout if (_CHECKOUT / "pyproject.toml").exists() and checkout.is_dir() else installed


def names(kind: str) -> list[str]:
    """The shipped names of a kind, sorted."""
    return sorted(p.stem for p in folder(kind).glob("*.yaml"))


def find(kind: str, name: str, *, beside: Path | None = None) -> Path:
    """The file meant by a name (`h100-sxm`) or a path (`./my-gpu.yaml`).

    A path is looked for from the current directory, then beside the file that mentions it. Raises ConfigError with
    the nearest shipped names when there is no such file.
    """
    as_path = Path(name).expanduser()
    if as_path.suffix or len(as_path.parts) > 1:
        candidates: list[Path] = [as_path] if beside is None else [as_path, beside.parent / as_path]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        if as_path.is_dir():
            raise ConfigError("is a directory, not a file", key=kind, value=name)
        raise ConfigError("no such file", key=kind, value=name, choices=names(kind))
    shipped = folder(kind) / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    raise ConfigError(f"unknown {kind}", key=kind, value=name, choices=names(kind))
