"""One GPU as its datasheet and driver describe it, read from a file in `hardware_profiles/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sim.catalog import file_at, find, folder
from sim.documents import Document, load_yaml, validate
from sim.errors import ConfigError
from sim.specs.efficiency import DEFAULT_EFFICIENCY, Efficiency, LinkEfficiency, OpEfficiency
from sim.specs.facts import (
    DEFAULT,
    Bytes,
    BytesPerSecond,
    Count,
    CountFact,
    Fact,
    FlopsPerSecond,
    Hertz,
    Watts,
)

__all__ = [
    "DEFAULT_EFFICIENCY",
    "CountFact",
    "Efficiency",
    "Fact",
    "Gpu",
    "LinkEfficiency",
    "Links",
    "Node",
    "NumberFormat",
    "OpEfficiency",
    "Price",
    "load_gpu",
]

NumberFormat = Literal["fp16", "bf16", "tf32", "fp8", "int8", "int4", "fp4"]
"""A format that tensor cores multiply. Codebooks (NF4) and weight-only schemes multiply in 16 bit, so are not here."""

Generation = Literal["volta", "turing", "ampere", "ada", "hopper", "blackwell", "cpu", "other"]
Text = Annotated[str, BeforeValidator(lambda raw: str(raw) if isinstance(raw, (int, float)) else raw)]

_FROZEN = ConfigDict(frozen=True, extra="forbid")


def _assumed(fact: Fact | CountFact, description: str) -> Any:
    """A key a profile may leave out; the JSON schema shows the value that is then assumed."""
    return Field(default_factory=lambda: fact, description=description, json_schema_extra={"default": fact + 0})


class Links(BaseModel):
    """What joins a GPU to others and to the host; every rate counts ONE direction (brochures often add both)."""

    model_config = _FROZEN

    pcie_bytes_per_s: BytesPerSecond = Field(description="PCIe to the host: 16 GB/s for gen 3 x16, 32 gen 4, 64 gen 5")
    nvlink_bytes_per_s: BytesPerSecond | None = Field(
        default=None, description="all NVLinks of one GPU together; leave out where there is none"
    )
    network_bytes_per_s: BytesPerSecond = _assumed(
        Fact(12.5e9, DEFAULT),
        "share of the network fabric of one GPU, to other nodes; default 12.5 GB/s (100 Gbit/s)",
    )


class Node(BaseModel):
    """How many GPUs share a chassis, and whether each pair of them has the full NVLink rate."""

    model_config = _FROZEN

    gpus: Count = _assumed(CountFact(8, DEFAULT), "GPUs in one node; default 8")
    all_to_all: bool = Field(
        default=True,
        description="true when NVSwitch gives any pair the full NVLink rate; false for meshes such as DGX-1, where "
        "only a collective over all GPUs reaches it",
    )


class Price(BaseModel):
    """On-demand price of one GPU for one hour, US dollars: the cheap, the usual and the dear end of the market."""

    model_config = _FROZEN

    low: float = Field(gt=0, allow_inf_nan=False)
    mid: float = Field(gt=0, allow_inf_nan=False)
    high: float = Field(gt=0, allow_inf_nan=False)
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Price:
        if not self.low <= self.mid <= self.high:
            raise ValueError(f"prices must satisfy low <= mid <= high, got {self.low}, {self.mid}, {self.high}")
        return self


class Gpu(BaseModel):
    """One GPU: dense tensor rates, memory, links, power and price, in SI units.

    Every number is a `Fact`: it computes like a float and keeps its `.source`. Required in a profile: `name`,
    `tensor_flops`, `memory_bytes`, `memory_bandwidth_bytes_per_s`, `sm_count` and `links.pcie_bytes_per_s`.
    """

    model_config = _FROZEN

    name: str = Field(min_length=1, description="short name, as in `hardware: h100-sxm`")
    vendor_name: str = Field(default="", description="the product's full name")
    generation: Generation = Field(default="other", description="chip family; calibrations are carried over within it")
    compute_capability: Text = Field(default="", description="CUDA compute capability, such as '9.0'")

    tensor_flops: dict[NumberFormat, FlopsPerSecond] = Field(
        min_length=1,
        description="DENSE multiply rate of each format the tensor cores really multiply; headline figures with 2:4 "
        "sparsity are twice these",
    )
    memory_bytes: Bytes = Field(description="memory as sold; 'an 80 GB card' has 80 GiB")
    memory_visible_bytes: Bytes = Field(
        default_factory=lambda data: data["memory_bytes"],
        description="memory.total of nvidia-smi, ECC on; default: memory_bytes, up to 6 % too much on GDDR cards",
    )
    memory_bandwidth_bytes_per_s: BytesPerSecond = Field(description="peak rate of the device memory")
    l2_bytes: Bytes = _assumed(CountFact(40 * 2**20, DEFAULT), "last-level cache; default 40 MiB")
    sm_count: Count = Field(description="streaming multiprocessors enabled")
    shared_memory_per_sm_bytes: Bytes = _assumed(
        CountFact(100 * 2**10, DEFAULT), "largest shared memory of one SM; default 100 KiB"
    )
    vector_lanes_per_sm: Count = _assumed(
        CountFact(64, DEFAULT),
        "32-bit integer operations of one SM (or CPU core) per clock; default 64, as on NVIDIA's chips from Volta to "
        "Hopper (CUDA C++ Programming Guide, table of arithmetic throughput; from memory)",
    )
    boost_clock_hz: Hertz = _assumed(Fact(1.7e9, DEFAULT), "boost clock; default 1.7 GHz")
    tdp_watts: Watts = _assumed(Fact(400.0, DEFAULT), "board power limit; default 400 W")
    idle_watts: Watts = _assumed(Fact(50.0, DEFAULT), "power of the idle card without a CUDA context; default 50 W")
    context_watts: Watts = _assumed(
        Fact(38.0, "arXiv 2605.23918: 26 to 50 W on HBM cards, the middle taken"),
        "what an open CUDA context adds to idle_watts, as on every loaded server; default 38 W",
    )
    links: Links
    node: Node = Field(default_factory=Node)
    price_per_hour_usd: Price | None = Field(default=None, description="leave out to plan without costs")
    efficiency: Efficiency = Field(
        default=DEFAULT_EFFICIENCY, description="fall-back constants where there is no calibration"
    )
    calibration: str | dict[str, Any] | None = Field(
        default=None,
        description="fitted kernel constants by operator class, format and stack, as `calibrate` writes them: a file "
        "beside this profile or among those that ship, or the mapping itself",
    )

    @model_validator(mode="after")
    def _visible_is_at_most_nominal(self) -> Gpu:
        if self.memory_visible_bytes > self.memory_bytes:
            raise ValueError("memory_visible_bytes exceeds memory_bytes: write the size as sold in GiB, not GB")
        return self

    @property
    def formats(self) -> tuple[str, ...]:
        """The number formats the tensor cores multiply, as the profile lists them."""
        return tuple(self.tensor_flops)

    def supports(self, fmt: str) -> bool:
        """Whether the tensor cores multiply this format natively (else it must be widened first)."""
        return fmt in self.tensor_flops

    def peak_flops(self, fmt: str) -> float:
        """Dense tensor peak in FLOP/s (a multiply-add counts two). Raises ConfigError for a format the chip lacks."""
        for name, rate in self.tensor_flops.items():
            if name == fmt:
                return rate
        raise ConfigError(
            f"the tensor cores of {self.name} do not multiply it", key="format", value=fmt, choices=self.formats
        )

    def ridge_point(self, fmt: str) -> float:
        """FLOP per byte at which memory and tensor cores take equally long (Williams et al. 2009, the roofline)."""
        return self.peak_flops(fmt) / self.memory_bandwidth_bytes_per_s

    @property
    def capability(self) -> float | None:
        """NVIDIA's compute capability as a number, 8.6 for "8.6"; None where the profile does not say."""
        try:
            return float(self.compute_capability)
        except ValueError:
            return None

    @property
    def vector_ops_per_s(self) -> float:
        """32-bit operations that the vector units do in a second: what unpacking weights costs is counted in them."""
        return float(self.vector_lanes_per_sm) * float(self.sm_count) * float(self.boost_clock_hz)

    @property
    def default_dtype(self) -> str:
        """bf16 where the chip multiplies it, else fp16: what engines choose for `dtype: auto`."""
        return "bf16" if self.supports("bf16") else "fp16"

    @property
    def nvlink_bytes_per_s(self) -> float | None:
        """NVLink rate of one GPU, one direction; None where there is no NVLink."""
        return self.links.nvlink_bytes_per_s

    @property
    def pcie_bytes_per_s(self) -> float:
        """PCIe rate to the host, one direction."""
        return self.links.pcie_bytes_per_s

    @property
    def network_bytes_per_s(self) -> float:
        """This GPU's share of the network between nodes, one direction."""
        return self.links.network_bytes_per_s

    @property
    def gpus_per_node(self) -> int:
        """How many GPUs one node holds; tensor parallelism beyond it crosses the network."""
        return self.node.gpus

    def link_bytes_per_s(self, n_gpus: int) -> float:
        """One-way rate per GPU in a group of `n_gpus`: NVLink inside a node where present, else PCIe; network beyond.

        Raises ConfigError for a group of fewer than two, which needs no link.
        """
        if n_gpus < 2:
            raise ConfigError("a link joins at least two GPUs", key="n_gpus", value=n_gpus)
        if n_gpus > self.gpus_per_node:
            return self.network_bytes_per_s
        return self.nvlink_bytes_per_s or self.pcie_bytes_per_s

    @property
    def loaded_idle_watts(self) -> float:
        """Power of a server that waits for requests: idle card plus open CUDA context."""
        return self.idle_watts + self.context_watts

    def sources(self) -> dict[str, str]:
        """Who stated each number, by its dotted key; numbers left to the schema say so."""
        return dict(_sources("", self))

    def replace(self, **changes: Any) -> Gpu:
        """A copy with some keys written anew, checked like a profile: `gpu.replace(sm_count=78)`."""
        keys = {name: getattr(self, name) for name in type(self).model_fields}
        return validate(Gpu, Document(None, {**keys, **changes}))


