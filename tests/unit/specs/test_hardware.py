import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import catalog
from sim.catalog import names
from sim.documents import load_yaml, parse_yaml, validate
from sim.errors import ConfigError
from sim.specs.hardware import DEFAULT_EFFICIENCY, Gpu, load_gpu

SHIPPED = [
    "a100-pcie-80gb", "a100-sxm-40gb", "a100-sxm-80gb", "a40", "h100-pcie", "h100-sxm", "h200-sxm",
    "l4", "l40s", "rtx-4090", "rtx-pro-6000", "v100-sxm-16gb", "v100-sxm-32gb",
]  # fmt: skip

# Dense FP16 FLOP per clock and SM: tensor cores per SM x multiply-adds per core x 2.
FP16_FLOP_PER_CLOCK_AND_SM = {"7.0": 1024, "8.0": 2048, "8.6": 1024, "8.9": 1024, "9.0": 4096, "12.0": 1024}
RATE_RELATIVE_TO_FP16 = {"tf32": 0.5, "fp16": 1, "bf16": 1, "fp8": 2, "int8": 2, "int4": 4, "fp4": 4}

MINIMAL = """\
name: my-gpu
tensor_flops: {fp16: 100 TFLOP/s}
memory_bytes: 32 GiB
memory_bandwidth_bytes_per_s: 1000 GB/s
sm_count: 100
links: {pcie_bytes_per_s: 32 GB/s}
"""


def read(text: str) -> Gpu:
    return validate(Gpu, parse_yaml(text, Path("my-gpu.yaml")))


@pytest.fixture(params=SHIPPED)
def gpu(request: pytest.FixtureRequest) -> Gpu:
    return load_gpu(request.param)


