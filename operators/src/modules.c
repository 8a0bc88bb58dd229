// A module is loaded once for a device and code, however many nodes and sessions launch it: layers of a stage are
// alike, and PTX takes the driver a while to compile.
//
// Modules belong to the device's primary context, which ONNX Runtime computes in; each holds a reference to it.
#include "modules.h"

#include <pthread.h>
#include <stdlib.h>

enum { SHARED_BYTES_WITHOUT_ASKING = 48 * 1024 };

struct Module {
  const Driver* driver;
  Device device;
  const Image* image;
  CudaContext context;
  CudaModule module;
  CudaFunction function;
  int users;
  Module* next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Module* loaded;

static bool runs(const Image* image, int capability) {
  if (image->is_ptx) return image->capability <= capability;
  return image->capability / 10 == capability / 10 && image->capability <= capability;
}

// Drivers run what any assembler of their major version has made, and compile PTX of their own version and before.
static int driver_for(const Image* image) {
  return image->is_ptx ? image->assembler : image->assembler / 1000 * 1000;
}

static bool too_old(const Image* image, const Device* device, Report* why) {
  int wanted = driver_for(image);
  if (device->driver_version >= wanted) return false;
  report(why, "NVIDIA's driver is too old: it is for CUDA %d.%d, and the kernels want one for %d.%d or later",
         device->driver_version / 1000, device->driver_version % 1000 / 10, wanted / 1000, wanted % 1000 / 10);
  return true;
}

const Image* image_for(const Specialization* kernel, const Device* device, Report* why) {
  const Image* best = NULL;
  for (int number = 0; number < kernel->image_count; number++) {
    const Image* image = &kernel->images[number];
    if (!runs(image, device->capability)) continue;
    bool is_better = best == NULL || (best->is_ptx && !image->is_ptx) ||
                     (best->is_ptx == image->is_ptx && image->capability > best->capability);
    if (is_better) best = image;
  }
  if (best != NULL) return too_old(best, device, why) ? NULL : best;
  report(why, "device %d has compute capability %d.%d, and %s is built for", device->index, device->capability / 10,
         device->capability % 10, kernel->kernel);
  for (int number = 0; number < kernel->image_count; number++) {
    const Image* image = &kernel->images[number];
    report(why, "%s %d.%d%s", number ? "," : "", image->capability / 10, image->capability % 10,
           image->is_ptx ? " and what is later" : "");
  }
  return NULL;
}

// More shared memory than every device gives has to be asked for, and not every device has it.
static bool reserve_shared(const Module* m, Report* why) {
  int most = 0;
  if (m->image->shared_bytes <= SHARED_BYTES_WITHOUT_ASKING) return true;
  if (!succeeded(m->driver, m->driver->device_attribute(&most, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, m->device.handle),
                 "cuDeviceGetAttribute", why))
    return false;
  if (m->image->shared_bytes > most)
    return report(why, "%s takes %d bytes of shared memory, and device %d has %d a block", m->image->entry,
                  m->image->shared_bytes, m->device.index, most);
  return succeeded(m->driver,
                   m->driver->set_function_attribute(m->function, MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                     m->image->shared_bytes),
                   "cuFuncSetAttribute", why);
}

// In the context of the device. The function is loaded too, as drivers else wait with that until it is launched.
static bool load_in_context(Module* m, Report* why) {
  const Driver* driver = m->driver;
  if (!succeeded(driver, driver->load_module(&m->module, m->image->code), "cuModuleLoadData", why)) return false;
  bool ready = succeeded(driver, driver->find_function(&m->function, m->module, m->image->entry),
                         "cuModuleGetFunction", why) &&
               (driver->load_function == NULL ||
                succeeded(driver, driver->load_function(m->function), "cuFuncLoad", why)) &&
               reserve_shared(m, why);
  if (!ready) driver->unload_module(m->module);
  return ready;
}

static bool load(Module* m, Report* why) {
  const Driver* driver = m->driver;
  if (!succeeded(driver, driver->retain_context(&m->context, m->device.handle), "cuDevicePrimaryCtxRetain", why))
    return false;
  bool ready = false;
  if (succeeded(driver, driver->push_context(m->context), "cuCtxPushCurrent", why)) {
    CudaContext popped;
    ready = load_in_context(m, why);
    driver->pop_context(&popped);
  }
  if (!ready) driver->release_context(m->device.handle);
  return ready;
}

static Module* find(const Device* device, const Image* image) {
  for (Module* each = loaded; each != NULL; each = each->next)
    if (each->image == image && each->device.handle == device->handle) return each;
  return NULL;
}

static Module* add(const Driver* driver, const Device* device, const Image* image, Report* why) {
  Module* made = malloc(sizeof *made);
  if (made == NULL) {
    report(why, "no memory for the kernel");
    return NULL;
  }
  *made = (Module){.driver = driver, .device = *device, .image = image, .next = loaded};
  if (load(made, why)) return loaded = made;
  free(made);
  return NULL;
}

Module* acquire_module(const Driver* driver, const Device* device, const Image* image, Report* why) {
  pthread_mutex_lock(&lock);
  Module* module = find(device, image);
  if (module == NULL) module = add(driver, device, image, why);
  if (module != NULL) module->users++;
  pthread_mutex_unlock(&lock);
  return module;
}

CudaFunction function_of(const Module* module) { return module->function; }

// What fails here fails because the process or the device is at its end, and the driver has let go of all of it.
static void unload(Module* m) {
  if (m->driver->push_context(m->context) == CUDA_SUCCESS) {
    CudaContext popped;
    m->driver->unload_module(m->module);
    m->driver->pop_context(&popped);
  }
  m->driver->release_context(m->device.handle);
}

void release_module(Module* module) {
  pthread_mutex_lock(&lock);
  if (--module->users == 0) {
    Module** place = &loaded;
    while (*place != module) place = &(*place)->next;
    *place = module->next;
    unload(module);
    free(module);
  }
  pthread_mutex_unlock(&lock);
}
