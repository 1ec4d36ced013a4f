"""What encoding images costs: FLOPs by hand, and steps with images in front of their prompts."""

from __future__ import annotations

import pytest

from sim.cost.ops import ForwardPass
from sim.cost.roofline import DatasheetKernels
from sim.cost.shape import RunShape
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.cost.vision import VisionEncoder
from sim.cost.vision_timer import VisionTimer
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.quantization import QuantScheme

GPU = load_gpu("h100-sxm")
LLAVA, QWEN25 = "llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2.5-VL-7B-Instruct"


def encoder(model: str, size: tuple[int, int], tp: int = 1) -> VisionEncoder:
    tower = load_model(model).vision
    assert tower is not None
    return VisionEncoder(tower, size, DatasheetKernels(GPU), "bf16", tp)


def timer(model: str, size: tuple[int, int] = (336, 336)) -> VisionTimer:
    architecture = load_model(model)
    forward = ForwardPass(architecture, QuantScheme.unquantised(architecture), GPU, DatasheetKernels(GPU))
    return VisionTimer(RooflineStepTimer(forward, HostWork(1e-4)), encoder(model, size))


def flops(encode: VisionEncoder, images: int) -> float:
    return sum(op.calls * op.cost.flops for op in encode.encode(images))


def test_flops_of_a_clip_tower_by_hand() -> None:
    """LLaVA: 577 rows through 23 layers of 12 x 1024^2, attention over all pairs, 576 tokens through the projector."""
    rows, hidden = 577, 1024
    layers = 23 * (2 * rows * 12 * hidden**2 + 4 * rows**2 * hidden)
    patches, projector = 2 * rows * 3 * 14**2 * hidden, 2 * 576 * (hidden * 4096 + 4096**2)
    assert flops(encoder(LLAVA, (500, 900)), 1) == layers + patches + projector


def test_windows_see_less_than_whole_images() -> None:
    """Qwen2.5-VL: 4 of 32 layers see the whole image, the others windows of 64 patches (arXiv 2502.13923)."""
    attention = [op for op in encoder(QWEN25, (1024, 768)).encode(1) if op.name == "vision attention"]
    assert [(op.calls, op.cost.flops) for op in attention] == [
        (4, 4.0 * 3996**2 * 1280),
        (28, 4.0 * 3996 * 64 * 1280),
    ]


def test_images_are_encoded_together() -> None:
    """Four images take four times the FLOPs of one, and less than four times its time."""
    encode = encoder(LLAVA, (336, 336))
    one, four = (sum(op.seconds for op in encode.encode(n)) for n in (1, 4))
    assert flops(encode, 4) == 4 * flops(encode, 1)
    assert one < four < 4 * one


def test_tensor_parallelism_divides_the_layers_and_adds_reduces() -> None:
    """On two GPUs each does half of the layers' work, and two all-reduces per layer join it."""
    one, two = (encoder(QWEN25, (1024, 768), tp).encode(2) for tp in (1, 2))
    of = {op.name: op for op in two}
    for op in one:
        if op.name in ("vision qkv", "vision up", "vision down"):
            assert of[op.name].cost.flops == op.cost.flops / 2
    assert of["vision all-reduce"].calls == 64 and "vision all-reduce" not in {op.name for op in one}


def test_a_step_lasts_longer_by_its_images() -> None:
    """The encoder's time stands in front of the step that begins a prompt with images, and of no other."""
    priced = timer(LLAVA)
    shape = RunShape(8, 8000, [(0, 700)])
    plain = priced.run(shape, 1).total_ps
    shape.images = 1
    encoding = sum(op.seconds for op in encoder(LLAVA, (336, 336)).encode(1))
    assert priced.run(shape, 1).total_ps - plain == pytest.approx(encoding * 1e12, abs=1)
    shape.chunks = ()
    assert priced.run(shape, 10).total_ps == timer(LLAVA).run(RunShape(8, 8000), 10).total_ps


def test_the_operators_of_a_step_add_up() -> None:
    """What `explain` lists is what `run` takes, to the padding of decodes to graph sizes."""
    priced = timer(LLAVA)
    shape = RunShape(8, 8000, [(0, 704)])
    shape.images = 2
    seconds = sum(op.seconds for op in priced.explain(shape))
    assert seconds == pytest.approx(priced.run(shape, 1).total_ps / 1e12, rel=1e-3)


@pytest.mark.parametrize("images", [0, 1, 2, 7])
def test_a_step_s_time_tells_its_images(images: int) -> None:
    """Recorded steps count no images; how long they took says how many there were."""
    priced = timer(QWEN25, (1024, 768))
    shape = RunShape(4, 4000, [(0, 1000), (0, 1100)])
    shape.images = images
    duration_ps = priced.run(shape, 1).total_ps
    shape.images = 0
    assert priced.images_in(shape, duration_ps) == images
