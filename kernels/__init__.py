"""Kernels of the GPU's own, written in Triton and compiled ahead of time.

They are for a library of custom operators that ONNX Runtime loads: neither a model of torch, nor the exporter, nor the
server, and therefore a package of their own. Inputs and outputs are float16 in memory, statistics, softmax and
accumulation are float32. No kernel needs Triton when it runs: `python -m kernels` writes cubins, PTX and an index that
says how each is launched. The server and the exporter never import this package.

Each kernel has the name of its module's subject; `kernels.table` knows which constants the variants need, and
`kernels.compile` compiles them.
"""
