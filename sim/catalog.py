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

    A shipped name wins; a path is looked for from the current directory, then beside the file that mentions it.
    Raises ConfigError with the nearest shipped names when there is no such file.
    """
    shipped = names(kind)
    if name in shipped:
        return folder(kind) / f"{name}.yaml"
    found = file_at(kind, name, beside=beside)
    if found is not None:
        return found
    path = Path(name)
    if path.is_dir():
        raise ConfigError("is a directory, not a file", key=kind, value=name)
    problem = "no such file" if path.suffix or len(path.parts) > 1 else f"unknown {kind}"
    raise ConfigError(problem, key=kind, value=name, choices=shipped)


def file_at(kind: str, path: str, *, beside: Path | None = None) -> Path | None:
    """The file a path leads to: from the current directory, else beside the file that mentions it; None if nowhere.

    Raises ConfigError for a path that no file can have.
    """
    try:
        given = Path(path).expanduser()
        candidates = [given] if beside is None else [given, beside.parent / given]
        return next((candidate for candidate in candidates if candidate.is_file()), None)
    except (OSError, RuntimeError) as error:  # longer than file systems allow; ~ of a user who does not exist
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ConfigError(f"cannot be looked for ({reason})", key=kind, value=path) from error
