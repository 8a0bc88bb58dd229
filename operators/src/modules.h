// Kernels on devices: which code is right for one, and the modules that are loaded.
#ifndef DAT_MODULES_H
#define DAT_MODULES_H

#include "driver.h"
#include "kernels.h"

// Code that is on a device, for all the nodes that launch it.
typedef struct Module Module;

// Returns the code of a kernel that the device can run; NULL with what is there and what it would take.
const Image* image_for(const Specialization* kernel, const Device* device, Report* why);

// Loads code onto a device, or shares what is loaded there; NULL with the reason. Not for while a graph runs.
Module* acquire_module(const Driver* driver, const Device* device, const Image* image, Report* why);

CudaFunction function_of(const Module* module);

// Unloads the code with its last user.
void release_module(Module* module);

#endif
