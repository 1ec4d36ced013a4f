"""One step of a scenario, or one kernel, as rows: what it costs, what it is made of, and what bounds it."""

from __future__ import annotations

from typing import Any

from sim.build import build
from sim.cost.calibrated_kernels import class_errors, op_class
from sim.cost.calibration import Calibration
from sim.cost.calibration_source import find_calibration
from sim.cost.explain_kernel import explain_kernel
from sim.cost.ops import OpCost
from sim.cost.shape import RunShape
from sim.cost.uncertainty import step_interval
from sim.errors import ConfigError
from sim.scenario import LoadedScenario
from sim.setup import Setup
from sim.specs.hardware import Gpu


def calibration_of(gpu: Gpu) -> tuple[Calibration, str]:
    """The constants of a GPU's kernels and how far they can be trusted. Raises ConfigError where there are none."""
    found = find_calibration(gpu)
    if found is None:
        raise ConfigError("neither this GPU nor one of its generation is calibrated", key="--hardware", value=gpu.name)
    return found


def explained_kernel(gpu: Gpu, kind: str, sizes: dict[str, int], dtype: str | None, stack: str) -> dict[str, Any]:
    """One kernel's time in microseconds with its 90 % interval, by term."""
    constants, trust = calibration_of(gpu)
    found = explain_kernel(constants, kind, sizes, dtype, stack)
    rows = [{"term": name, "us": seconds * 1e6} for name, seconds in found.terms.parts.items()]
    return {
        "title": f"{kind} on {gpu.name} ({trust}): {found.terms.seconds * 1e6:,.2f} us, bound by {found.terms.bound}",
        "us": found.terms.seconds * 1e6,
        "interval_us": [bound * 1e6 for bound in found.interval_s],
        "bound": found.terms.bound,
        "trust": trust,
        "source": found.entry.source,
        "rows": rows,
    }


def explained_step(loaded: LoadedScenario, decodes: int, context: int, prompt: int) -> dict[str, Any]:
    """One step of `decodes` sequences at `context` tokens each and a prompt of `prompt` tokens, by operator."""
    if not decodes and not prompt:
        raise ConfigError("a step needs --sequences or --prompt", key="explain")
    setup = build(loaded)
    seen = [decodes * span.visible(context) for span in setup.timer.spans]
    shape = RunShape(decodes, decodes * context, [(0, prompt)] if prompt else [], seen)
    ops = setup.timer.explain(shape)
    total = sum(op.seconds for op in ops)
    low, high = _interval(setup, ops)
    what = " and ".join(x for x in (f"{decodes} decodes at context {context}" if decodes else "",
                                    f"{prompt} prompt tokens" if prompt else "") if x)  # fmt: skip
    return {
        "title": f"{setup.architecture.name} on {setup.gpu.name} ({setup.kernels.trust}), {what}: "
        f"{total * 1e3:,.3f} ms, 90 % between {low * 1e3:,.3f} and {high * 1e3:,.3f}",
        "ms": total * 1e3,
        "interval_ms": [low * 1e3, high * 1e3],
        "trust": setup.kernels.trust,
        "notes": list(setup.notes),
        "rows": [_row(op, total) for op in sorted(ops, key=lambda op: -op.seconds)],
    }


def _interval(setup: Setup, ops: list[OpCost]) -> tuple[float, float]:
    seconds: dict[str, float] = {}
    for op in ops:
        name = op_class(op.name) or "host"
        seconds[name] = seconds.get(name, 0.0) + op.seconds
    return step_interval(seconds, class_errors(setup.kernels, setup.timer.forward))


def _row(op: OpCost, total: float) -> dict[str, Any]:
    cost = op.cost
    return {
        "operator": op.name,
        "calls": op.calls,
        "us": op.seconds * 1e6,
        "share %": 100 * op.seconds / total,
        "GFLOP": op.calls * cost.flops / 1e9,
        "MB": op.calls * cost.bytes / 1e6,
        "FLOP/byte": cost.flops / cost.bytes if cost.bytes else None,
        "bound": cost.bound,
    }
