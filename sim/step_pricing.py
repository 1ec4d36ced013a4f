"""From an engine's settings to what prices its steps."""

from __future__ import annotations

from sim.cost.eager import passes_of
from sim.cost.ops import Choices, ForwardPass
from sim.cost.sampling import GREEDY, Sampler
from sim.cost.shared_prefix import SharedPrefixTimer
from sim.cost.speculation import Guesser, SpeculativeTimer
from sim.cost.step_timer import HostWork, StepPricer
from sim.drafting import Target
from sim.engine_settings import Engine
from sim.presets import EnginePreset
from sim.techniques import KernelSpec, SpeculativeSpec


def choices_of(engine: Engine, preset: EnginePreset, *, beams: bool = False) -> Choices:
    """How an engine does what may be done one way or the other; `beams`: the traffic asks for beam search."""
    sampler = Sampler(**preset.sampler.model_dump(), filters=True) if engine.sampling == "filtered" else GREEDY
    sampler = sampler._replace(beams=beams, on_cpu=engine.sampling_device == "cpu")
    return Choices(sampler, KernelSpec(**engine.kernels).options())


def timer_of(engine: Engine, target: Target, guesser: Guesser | None) -> StepPricer:
    """The timer of a replica; `guesser` guesses what its steps verify."""
    choices = target.choices
    if engine.speculative is not None:
        choices = choices._replace(query_tokens=SpeculativeSpec(**engine.speculative).query_tokens)
    forward = ForwardPass(target.architecture, target.scheme, target.gpu, target.kernels, target.layout, choices)
    host = HostWork(engine.host["step_s"], engine.host["sequence_s"], engine.host["token_s"])
    timer: StepPricer = passes_of(forward, host)
    if engine.shared_prefix_attention != "none":
        timer = SharedPrefixTimer(timer)
    return timer if guesser is None else SpeculativeTimer(timer, guesser)
