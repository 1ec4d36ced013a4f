"""Measuring kernels on this machine's GPU: what to measure, how to time it, and a record that survives interruption.

Only what touches the GPU imports torch; nothing here needs more than the standard library, torch, Triton and numpy, so
that a bare machine can measure what another one fits.
"""
