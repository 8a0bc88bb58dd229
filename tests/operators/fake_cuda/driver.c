// A stand-in for NVIDIA's driver: the calls that the operators use, on devices whose memory is the machine's own.
//
// Code is text that ends with a zero. A launch hands it to a callback with the very arguments; whoever set that computes.
// Every call is written down, and one of them can be made to fail.
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALL __attribute__((visibility("default")))

enum {
  SUCCESS = 0, INVALID_VALUE = 1, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NOT_FOUND = 500, MAX_DEVICES = 4,
  ALWAYS_SHARED_BYTES = 48 * 1024,
};

typedef int (*Launched)(const char* code, const char* entry, const unsigned* grid, unsigned threads, unsigned shared,
                        const void* stream, void** parameters);

typedef struct { int device; } Context;
typedef struct { Context* context; char* code; } Module;
typedef struct Function { Module* module; char entry[128]; int shared; bool is_loaded; struct Function* next; } Function;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Context contexts[MAX_DEVICES] = {{0}, {1}, {2}, {3}};
static int version, devices, capabilities[MAX_DEVICES], retained[MAX_DEVICES], modules[MAX_DEVICES], optin_bytes;
static char failing[64], calls[1 << 16];
static int failure;
static Launched launched;
static Function* functions;
static __thread Context* stack[8];
static __thread int depth;

// What the tests set and see.

CALL void fake_reset(int its_version, int its_devices, const int* its_capabilities, int its_optin_bytes) {
  version = its_version;
  devices = its_devices;
  memcpy(capabilities, its_capabilities, sizeof(int) * (size_t)its_devices);
  optin_bytes = its_optin_bytes;
  failing[0] = calls[0] = '\0';
}

CALL void fake_launched(Launched callback) { launched = callback; }

CALL void fake_fail(const char* call, int result) {
  snprintf(failing, sizeof failing, "%s", call);
  failure = result;
}

CALL const char* fake_calls(void) { return calls; }
CALL void fake_forget_calls(void) { calls[0] = '\0'; }
CALL int fake_modules(int device) { return modules[device]; }
CALL int fake_retained(int device) { return retained[device]; }
CALL int fake_depth(void) { return depth; }

// The driver.

static int called(const char* name) {
  pthread_mutex_lock(&lock);
  size_t used = strlen(calls);
  snprintf(calls + used, sizeof calls - used, "%s ", name);
  pthread_mutex_unlock(&lock);
  return strcmp(failing, name) == 0 ? failure : SUCCESS;
}

#define BEGIN                       \
  int failed = called(__func__);    \
  if (failed != SUCCESS) return failed

CALL int cuInit(unsigned flags) { BEGIN; return flags == 0 ? SUCCESS : INVALID_VALUE; }
CALL int cuDriverGetVersion(int* its) { BEGIN; *its = version; return SUCCESS; }
CALL int cuDeviceGetCount(int* count) { BEGIN; *count = devices; return SUCCESS; }

CALL int cuGetErrorName(int error, const char** name) {
  static const struct { int error; const char* name; } known[] = {
      {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {100, "CUDA_ERROR_NO_DEVICE"},
      {218, "CUDA_ERROR_INVALID_PTX"}, {719, "CUDA_ERROR_LAUNCH_FAILED"}};
  *name = NULL;
  for (size_t number = 0; number < sizeof known / sizeof *known; number++)
    if (known[number].error == error) *name = known[number].name;
  return *name == NULL ? INVALID_VALUE : SUCCESS;
}

CALL int cuGetErrorString(int error, const char** text) {
  *text = error == 100 ? "no CUDA-capable device is detected" : NULL;
  return *text == NULL ? INVALID_VALUE : SUCCESS;
}

CALL int cuDeviceGet(int* device, int index) {
  BEGIN;
  *device = index;
  return index >= 0 && index < devices ? SUCCESS : INVALID_DEVICE;
}

CALL int cuDeviceGetAttribute(int* value, int attribute, int device) {
  BEGIN;
  if (attribute == 75) *value = capabilities[device] / 10;
  else if (attribute == 76) *value = capabilities[device] % 10;
  else if (attribute == 97) *value = optin_bytes;
  else return INVALID_VALUE;
  return SUCCESS;
}

CALL int cuDevicePrimaryCtxRetain(Context** context, int device) {
  BEGIN;
  __atomic_add_fetch(&retained[device], 1, __ATOMIC_SEQ_CST);
  *context = &contexts[device];
  return SUCCESS;
}

CALL int cuDevicePrimaryCtxRelease_v2(int device) {
  BEGIN;
  return __atomic_sub_fetch(&retained[device], 1, __ATOMIC_SEQ_CST) < 0 ? INVALID_CONTEXT : SUCCESS;
}

CALL int cuCtxPushCurrent_v2(Context* context) {
  BEGIN;
  stack[depth++] = context;
  return SUCCESS;
}

CALL int cuCtxPopCurrent_v2(Context** context) {
  BEGIN;
  if (depth == 0) return INVALID_CONTEXT;
  *context = stack[--depth];
  return SUCCESS;
}

CALL int cuModuleLoadData(Module** module, const char* code) {
  BEGIN;
  if (depth == 0) return INVALID_CONTEXT;
  Module* made = malloc(sizeof *made);
  *made = (Module){stack[depth - 1], strdup(code)};
  __atomic_add_fetch(&modules[made->context->device], 1, __ATOMIC_SEQ_CST);
  *module = made;
  return SUCCESS;
}

CALL int cuModuleUnload(Module* module) {
  BEGIN;
  if (depth == 0 || stack[depth - 1] != module->context) return INVALID_CONTEXT;
  pthread_mutex_lock(&lock);
  for (Function** place = &functions; *place != NULL;) {
    Function* each = *place;
    if (each->module == module) {
      *place = each->next;
      free(each);
    } else {
      place = &each->next;
    }
  }
  pthread_mutex_unlock(&lock);
  __atomic_sub_fetch(&modules[module->context->device], 1, __ATOMIC_SEQ_CST);
  free(module->code);
  free(module);
  return SUCCESS;
}

CALL int cuModuleGetFunction(Function** function, Module* module, const char* name) {
  BEGIN;
  if (strstr(module->code, name) == NULL) return NOT_FOUND;
  Function* made = calloc(1, sizeof *made);
  made->module = module;
  made->shared = ALWAYS_SHARED_BYTES;
  snprintf(made->entry, sizeof made->entry, "%s", name);
  pthread_mutex_lock(&lock);
  made->next = functions;
  functions = made;
  pthread_mutex_unlock(&lock);
  *function = made;
  return SUCCESS;
}

CALL int cuFuncLoad(Function* function) { BEGIN; function->is_loaded = true; return SUCCESS; }

CALL int cuFuncSetAttribute(Function* function, int attribute, int value) {
  BEGIN;
  if (attribute != 8 || value > optin_bytes) return INVALID_VALUE;
  function->shared = value;
  return SUCCESS;
}

CALL int cuLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned block_y,
                        unsigned block_z, unsigned shared, const void* stream, void** parameters, void** extra) {
  BEGIN;
  unsigned grid[] = {x, y, z};
  bool fits = x > 0 && y > 0 && z > 0 && y <= 65535 && z <= 65535 && block_y == 1 && block_z == 1 && extra == NULL &&
              (int)shared <= function->shared && function->is_loaded;
  return fits ? launched(function->module->code, function->entry, grid, threads, shared, stream, parameters)
              : INVALID_VALUE;
}
