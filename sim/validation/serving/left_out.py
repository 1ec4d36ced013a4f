"""Leave one model out: presets are fitted again without each model, whose runs are then simulated with the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sim.presets import EnginePreset, load_preset
from sim.validation.serving.case import Case
from sim.validation.serving.engine_fit import HOST_LIMITS, problem, targets
from sim.validation.serving.predict import Predicted

Values = dict[str, float]
"""Parameter -> value: `host.step_s`, `moe/fp8_block` (a factor), `sampler` (another), or `InferenceX.request_s`."""


def parameters_of(preset: EnginePreset, cases: Iterable[Case] = ()) -> Values:
    """What an engine's fit may move: the host times that are not zero, the kernel factors, and the costs of clients."""
    values = {f"host.{name}": value for name, value in preset.host.model_dump().items() if value > 0}
    values |= {str(name): factor for name, factor in preset.kernel_factors.items()}
    if preset.sampler.filter_s:
        values["sampler"] = 1.0
    for case in cases:
        given = case.scenario["engine"].get("host", {}) if case.client else {}
        values |= {f"{case.client}.{name}": value for name, value in given.items() if value > 0}
    return values


def fit(
    pairs: Sequence[tuple[Case, Predicted]],
    preset: EnginePreset,
    *,
    without: str | None = None,
    values: Values | None = None,
    few: bool = False,
    kin: Mapping[str, float] | None = None,
) -> Values:
    """A preset's parameters fitted to runs that were simulated with it (`with_shares`), one model left out if named.

    `few`: too few runs to tell all parameters apart, so that host times stay near those given unless runs insist.
    `kin`: kernel factors of other engines with the same kernels, to which these are drawn.
    """
    start = values or parameters_of(preset, (case for case, _ in pairs))
    found = [target for target in targets(pairs, preset) if target.model != without]
    if not found:
        return start
    system = problem(found, start)
    centre = np.array([(kin or {}).get(name, 1.0) for name in start])
    solved = system.solve(near_start=few, centre=centre)
    return {name: float(value * known) for name, value, known in zip(start, solved, system.known, strict=True)}


def with_values(preset: EnginePreset, values: Mapping[str, float]) -> EnginePreset:
    """The preset with fitted values; those of clients are not part of it."""
    host = {name.removeprefix("host."): value for name, value in values.items() if name.startswith("host.")}
    factors = {name: value for name, value in values.items() if "." not in name and name != "sampler"}
    sampler = preset.sampler.model_dump()
    scaled = {name: value * values.get("sampler", 1.0) for name, value in sampler.items()}
    return EnginePreset.model_validate(
        preset.model_dump()
        | {"host": preset.host.model_dump() | host, "sampler": scaled}
        | {"kernel_factors": {**preset.kernel_factors, **factors}}
    )


def save_preset(preset: EnginePreset, path: Path) -> None:
    """A preset as a file that `engine.preset` may name."""
    data = _rounded(preset.model_dump(mode="json", exclude_none=True))
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")


def _rounded(value: Any) -> Any:
    """Four significant digits: more than a fit knows."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class LeftOut:
    """A preset fitted without one model, and the cases to simulate with it."""

    preset: str
    model: str
    values: Values
    cases: tuple[int, ...]


def leave_models_out(pairs: Sequence[tuple[Case, Predicted]]) -> list[LeftOut]:
    """One fit per preset and model, from runs that were simulated `with_shares`.

    Each is drawn to the kernel factors of presets with the same kernels (`EnginePreset.stack`), so that a format which
    only the left-out model has here may be known from there.
    """
    folds: dict[tuple[str, str], list[int]] = {}
    for i, (case, _) in enumerate(pairs):
        if case.traffic is not None and "preset" in case.scenario.get("engine", {}):
            folds.setdefault((case.scenario["engine"]["preset"], case.labels["model"]), []).append(i)
    runs = {name: [pair for pair in pairs if pair[0].scenario.get("engine", {}).get("preset") == name]
            for name in {name for name, _ in folds}}  # fmt: skip
    found = []
    for (name, model), cases in folds.items():
        values = fit(runs[name], load_preset(name), without=model, kin=_kin(runs, name, model))
        found.append(LeftOut(name, model, values, tuple(cases)))
    return found


def _kin(runs: Mapping[str, Sequence[tuple[Case, Predicted]]], name: str, model: str) -> Values:
    """Kernel factors of the other presets with this one's kernels, each fitted without the model."""
    preset, found = load_preset(name), Values()
    for other in sorted(runs):
        sister = load_preset(other)
        if other != name and sister.stack == preset.stack:
            values = fit(runs[other], sister, without=model)
            found |= {key: value for key, value in values.items() if key in preset.kernel_factors}
    return found


def overrides_of(fold: LeftOut, case: Case, folder: Path) -> dict[str, Any]:
    """The keys that replay a case with the parameters of a fold; the preset is written into `folder` if need be."""
    path = folder / f"{fold.preset}--{fold.model.replace('/', '_')}.yaml"
    if not path.is_file():
        save_preset(with_values(load_preset(fold.preset), fold.values), path)
    keys: dict[str, Any] = {"engine.preset": str(path)}
    for name in HOST_LIMITS if case.client else ():
        value = fold.values.get(f"{case.client}.{name}")
        if value is not None:
            keys[f"engine.host.{name}"] = value
    return keys