def load_gpu(name_or_path: str | Path, *, beside: Path | None = None) -> Gpu:
    """The GPU of a shipped profile (`h100-sxm`) or of a file of one's own (`./my-gpu.yaml`).

    `beside` is the file that mentions a relative path. Raises ConfigError naming file, line and key.
    """
    path = find("hardware", str(name_or_path), beside=beside)
    document = load_yaml(path)
    gpu = validate(Gpu, document)
    if not isinstance(gpu.calibration, str):
        return gpu
    # A copy of a shipped profile, wherever it was put, still finds the constants that ship.
    with document.blamed(("calibration",)):
        found = (file_at("calibration", str(there / gpu.calibration)) for there in (path.parent, folder("hardware")))
        file = next(filter(None, found), None)
    if file is not None:
        return gpu.model_copy(update={"calibration": str(file)})
    raise document.error(("calibration",), "no such file", value=gpu.calibration)


def _sources(prefix: str, here: Any) -> list[tuple[str, str]]:
    if isinstance(here, (Fact, CountFact)):
        return [(prefix, here.source)]
    if isinstance(here, (Price, Efficiency)):
        return [(prefix, here.source)]
    if isinstance(here, BaseModel):
        children = [(name, getattr(here, name)) for name in type(here).model_fields if name != "calibration"]
    elif isinstance(here, dict):
        children = list(here.items())
    else:
        return []
    return [found for name, value in children for found in _sources(f"{prefix}.{name}".lstrip("."), value)]
