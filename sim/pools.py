"""Disaggregated serving: the two halves of a scenario with `pools`, each as a scenario of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sim.documents import Document, validate
from sim.scenario import LoadedScenario, PoolLinkSpec, Scenario
from sim.specs.hardware import Gpu
from sim.specs.layout import Layout

Pool = Literal["prefill", "decode"]


@dataclass(frozen=True)
class PoolLink:
    """The link between the pools, with every default filled in."""

    bandwidth: int
    """Bytes per second of all copies together."""
    latency_s: float
    layerwise: bool

    @classmethod
    def of(cls, spec: PoolLinkSpec, ends: list[tuple[Gpu, Layout]]) -> PoolLink:
        """By default as fast as the network of one replica, of the pool whose replicas have less of it."""
        default = min(round(gpu.network_bytes_per_s) * layout.gpus for gpu, layout in ends)
        return cls(spec.bandwidth or default, spec.latency_s, spec.layerwise)


def pool_scenario(loaded: LoadedScenario, pool: Pool) -> LoadedScenario:
    """The scenario that the replicas of one pool would be without the other; errors still point at the file."""
    document = loaded.document
    own: Mapping[str, Any] = (document.data.get("pools") or {}).get(pool) or {}
    data = {key: value for key, value in document.data.items() if key != "pools"}
    data["engine"] = _merged(document.data.get("engine") or {}, own.get("engine") or {})
    if own.get("hardware") is not None:
        data["hardware"] = own["hardware"]
    data["replicas"] = {key: own[key] for key in ("count", "router") if key in own}
    depth = len(("pools", pool))
    lines = {key: line for key, line in document.lines.items() if key[0] != "pools"}
    lines |= {key[depth:]: line for key, line in document.lines.items() if key[:depth] == ("pools", pool)}
    origins = {key: origin for key, origin in document.origins.items() if key[0] != "pools"}
    origins |= {key[depth:]: said for key, said in document.origins.items() if key[:depth] == ("pools", pool)}
    half = Document(document.path, data, lines, origins)
    return LoadedScenario(validate(Scenario, half), half)


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings key by key, but a policy with its options as a whole."""
    merged = dict(common)
    for key, value in own.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and "kind" not in (*value, *below):
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged
