// The operators on NVIDIA's GPUs: each node launches one of the kernels that are built in.
#ifndef DAT_CUDA_H
#define DAT_CUDA_H

#include "operators.h"
#include "report.h"

typedef struct Launcher Launcher;

// Makes what a node launches on a device: the kernel of its sizes is chosen and loaded. `inputs` are shapes, in which
// the sizes that a kernel is compiled for are known, and the batch need not be. NULL with what is lacking.
Launcher* create_launcher(const Operator* what, const Attributes* attributes, const Tensor* inputs, int device,
                          Report* why);

// Launches the kernel on a stream of the device and returns at once; false with the reason. The device's context is
// current, as ONNX Runtime has it wherever nodes of its CUDA provider run. It calls nothing of the driver but the
// launch, so that a CUDA graph can take it up. The inputs have passed the operator's check.
bool launch(const Launcher* launcher, const Attributes* attributes, const Tensor* inputs, const Tensor* outputs,
            void* stream, Report* why);

void destroy_launcher(Launcher* launcher);

#endif
