// Finds the driver and its devices. Nothing here is called while a graph runs.
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>

static const char LIBRARY[] = "libcuda.so.1";

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void* library;
static Driver driver;

// Those with a suffix are what cuda.h has named without it since CUDA 4.
static bool find_calls(Report* why) {
  struct {
    const char* name;
    void** call;
  } wanted[] = {
      {"cuInit", (void**)&driver.init},
      {"cuDriverGetVersion", (void**)&driver.driver_version},
      {"cuGetErrorName", (void**)&driver.error_name},
      {"cuGetErrorString", (void**)&driver.error_string},
      {"cuDeviceGetCount", (void**)&driver.device_count},
      {"cuDeviceGet", (void**)&driver.device},
      {"cuDeviceGetAttribute", (void**)&driver.device_attribute},
      {"cuDevicePrimaryCtxRetain", (void**)&driver.retain_context},
      {"cuDevicePrimaryCtxRelease_v2", (void**)&driver.release_context},
      {"cuCtxPushCurrent_v2", (void**)&driver.push_context},
      {"cuCtxPopCurrent_v2", (void**)&driver.pop_context},
      {"cuModuleLoadData", (void**)&driver.load_module},
      {"cuModuleUnload", (void**)&driver.unload_module},
      {"cuModuleGetFunction", (void**)&driver.find_function},
      {"cuFuncSetAttribute", (void**)&driver.set_function_attribute},
      {"cuLaunchKernel", (void**)&driver.launch},
  };
  for (size_t number = 0; number < sizeof wanted / sizeof *wanted; number++) {
    *wanted[number].call = dlsym(library, wanted[number].name);
    if (*wanted[number].call == NULL)
      return report(why, "NVIDIA's driver (%s) is too old: it has no %s", LIBRARY, wanted[number].name);
  }
  *(void**)&driver.load_function = dlsym(library, "cuFuncLoad");
  return true;
}

static bool open_library(Report* why) {
  if (library != NULL) return true;
  library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return report(why, "NVIDIA's driver is not there: %s", dlerror());
  if (find_calls(why)) return true;
  dlclose(library);
  library = NULL;
  return false;
}

const Driver* find_driver(Report* why) {
  pthread_mutex_lock(&lock);
  bool found = open_library(why);
  pthread_mutex_unlock(&lock);
  // the driver takes its initialisation more than once, and says anew what it lacks
  return found && succeeded(&driver, driver.init(0), "cuInit", why) ? &driver : NULL;
}

bool succeeded(const Driver* its_driver, CudaResult result, const char* call, Report* why) {
  if (result == CUDA_SUCCESS) return true;
  const char *name = NULL, *description = NULL;
  its_driver->error_name(result, &name);
  its_driver->error_string(result, &description);
  if (name == NULL) return report(why, "%s: error %d, which the driver has no name for", call, result);
  return report(why, "%s: %s%s%s", call, name, description ? ", " : "", description ? description : "");
}

bool find_device(const Driver* its_driver, int index, Device* device, Report* why) {
  int count = 0, major = 0, minor = 0;
  *device = (Device){.index = index};
  if (!succeeded(its_driver, its_driver->driver_version(&device->driver_version), "cuDriverGetVersion", why) ||
      !succeeded(its_driver, its_driver->device_count(&count), "cuDeviceGetCount", why))
    return false;
  if (index < 0 || index >= count) return report(why, "there is no device %d: the driver shows %d", index, count);
  if (!succeeded(its_driver, its_driver->device(&device->handle, index), "cuDeviceGet", why) ||
      !succeeded(its_driver, its_driver->device_attribute(&major, COMPUTE_CAPABILITY_MAJOR, device->handle),
                 "cuDeviceGetAttribute", why) ||
      !succeeded(its_driver, its_driver->device_attribute(&minor, COMPUTE_CAPABILITY_MINOR, device->handle),
                 "cuDeviceGetAttribute", why))
    return false;
  device->capability = major * 10 + minor;
  return true;
}
