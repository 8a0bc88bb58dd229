"""ONNX Runtime's operators of the domain `dat`: a small library in C, built from the sources beside this file.

A graph for GPUs does in one operator what takes the standard ones a dozen passes over memory. The library launches the
kernels of `kernels/`, whose machine code is taken into it, on NVIDIA's GPUs. It has a reference of each operator on the
CPU, so that such a graph is computed, and compared with torch, where there is no GPU; `src/operators.h` says what each
takes and gives. It belongs to the server and its version: nothing compiled is ever taken from a model's directory.

    python -m operators                              # for the CPU, where `build.library_path` says
    python -m operators --kernels [VARIANT...]       # for GPUs too
    python -m operators.wheel --output FOLDER ...    # as a wheel, whose Python package is `dat_operators`

Invariants: neither torch nor the exporter is needed to build or to load it; the same sources make the same operators
for every model.
"""

DOMAIN = "dat"
VERSION = 1
"""Of the operators, which graphs name beside the domain."""
