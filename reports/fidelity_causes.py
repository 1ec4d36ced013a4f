"""What is known of the causes of large errors, by the runs that have them; the first that fits is named."""

# ruff: noqa: E501 - a cause is one line

from __future__ import annotations

from collections.abc import Callable

from sim.validation.serving.score import Scored

Test = Callable[[Scored], bool]


def _is(**wanted: str) -> Test:
    """Whether labels (`model`, `engine`, `gpu`, `table`) hold the words given."""
    return lambda line: all(word.lower() in str(line.labels.get(key, "")).lower() for key, word in wanted.items())


def _both(*tests: Test) -> Test:
    return lambda line: all(test(line) for test in tests)


def _ttft(line: Scored) -> bool:
    return line.metric.startswith("ttft")


def _alike(line: Scored) -> bool:
    """Whether its prompts are all of one, short length."""
    traffic = line.case.traffic
    return traffic is not None and int(traffic.input_tokens.max()) < 200


def _clients(most: int) -> Test:
    return lambda line: line.case.nominal.concurrency >= most


CAUSES: tuple[tuple[Test, str], ...] = (
    (_is(engine="sglang", gpu="A100", model="gpt-oss"), "12 minutes for a benchmark of 40 s elsewhere: kernels fell back"),
    (_is(engine="sglang", model="Qwen3.5"), "a prompt of a thousand tokens stalls SGLang's decodes by 170 ms whatever the load: "
     "start of its linear-attention kernels, not priced"),
    (_is(engine="sglang 0.5.8"), "a queue for KV blocks that the simulated server does not have: the memory fraction is not stated"),
    (_both(_is(engine="sglang 0.5.6"), _ttft), "clients neither in step nor free of each other, and from 400 on about 19,000 "
     "streamed tokens/s saturate the front end, which is not modelled as a queue"),
    (_both(_is(engine="trtllm 1.0.0rc3"), _ttft, _clients(64)), "about 9,000 streamed tokens/s saturate the server's front end: "
     "first tokens queue behind others, and TTFT grows with the answers"),
    (_both(_is(engine="trtllm 1.0.0rc3", model="8B"), _ttft), "TTFT grows by one inter-arrival time: the server seems to have a "
     "seat less than clients"),
    (_both(_is(engine="trtllm 1.0.0rc3"), _clients(64)), "streaming of tokens saturates the front end at high tensor parallelism"),
    (_both(_is(engine="trtllm 1.0.0rc3"), _ttft), "the cost of a request was fitted on the other of the campaign's two models, which waits for a seat"),
    (_is(engine="trtllm 1.0.0rc3"), "decodes of few sequences on many GPUs: host work of a step is not hidden as well as elsewhere"),
    (_is(engine="trtllm", model="gpt-oss"), "MXFP4 experts: TensorRT-LLM's kernels are twice as fast as the measured ones on "
     "one GPU and no faster on eight, where its host work grows with the batch"),
    (_both(_is(engine="trtllm", model="DeepSeek"), _ttft), "prompts wait for each other in a front end that is fitted on another model"),
    (_is(engine="vllm 0.16", model="MiniMax"), "vLLM 0.16 took 3 to 5 ms per step more for this model than 0.18 did: unfused kernels"),
    (_is(model="MiniMax"), "block-scaled FP8 experts and QK norms over all heads; left out, no other model shows what they cost"),
    (_is(model="GLM-5"), "sparse attention: the indexer and sparse prefill kernels are priced from memory, not measured"),
    (_is(model="gpt-oss", engine="vllm 0.11"), "MXFP4 on A100 expands to 16 bit; its kernel was never measured"),
    (_is(model="FP8", gpu="A100"), "FP8 weights expanded to 16 bit on A100 (Marlin): no kernel measurements"),
    (_is(model="AWQ"), "4-bit weights at large batches: dequantisation costs more than the measured kernel of another library"),
    (_both(_is(table="bench_serve", model="DeepSeek"), _alike), "a thousand prompts of 128 tokens take 22 s where SGLang takes 6: likely kernels that are compiled at the first requests"),
    (_is(table="bench_serve", engine="TensorRT", model="DeepSeek"), "half the speed of SGLang and vLLM on the same node: options of the server are not stated"),
    (_both(_is(table="bench_serve"), _ttft), "prompts that all arrive at once: TTFT is where they stand in the queue"),
    (_is(table="offline", model="Maverick"), "attention data parallelism of unknown split"),
    (_is(table="offline", model="Scout"), "attention data parallelism of unknown split"),
    (_is(table="offline", gpu="A100"), "engine options were tuned for each point, and which is not said"),
    (_is(table="quantisation"), "formats without kernel measurements on this GPU"),
    (_is(table="online"), "lengths are means of an unknown distribution, times whole milliseconds"),
)  # fmt: skip


def cause(line: Scored) -> str:
    """The diagnosed cause, or that there is none."""
    return next((text for test, text in CAUSES if test(line)), "not understood")