class TestShippedProfiles:
    def test_all_announced_profiles_ship(self) -> None:
        """Every GPU the documentation promises has a profile that can be found by name."""
        assert set(SHIPPED) <= set(names("hardware"))

    def test_name_is_the_file_name(self, gpu: Gpu, request: pytest.FixtureRequest) -> None:
        """A profile calls itself what a scenario calls it."""
        assert gpu.name == request.node.callspec.params["gpu"]

    def test_every_number_has_a_source(self, gpu: Gpu) -> None:
        """No number of a shipped profile comes without a statement of where it was read."""
        sources = gpu.sources()
        assert {"memory_bandwidth_bytes_per_s", "links.pcie_bytes_per_s", "price_per_hour_usd"} <= set(sources)
        assert [key for key, source in sources.items() if not source.strip() or source == "not stated"] == []

    def test_rates_are_dense(self, gpu: Gpu) -> None:
        """No rate exceeds what the SMs can multiply at boost clock, so none was quoted with 2:4 sparsity."""
        per_clock = FP16_FLOP_PER_CLOCK_AND_SM[gpu.compute_capability]
        for fmt in gpu.formats:
            # GeForce halves floating point with fp32 accumulation, but not int8 and int4.
            halved = gpu.name == "rtx-4090" and not fmt.startswith("int")
            dense = gpu.sm_count * gpu.boost_clock_hz * per_clock * RATE_RELATIVE_TO_FP16[fmt] * (0.5 if halved else 1)
            assert 0.85 * dense <= gpu.peak_flops(fmt) <= 1.01 * dense, fmt

    def test_a_sparse_figure_would_be_noticed(self) -> None:
        """The dense bound has teeth: H100's headline 1979 TFLOP/s of fp16 lies above it."""
        gpu = load_gpu("h100-sxm")
        assert gpu.sm_count * gpu.boost_clock_hz * 4096 * 1.01 < 1979e12

    def test_visible_memory_is_a_little_less_than_sold(self, gpu: Gpu) -> None:
        """The driver shows at most the memory on the box, and at least 93 % of it (ECC on GDDR takes a sixteenth)."""
        assert 0.93 * gpu.memory_bytes <= gpu.memory_visible_bytes <= gpu.memory_bytes

    def test_idle_power_with_a_context_is_below_the_limit(self, gpu: Gpu) -> None:
        """An idle server draws more than an empty card and less than half of what the board may draw."""
        assert gpu.idle_watts < gpu.loaded_idle_watts < 0.5 * gpu.tdp_watts

    def test_nvlink_beats_pcie_where_present(self, gpu: Gpu) -> None:
        """Inside a node the group uses NVLink when there is one, PCIe otherwise."""
        assert gpu.link_bytes_per_s(2) == (gpu.nvlink_bytes_per_s or gpu.pcie_bytes_per_s)
        assert gpu.link_bytes_per_s(2) >= gpu.pcie_bytes_per_s

    @pytest.mark.parametrize(
        ("name", "missing"),
        [
            ("v100-sxm-32gb", ["bf16", "fp8", "int8", "int4", "fp4"]),
            ("v100-sxm-16gb", ["bf16", "fp8", "int8", "int4", "fp4"]),
            ("a100-sxm-80gb", ["fp8", "fp4"]),
            ("a100-sxm-40gb", ["fp8", "fp4"]),
            ("a100-pcie-80gb", ["fp8", "fp4"]),
            ("a40", ["fp8", "fp4"]),
            ("h100-sxm", ["int4", "fp4"]),
            ("h100-pcie", ["int4", "fp4"]),
            ("h200-sxm", ["int4", "fp4"]),
            ("l40s", ["fp4"]),
            ("l4", ["fp4"]),
            ("rtx-4090", ["fp4"]),
            ("rtx-pro-6000", ["int4"]),
        ],
    )
    def test_formats_per_chip(self, name: str, missing: list[str]) -> None:
        """A chip lists exactly the formats its tensor cores multiply: no bf16 on Volta, no fp8 before Ada."""
        gpu = load_gpu(name)
        relevant = {"fp16", "bf16", "fp8", "int8", "int4", "fp4"}
        assert relevant - set(gpu.formats) == set(missing)

    @pytest.mark.parametrize(
        ("name", "fmt", "peak", "bandwidth", "visible_mib"),
        [
            ("h100-sxm", "bf16", 989.4e12, 3350e9, 81559),
            ("h200-sxm", "fp8", 1978.9e12, 4800e9, 143771),
            ("a100-sxm-80gb", "bf16", 312e12, 2039e9, 81920),
            ("l40s", "fp8", 733e12, 864e9, 46068),
            ("rtx-4090", "fp16", 165.2e12, 1008e9, 24564),
            ("v100-sxm-32gb", "fp16", 125e12, 900e9, 32768),
        ],
    )
    def test_figures(self, name: str, fmt: str, peak: float, bandwidth: float, visible_mib: int) -> None:
        """Published dense rates, bandwidths and nvidia-smi sizes arrive in SI units."""
        gpu = load_gpu(name)
        assert gpu.peak_flops(fmt) == pytest.approx(peak)
        assert gpu.memory_bandwidth_bytes_per_s == pytest.approx(bandwidth)
        assert gpu.memory_visible_bytes == visible_mib * 2**20


