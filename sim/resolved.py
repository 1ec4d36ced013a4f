"""A scenario with every default filled in: what a saved run shows, and what runs again to the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from sim import catalog
from sim.setup import Setup
from sim.specs.hf_config import config_path

RESOLVED_FILE = "scenario.resolved.yaml"
_HEADER = """\
# The scenario as it ran, with every default filled in. It runs again, and gives the same results:
#   roofserve run {file}
"""


def resolved(setup: Setup) -> dict[str, Any]:
    """The scenario behind a run, ready for JSON and YAML.

    Files that it points to are named by their absolute paths, so that it may stand in any folder.
    """
    scenario = setup.scenario
    servers = {"engine": _engine(setup), "replicas": _replicas(setup)}
    if setup.decode is not None and setup.link is not None:
        halves = {"prefill": _pool(setup), "decode": _pool(setup.decode)}
        servers = {"pools": {**halves, "link": asdict(setup.link)}}
    return {
        "name": scenario.name,
        "model": _model(setup),
        "hardware": _hardware(setup),
        "workload": _workload(setup),
        **servers,
        **({} if scenario.client is None else {"client": scenario.client.model_dump(mode="json")}),
        "slo": dict(scenario.slo),
        **({"cost": cost} if (cost := scenario.cost.model_dump(exclude_defaults=True)) else {}),
        "seed": scenario.seed,
    }


def resolved_yaml(scenario: Mapping[str, Any], file: str) -> str:
    """The same as a YAML file that `roofserve run` takes; `file` is its name, for the comment on top."""
    text = yaml.safe_dump(dict(scenario), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return _HEADER.format(file=file) + text


def _model(setup: Setup) -> str:
    path = config_path(setup.scenario.model, setup.path)
    return setup.architecture.name if path is None else str(path.resolve())


def _hardware(setup: Setup) -> str:
    path = catalog.find("hardware", setup.scenario.hardware, beside=setup.path)
    return setup.gpu.name if path.parent == catalog.folder("hardware") else str(path.resolve())


def _engine(setup: Setup) -> dict[str, Any]:
    return {key: value for key, value in asdict(setup.engine).items() if value is not None and value != {}}


def _replicas(setup: Setup) -> dict[str, Any]:
    count, router = setup.scenario.replicas.count, setup.scenario.replicas.router
    return {"count": count, "router": {"kind": router.kind, **router.options} if router.options else router.kind}


def _pool(setup: Setup) -> dict[str, Any]:
    return {"hardware": _hardware(setup), **_replicas(setup), "engine": _engine(setup)}


def _workload(setup: Setup) -> dict[str, Any]:
    """What differs from the defaults; the parts of a law are written out whole, its `kind` included."""
    spec = setup.spec
    fields = type(spec).model_fields
    workload = {k: v for k, v in spec.model_dump(mode="json").items() if getattr(spec, k) != fields[k].default}
    if spec.trace is not None:
        workload["trace"] = str(setup.trace_path)
    return workload
