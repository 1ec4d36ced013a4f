"""`roofserve schema KIND`: JSON Schema, so that editors complete and check the YAML files."""

from __future__ import annotations

import json

import click
from pydantic import BaseModel

from sim.planner.sweep_spec import SweepSpec
from sim.presets import EnginePreset
from sim.scenario import Scenario
from sim.specs.hardware import Gpu
from sim.workloads.spec import WorkloadSpec

_SCHEMAS: dict[str, type[BaseModel]] = {
    "scenario": Scenario,
    "workload": WorkloadSpec,
    "hardware": Gpu,
    "preset": EnginePreset,
    "sweep": SweepSpec,
}


@click.command()
@click.argument("kind", type=click.Choice(sorted(_SCHEMAS)))
def schema(kind: str) -> None:
    """Print the JSON Schema of a kind of YAML file.

    \b
    Example (with the YAML extension of VS Code):
      roofserve schema scenario > scenario.schema.json
      # then, as the first line of a scenario:  # yaml-language-server: $schema=scenario.schema.json
    """
    document = _SCHEMAS[kind].model_json_schema()
    if kind == "scenario":
        _inline_workload(document)
    click.echo(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **document}, indent=2))


def _inline_workload(document: dict[str, object]) -> None:
    """A scenario may hold a workload in place: its schema stands in for `mapping`."""
    workload = WorkloadSpec.model_json_schema()
    definitions = document.setdefault("$defs", {})
    properties = document["properties"]
    if isinstance(definitions, dict) and isinstance(properties, dict):
        definitions.update(workload.pop("$defs", {}))
        definitions["WorkloadSpec"] = workload
        description = properties["workload"].get("description", "")
        choices = [{"type": "string"}, {"$ref": "#/$defs/WorkloadSpec"}]
        properties["workload"] = {"anyOf": choices, "description": description}