class TestGpu:
    def test_default_dtype_follows_the_chip(self) -> None:
        """16-bit models run in bf16 where the chip multiplies it, in fp16 on Volta."""
        assert load_gpu("h100-sxm").default_dtype == "bf16"
        assert load_gpu("v100-sxm-16gb").default_dtype == "fp16"

    def test_ridge_point(self) -> None:
        """An H100 multiplies 295 bf16 FLOP in the time it reads one byte."""
        assert load_gpu("h100-sxm").ridge_point("bf16") == pytest.approx(295.3, abs=0.1)

    def test_missing_format_is_refused_with_the_formats_there_are(self) -> None:
        """Asking a V100 for bf16 names the chip and what it multiplies instead."""
        with pytest.raises(ConfigError, match=r"v100-sxm-16gb.*fp16") as caught:
            load_gpu("v100-sxm-16gb").peak_flops("bf16")
        assert caught.value.choices == ["fp16"]

    def test_groups_beyond_a_node_use_the_network(self) -> None:
        """Sixteen H100s do not share NVLink: the group's link is each GPU's part of the fabric."""
        gpu = load_gpu("h100-sxm")
        assert gpu.link_bytes_per_s(8) == 450e9
        assert gpu.link_bytes_per_s(16) == 50e9

    @pytest.mark.parametrize("n_gpus", [1, 0, -3])
    def test_a_single_gpu_has_no_link(self, n_gpus: int) -> None:
        """A link needs two ends."""
        with pytest.raises(ConfigError, match="n_gpus"):
            load_gpu("h100-sxm").link_bytes_per_s(n_gpus)

    def test_replace_checks_like_a_profile(self) -> None:
        """A changed copy reads units and refuses unknown keys exactly as a file does; the original stays."""
        gpu = load_gpu("h100-sxm")
        faster = gpu.replace(memory_bandwidth_bytes_per_s={"value": "4 TB/s", "source": "what if"})
        assert faster.memory_bandwidth_bytes_per_s == 4e12
        assert faster.sources()["memory_bandwidth_bytes_per_s"] == "what if"
        assert gpu.memory_bandwidth_bytes_per_s == 3350e9
        with pytest.raises(ConfigError, match="memory_bandwidth_bytes_per_s"):
            gpu.replace(memory_bandwidth=4e12)

    def test_survives_pickling_and_json(self, gpu: Gpu) -> None:
        """Worker processes and saved runs get the same GPU, sources included."""
        for copy in (pickle.loads(pickle.dumps(gpu)), Gpu.model_validate_json(gpu.model_dump_json())):
            assert copy == gpu
            assert copy.sources() == gpu.sources()

    def test_schema_shows_assumed_values(self) -> None:
        """The JSON schema of a profile names the required keys and the value assumed for each other."""
        schema = Gpu.model_json_schema()
        required = {"name", "tensor_flops", "memory_bytes", "memory_bandwidth_bytes_per_s", "sm_count", "links"}
        assert set(schema["required"]) == required
        assert schema["properties"]["l2_bytes"]["default"] == 40 * 2**20


class TestOwnProfile:
    def test_six_keys_are_enough(self) -> None:
        """A new GPU needs its name, rates, memory, SM count and a link; everything else is assumed and says so."""
        gpu = read(MINIMAL)
        assert gpu.memory_visible_bytes == gpu.memory_bytes == 32 * 2**30
        assert gpu.gpus_per_node == 8
        assert gpu.nvlink_bytes_per_s is None
        assert gpu.price_per_hour_usd is None
        assert gpu.sources()["l2_bytes"].startswith("default")

    def test_loads_from_a_path(self, tmp_path: Path) -> None:
        """A file of one's own is named by its path, from here or beside the scenario that mentions it."""
        (tmp_path / "my-gpu.yaml").write_text(MINIMAL)
        assert load_gpu(tmp_path / "my-gpu.yaml").name == "my-gpu"
        assert load_gpu("my-gpu.yaml", beside=tmp_path / "scenario.yaml").name == "my-gpu"

    def test_unknown_name_offers_the_nearest(self) -> None:
        """A misspelt GPU is answered with the one that was meant, first."""
        with pytest.raises(ConfigError) as caught:
            load_gpu("h100-sxn")
        assert caught.value.choices[0] == "h100-sxm"

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ("sm_count", "sm_cuont", r"my-gpu\.yaml:5: sm_cuont: unknown key \(valid, nearest first: sm_count"),
            ("1000 GB/s", "1000 GB", r"my-gpu\.yaml:4: memory_bandwidth_bytes_per_s: .*bytes/s such as '3350 GB/s'"),
            ("1000 GB/s", "-1 GB/s", r"memory_bandwidth_bytes_per_s: .*positive"),
            ("32 GiB", "{value: 32 GiB, sorce: x}", r"memory_bytes: unknown key 'sorce'"),
            ("32 GiB", "{value: 32 GiB, source: ''}", r"memory_bytes: the source of a fact"),
            ("32 GiB", "{source: x}", r"memory_bytes: a fact needs a value"),
            ("32 GiB", "[32]", r"memory_bytes: expected bytes"),
            ("32 GiB", "true", r"memory_bytes: .*expected bytes"),
            ("sm_count: 100", "sm_count: 100.5", r"sm_count: .*whole number"),
            ("sm_count: 100", "sm_count: many", r"sm_count: .*whole number"),
            ("fp16", "fp17", r"tensor_flops\.fp17: .*nearest first: fp16"),
            ("{fp16: 100 TFLOP/s}", "{}", r"tensor_flops: "),
            ("pcie_bytes", "pci_bytes", r"links\.pci_bytes_per_s: unknown key .*pcie_bytes_per_s"),
            ("sm_count: 100\n", "", r"sm_count: is required but missing"),
        ],
    )
    def test_mistakes_are_answered_in_one_line(self, old: str, new: str, told: str) -> None:
        """Each wrong key, unit or value is refused with file, key and what was expected."""
        with pytest.raises(ConfigError, match=told) as caught:
            read(MINIMAL.replace(old, new))
        assert "\n" not in str(caught.value)

    def test_visible_memory_cannot_exceed_the_card(self) -> None:
        """Sold size in GB and driver size in MiB mixed up are noticed."""
        with pytest.raises(ConfigError, match="memory_visible_bytes exceeds memory_bytes"):
            read(MINIMAL + "memory_visible_bytes: 33000 MiB\n")

    def test_prices_are_ordered(self) -> None:
        """A low price above the high one is a slip of the pen."""
        with pytest.raises(ConfigError, match="low <= mid <= high"):
            read(MINIMAL + "price_per_hour_usd: {low: 3, mid: 2, high: 4, source: me}\n")

    def test_calibration_block_is_kept_as_written(self) -> None:
        """Fitted parameters travel with the profile untouched."""
        gpu = read(MINIMAL + "calibration: {gemm: {bf16: {tensor_fraction: 0.7}}}\n")
        assert gpu.calibration == {"gemm": {"bf16": {"tensor_fraction": 0.7}}}

    @given(st.floats(min_value=1e-3, max_value=1e6), st.sampled_from([("G", 1e9), ("T", 1e12)]))
    def test_units_scale(self, number: float, prefix: tuple[str, float]) -> None:
        """A rate with a unit and the same rate in bare SI mean the same."""
        with_unit = read(MINIMAL.replace("1000 GB/s", f"{number!r} {prefix[0]}B/s"))
        assert with_unit.memory_bandwidth_bytes_per_s == pytest.approx(number * prefix[1])


