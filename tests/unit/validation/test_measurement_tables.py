"""Reading measured tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.errors import ConfigError
from sim.validation.tables import is_gpu, read_tables, stack_of

GEMM = "gpu,source,scheme,m,n,k,latency_us,repeat_us\nh100,vllm-0.24.0,bf16,1,512,512,3.2,\n"
ATTENTION = (
    "gpu,source,kv_dtype,batch,seq_len,prefix_len,num_heads,num_kv_heads,head_dim,window,latency_us\n"
    "h100,vllm-0.24.0,bf16,1,1,100,8,8,128,0,10\nh100,vllm-0.24.0,bf16,1,64,0,8,8,128,0,12\n"
)


def written(folder: Path, text: str) -> Path:
    """A table file."""
    path = folder / "table.csv"
    path.write_text(text)
    return path


def test_a_table_is_told_by_its_columns(tmp_path: Path) -> None:
    """The file's name does not matter."""
    assert list(read_tables([written(tmp_path, GEMM)])) == ["gemm"]


def test_attention_rows_of_one_query_token_are_decode(tmp_path: Path) -> None:
    """Prefill and decode tables share their columns; the query length tells them apart."""
    tables = read_tables([written(tmp_path, ATTENTION)])
    assert {name: len(rows) for name, rows in tables.items()} == {"attention_decode": 1, "attention_prefill": 1}


def test_strange_columns_are_refused(tmp_path: Path) -> None:
    """A file that is no known table says what was expected."""
    with pytest.raises(ConfigError, match="columns of no known table"):
        read_tables([written(tmp_path, "a,b\n1,2\n")])


@pytest.mark.parametrize(("wrong", "column"), [(",one,", "m"), (",1,", None)])
def test_a_bad_number_is_refused_with_its_line(tmp_path: Path, wrong: str, column: str | None) -> None:
    """Text where a number belongs is named by line and column; numbers pass."""
    path = written(tmp_path, GEMM.replace(",1,", wrong, 1))
    if column is None:
        assert len(read_tables([path])["gemm"]) == 1
        return
    with pytest.raises(ConfigError, match=r"table.csv:2: m: 'one'"):
        read_tables([path])


def test_times_must_be_positive(tmp_path: Path) -> None:
    """A zero latency is a broken measurement, not a fast kernel."""
    with pytest.raises(ConfigError, match="must be positive"):
        read_tables([written(tmp_path, GEMM.replace("3.2", "0"))])


@pytest.mark.parametrize(
    ("source", "stack"),
    [
        ("vllm-0.24.0", "vllm"),
        ("trtllm-1.3.0rc20", "trtllm"),
        ("llmservingsim-v0", "llmservingsim"),
        ("vidur", "vidur"),
    ],
)
def test_a_stack_is_a_source_without_its_version(source: str, stack: str) -> None:
    """Constants are kept per stack, not per release."""
    assert stack_of(source) == stack


def test_short_labels_mean_the_sxm_card() -> None:
    """Rows of `h100` belong to the SXM profile, not to the PCIe one."""
    assert is_gpu("h100", "h100-sxm") and is_gpu("a100", "a100-sxm-80gb") and is_gpu("l4", "l4")
    assert not is_gpu("h100", "h100-pcie") and not is_gpu("h100", "h200-sxm")
