"""Hardware-selection arithmetic done by hand, as a person with a datasheet and a pocket calculator would."""

import pytest

from sim.catalog import names
from sim.specs.hardware import DEFAULT_EFFICIENCY, Gpu, load_gpu

WEIGHT_BYTES = 16e9  # 8 billion parameters of 2 bytes
PARAMETERS = 8e9
SEQUENCES = 16


@pytest.fixture
def v100_pcie() -> Gpu:
    """The PCIe V100, whose tensor rate is 112 TFLOP/s: everything else as on the SXM2 board."""
    rate = {"value": "112 TFLOP/s", "source": "LLM-Viewer hardware table"}
    return load_gpu("v100-sxm-32gb").replace(tensor_flops={"fp16": rate})


def read_weights_s(gpu: Gpu) -> float:
    return WEIGHT_BYTES / (gpu.memory_bandwidth_bytes_per_s * DEFAULT_EFFICIENCY.gemm.bandwidth_fraction)


def multiply_s(gpu: Gpu, tokens: int) -> float:
    peak = gpu.peak_flops("fp16") * DEFAULT_EFFICIENCY.gemm.tensor_fraction
    return 2 * PARAMETERS * tokens / peak


def test_reading_the_weights(v100_pcie: Gpu) -> None:
    """16 GB of weights at 80 % of a V100's 900 GB/s take 22.2 ms, whatever the batch."""
    assert read_weights_s(v100_pcie) == pytest.approx(22.2e-3, abs=0.05e-3)


def test_multiplying_the_batch(v100_pcie: Gpu) -> None:
    """2 x 8e9 x 16 FLOP at 70 % of 112 TFLOP/s take 3.3 ms."""
    assert multiply_s(v100_pcie, SEQUENCES) == pytest.approx(3.3e-3, abs=0.05e-3)


def test_the_larger_time_wins(v100_pcie: Gpu) -> None:
    """Reading takes longer than multiplying, so a decode step of 16 lasts 22.2 ms and yields 720 tokens/s."""
    step_s = max(read_weights_s(v100_pcie), multiply_s(v100_pcie, SEQUENCES))
    assert step_s == read_weights_s(v100_pcie)
    assert SEQUENCES / step_s == pytest.approx(720, rel=1e-3)


def test_the_ridge_in_sequences(v100_pcie: Gpu) -> None:
    """Multiplying overtakes reading at 109 sequences: the ridge point times the two efficiencies (2 bytes, 2 FLOP)."""
    efficiency = DEFAULT_EFFICIENCY.gemm
    ridge = v100_pcie.ridge_point("fp16") * efficiency.tensor_fraction / efficiency.bandwidth_fraction
    assert ridge == pytest.approx(108.9, abs=0.1)
    assert multiply_s(v100_pcie, 108) < read_weights_s(v100_pcie) < multiply_s(v100_pcie, 109)


# Device memory over PCIe. Definition: peak memory bandwidth / PCIe peak in ONE direction (x16 slot of the card's own
# generation, before protocol overhead). Adding both directions of PCIe halves each figure.
MEMORY_OVER_PCIE = {
    "v100-sxm-16gb": 56.3, "v100-sxm-32gb": 56.3,
    "a100-sxm-40gb": 48.6, "a100-sxm-80gb": 63.7, "a100-pcie-80gb": 60.5,
    "h100-pcie": 31.3, "h100-sxm": 52.3, "h200-sxm": 75.0,
    "a40": 21.8, "l40s": 27.0, "l4": 9.4, "rtx-4090": 31.5, "rtx-pro-6000": 28.0,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MEMORY_OVER_PCIE))
def test_device_memory_against_pcie(name: str) -> None:
    """One way, memory is 31 to 75 times as fast as PCIe on HBM cards and 9 to 32 times on GDDR cards."""
    gpu = load_gpu(name)
    assert gpu.memory_bandwidth_bytes_per_s / gpu.pcie_bytes_per_s == pytest.approx(MEMORY_OVER_PCIE[name], abs=0.06)


def test_every_profile_has_its_ratio() -> None:
    """The table above speaks of all shipped profiles of GPUs."""
    gpus = [name for name in names("hardware") if load_gpu(name).generation != "cpu"]
    assert sorted(MEMORY_OVER_PCIE) == gpus


def test_thirty_to_forty_times_pcie() -> None:
    """The rule of thumb "30 to 40 times PCIe": one way it holds for two cards, both ways for three.

    Counting both directions of PCIe (32, 64, 128 GB/s for generations 3, 4, 5), V100, A100 40 GB and H100 SXM fall a
    little short of 30; one way, every HBM card but the H100 PCIe is above 40.
    """
    one_way = {n for n, ratio in MEMORY_OVER_PCIE.items() if 30 <= ratio <= 40}
    both_ways = {n for n, ratio in MEMORY_OVER_PCIE.items() if 30 <= ratio / 2 <= 40}
    assert one_way == {"h100-pcie", "rtx-4090"}
    assert both_ways == {"a100-sxm-80gb", "a100-pcie-80gb", "h200-sxm"}


def test_kv_of_a_14b_model_without_grouped_heads() -> None:
    """A 14B-class model with 40 layers and 40 full heads of 128 keeps 0.8 MB of KV per token in 16 bit."""
    kv_bytes_per_token = 2 * 40 * 40 * 128 * 2
    assert kv_bytes_per_token == 819_200
    assert 0.7e6 <= kv_bytes_per_token <= 1e6


def test_that_kv_against_pcie_and_memory(v100_pcie: Gpu) -> None:
    """2048 tokens of that KV are 1.68 GB: 1.9 ms to read on the card, 105 ms to fetch over PCIe 3."""
    kv_bytes = 2048 * 819_200
    assert kv_bytes / v100_pcie.memory_bandwidth_bytes_per_s == pytest.approx(1.86e-3, rel=0.01)
    assert kv_bytes / v100_pcie.pcie_bytes_per_s == pytest.approx(104.9e-3, rel=0.01)


@pytest.mark.parametrize(
    ("name", "fmt", "ridge"),
    [("a100-sxm-40gb", "bf16", 200.6), ("a100-sxm-80gb", "bf16", 153.0), ("h100-sxm", "bf16", 295.3),
     ("h200-sxm", "bf16", 206.1), ("h100-sxm", "fp8", 590.7), ("v100-sxm-32gb", "fp16", 138.9)],
)  # fmt: skip
def test_ridge_points(name: str, fmt: str, ridge: float) -> None:
    """FLOP per byte where each card turns from memory- to compute-bound."""
    assert load_gpu(name).ridge_point(fmt) == pytest.approx(ridge, abs=0.1)