class TestEfficiency:
    def test_profiles_without_a_block_use_the_package_constants(self, gpu: Gpu) -> None:
        """The fall-back constants come from one place, unless a profile has its own and says where they come from."""
        written = load_yaml(catalog.find("hardware", gpu.name)).data.get("efficiency")
        assert gpu.efficiency == DEFAULT_EFFICIENCY if written is None else written["source"]

    def test_one_constant_can_be_changed_alone(self) -> None:
        """Writing one constant of one class leaves its neighbours and the other classes at their defaults."""
        gpu = read(MINIMAL + "efficiency: {gemm: {tensor_fraction: 0.6, launch_floor_s: 5 us}, source: my fit}\n")
        assert gpu.efficiency.gemm.tensor_fraction == 0.6
        assert gpu.efficiency.gemm.launch_floor_s == pytest.approx(5e-6)
        assert gpu.efficiency.gemm.bandwidth_fraction == DEFAULT_EFFICIENCY.gemm.bandwidth_fraction
        assert gpu.efficiency.moe == DEFAULT_EFFICIENCY.moe
        assert gpu.sources()["efficiency"] == "my fit"

    @pytest.mark.parametrize(
        ("block", "told"),
        [
            ("{gem: {tensor_fraction: 0.6}}", r"efficiency\.gem: unknown key .*gemm"),
            ("{gemm: {tensor_fration: 0.6}}", r"efficiency\.gemm\.tensor_fration: unknown key .*tensor_fraction"),
            ("{gemm: {tensor_fraction: 1.2}}", r"efficiency\.gemm\.tensor_fraction"),
            ("{gemm: {launch_floor_s: 3 GB}}", r"efficiency\.gemm\.launch_floor_s: .*500 ms"),
        ],
    )
    def test_mistakes_are_answered(self, block: str, told: str) -> None:
        """A fraction above one, a wrong unit or a misspelt class is refused where it stands."""
        with pytest.raises(ConfigError, match=told):
            read(MINIMAL + f"efficiency: {block}\n")
