"""Kernels of our own for GPUs, written in Triton and compiled ahead of time.

They are for a library of custom operators that ONNX Runtime loads: neither a model of torch, nor the exporter, nor the
server, and therefore a package of their own. Inputs and outputs are float16 in memory, statistics, softmax and
accumulation are float32. No kernel needs Triton when it runs: `python -m kernels` writes cubins, PTX and an index that
says how each is launched. The server and the exporter never import this package.

Each kernel is in the module of its subject. `kernels.signatures` says what each is launched with, `kernels.table` which
constants the variants need, `kernels.grids` how many programs a launch has, and `kernels.compile` compiles them.
"""
