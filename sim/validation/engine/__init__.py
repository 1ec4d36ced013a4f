"""A small real serving engine on random weights, to hold the whole simulator against.

It does what serving engines do and no more: paged KV, continuous batching under a token budget with chunked prompts,
preemption by recomputation, captured graphs for decode, greedy sampling. `scheduler`, `traffic` and `serve` are plain
Python; `model` and `runner` need torch and Triton.
"""
