"""From an engine's settings to what prices its steps."""

from __future__ import annotations

from sim.cost.eager import EagerStepTimer
from sim.cost.ops import GREEDY, Choices, ForwardPass, Sampler
from sim.cost.roofline import Kernels
from sim.cost.shared_prefix import SharedPrefixTimer
from sim.cost.step_timer import HostWork, RooflineStepTimer, StepPricer
from sim.engine_settings import Engine
from sim.presets import EnginePreset
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import Gpu
from sim.specs.quantization import QuantScheme
from sim.techniques import KernelSpec


def timer_of(
    engine: Engine, preset: EnginePreset, architecture: ModelArchitecture, scheme: QuantScheme, gpu: Gpu,
    kernels: Kernels,
) -> StepPricer:  # fmt: skip
    """The timer of a replica."""
    sampler = Sampler(**preset.sampler.model_dump()) if engine.sampling == "filtered" else GREEDY
    options = KernelSpec(**engine.kernels).options()
    forward = ForwardPass(architecture, scheme, gpu, kernels, engine.layout, Choices(sampler, options))
    host = HostWork(engine.host["step_s"], engine.host["sequence_s"], engine.host["token_s"])
    timer: StepPricer = RooflineStepTimer(forward, host)
    if not options.cuda_graphs:
        timer = EagerStepTimer(forward, host, launch_s=options.launch_s)
    return timer if engine.shared_prefix_attention == "none" else SharedPrefixTimer(timer)
