// A stand-in for a runtime with CUDA, around the one for the CPU: what the library registers for CUDA is registered for
// the CPU, and device and stream are as the tests say. The library itself is the one that is served with.
#include <dlfcn.h>
#include <string.h>

#include "onnxruntime_c_api.h"

#define CALL __attribute__((visibility("default")))

static const OrtApi* real;
static OrtApi changed;
static char library[4096];
static int device;
static void* stream;

CALL OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);
CALL void fake_runtime(const char* path, int its_device, void* its_stream);

void fake_runtime(const char* path, int its_device, void* its_stream) {
  strncpy(library, path, sizeof library - 1);
  device = its_device;
  stream = its_stream;
}

static const char* on_cpu(const OrtCustomOp* op) {
  (void)op;
  return "CPUExecutionProvider";
}

static OrtStatus* add(OrtCustomOpDomain* domain, const OrtCustomOp* op) {
  if (strcmp(op->GetExecutionProviderType(op), "CUDAExecutionProvider") != 0) return NULL;
  ((OrtCustomOp*)op)->GetExecutionProviderType = on_cpu;
  return real->CustomOpDomain_Add(domain, op);
}

static OrtStatus* device_of(const OrtMemoryInfo* memory, int* its) {
  (void)memory;
  *its = device;
  return NULL;
}

static OrtStatus* stream_of(const OrtKernelContext* context, void** its) {
  (void)context;
  *its = stream;
  return NULL;
}

static const OrtApi* api_of(uint32_t version) { return version == ORT_API_VERSION ? &changed : real; }
static const char* version_string(void) { return "fake"; }

OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  static const OrtApiBase changed_base = {api_of, version_string};
  real = base->GetApi(ORT_API_VERSION);
  changed = *real;
  changed.CustomOpDomain_Add = add;
  changed.MemoryInfoGetId = device_of;
  changed.KernelContext_GetGPUComputeStream = stream_of;
  void* opened = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (opened == NULL) return real->CreateStatus(ORT_FAIL, dlerror());
  OrtStatus* (*its)(OrtSessionOptions*, const OrtApiBase*);
  *(void**)&its = dlsym(opened, "RegisterCustomOps");
  return its(options, &changed_base);
}
