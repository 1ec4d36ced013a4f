"""From an engine's settings to what prices its steps."""

from __future__ import annotations

from sim.cost.eager import EagerStepTimer
from sim.cost.ops import GREEDY, Choices, ForwardPass, Sampler
from sim.cost.roofline import Kernels
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.engine_settings import Engine
from sim.presets import EnginePreset
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import Gpu
from sim.specs.quantization import QuantScheme
from sim.techniques import KernelSpec


def timer_of(
    engine: Engine, preset: EnginePreset, architecture: ModelArchitecture, scheme: QuantScheme, gpu: Gpu,
    kernels: Kernels,
) -> RooflineStepTimer:  # fmt: skip
    """The timer of a replica."""
    sampler = Sampler(**preset.sampler.model_dump()) if engine.sampling == "filtered" else GREEDY
    options = KernelSpec(**engine.kernels).options()
    forward = ForwardPass(architecture, scheme, gpu, kernels, engine.layout, Choices(sampler, options))
    host = HostWork(engine.host["step_s"], engine.host["sequence_s"], engine.host["token_s"])
    if not options.cuda_graphs:
        return EagerStepTimer(forward, host, launch_s=options.launch_s)
    return RooflineStepTimer(forward, host)
