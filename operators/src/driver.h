// The part of NVIDIA's driver that is used here, found when it is needed: a machine without one can load the library.
//
// The declarations stand for those of cuda.h, which belongs to a toolkit that is not needed to build. Names and numbers
// are of the driver's binary interface, which does not change.
#ifndef DAT_DRIVER_H
#define DAT_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "report.h"

typedef int CudaResult;
typedef int CudaDevice;
typedef struct CUctx_st* CudaContext;
typedef struct CUmod_st* CudaModule;
typedef struct CUfunc_st* CudaFunction;
typedef struct CUstream_st* CudaStream;

enum { CUDA_SUCCESS = 0 };
enum {
  COMPUTE_CAPABILITY_MAJOR = 75,
  COMPUTE_CAPABILITY_MINOR = 76,
  MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
  MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,  // of a function
};

typedef struct {
  CudaResult (*init)(unsigned int flags);
  CudaResult (*driver_version)(int* version);
  CudaResult (*error_name)(CudaResult, const char** name);
  CudaResult (*error_string)(CudaResult, const char** description);
  CudaResult (*device_count)(int* count);
  CudaResult (*device)(CudaDevice* device, int index);
  CudaResult (*device_attribute)(int* value, int attribute, CudaDevice device);
  CudaResult (*retain_context)(CudaContext* context, CudaDevice device);
  CudaResult (*release_context)(CudaDevice device);
  CudaResult (*push_context)(CudaContext context);
  CudaResult (*pop_context)(CudaContext* context);
  CudaResult (*load_module)(CudaModule* module, const void* code);
  CudaResult (*unload_module)(CudaModule module);
  CudaResult (*find_function)(CudaFunction* function, CudaModule module, const char* name);
  CudaResult (*load_function)(CudaFunction function);  // NULL before CUDA 12.4, where finding it loads it
  CudaResult (*set_function_attribute)(CudaFunction function, int attribute, int value);
  CudaResult (*launch)(CudaFunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                       unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                       CudaStream stream, void** parameters, void** extra);
} Driver;

// What is known of a device before anything is loaded onto it.
typedef struct {
  int index, capability, driver_version;
  CudaDevice handle;
} Device;

// Returns the driver, ready for use; NULL where there is none, and says so. It is found once in a process.
const Driver* find_driver(Report* why);

// Returns whether a call succeeded, and else says which it was and the driver's name of the error.
bool succeeded(const Driver* driver, CudaResult result, const char* call, Report* why);

// Finds a device by the number that the process sees it by; false with the reason.
bool find_device(const Driver* driver, int index, Device* device, Report* why);

#endif
