"""A machine with NVIDIA's GPUs that computes on the CPU: the kernels run in Triton's interpreter.

`driver.c` stands in for libcuda.so.1 and `runtime.c` for a runtime with CUDA; between them is the operators' library as
it is served with, except that what it has taken in is not machine code: it says which kernel it is, with which
constants. A launch comes here, and reads its arguments as a device would, by the kernel's own parameters.
"""
