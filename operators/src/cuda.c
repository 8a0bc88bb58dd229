// Chooses kernels by the sizes of a node, and launches them.
#include "cuda.h"

#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "launches.h"
#include "modules.h"

// Where a parameter is from: the number of a tensor (outputs first), or that of a value.
struct Launcher {
  const Operator* what;
  const Launch* launch;
  const Specialization* kernel;
  const Image* image;
  const Driver* driver;
  Module* module;
  int sources[MAX_PARAMETERS];
  int sizes[AXES];  // the value that an axis of the grid follows from; -1 for none
};

static int value_named(const Values* values, const char* name) {
  for (int number = 0; number < values->count; number++)
    if (strcmp(values->values[number].name, name) == 0) return number;
  return -1;
}

static int tensor_named(const Operator* what, const Launch* launch, const char* name) {
  for (int number = 0; number < what->outputs + what->inputs; number++)
    if (strcmp(launch->tensors[number], name) == 0) return number;
  return -1;
}

static bool fits(const Specialization* kernel, const Values* values) {
  for (int number = 0; number < kernel->constant_count; number++) {
    const Constant* constant = &kernel->constants[number];
    int value = constant->is_choice ? -1 : value_named(values, constant->name);
    if (!constant->is_choice && (value < 0 || values->values[value].integer != constant->value)) return false;
  }
  return true;
}

static void list_constants(const Specialization* kernel, const Values* values, Report* why) {
  for (int number = 0; number < kernel->constant_count; number++) {
    const Constant* constant = &kernel->constants[number];
    if (constant->is_choice) continue;
    int value = values == NULL ? -1 : value_named(values, constant->name);
    long long shown = value < 0 ? constant->value : values->values[value].integer;
    report(why, " %s=%lld", constant->name, shown);
  }
}

// Whether all that the kernel was compiled for is known of the node; a graph of any size leaves its maps open.
static bool knows_constants(const Specialization* kernel, const Values* values, Report* why) {
  for (int number = 0; number < kernel->constant_count; number++) {
    const Constant* constant = &kernel->constants[number];
    if (constant->is_choice) continue;
    int value = value_named(values, constant->name);
    if (value < 0) return report(why, "%s is compiled for a %s that is not the node's", kernel->kernel, constant->name);
    if (values->values[value].integer < 0)
      return report(why, "its %s is not known when the graph is opened, and kernels are built for fixed sizes",
                    constant->name);
  }
  return true;
}

static const Specialization* choose_kernel(const Launch* launch, const Values* values, Report* why) {
  const Specialization* first = NULL;
  for (int number = 0; number < dat_specialization_count; number++) {
    const Specialization* kernel = &dat_specializations[number];
    if (strcmp(kernel->kernel, launch->kernel) != 0) continue;
    if (fits(kernel, values)) return kernel;
    if (first == NULL) first = kernel;
  }
  if (first == NULL) {
    report(why, "the library was built without a kernel for it");
    return NULL;
  }
  if (!knows_constants(first, values, why)) return NULL;
  report(why, "no kernel is built for");
  list_constants(first, values, why);
  report(why, "; there are");
  for (int number = 0; number < dat_specialization_count; number++)
    if (strcmp(dat_specializations[number].kernel, launch->kernel) == 0) {
      report(why, "%s", &dat_specializations[number] == first ? "" : ",");
      list_constants(&dat_specializations[number], NULL, why);
    }
  return NULL;
}

// Find what each parameter and each axis of the grid is from.
static bool connect(Launcher* made, const Values* values, Report* why) {
  const Specialization* kernel = made->kernel;
  for (int number = 0; number < kernel->parameter_count; number++) {
    const Parameter* parameter = &kernel->parameters[number];
    int source = 0;
    if (parameter->kind == POINTER)
      source = tensor_named(made->what, made->launch, parameter->name);
    else if (parameter->kind != NOTHING)
      source = value_named(values, parameter->name);
    if (source < 0) return report(why, "%s takes a %s that the node has not", kernel->kernel, parameter->name);
    made->sources[number] = source;
  }
  for (int axis = 0; axis < AXES; axis++) {
    const char* size = kernel->grid[axis].size;
    made->sizes[axis] = size == NULL ? -1 : value_named(values, size);
    if (size != NULL && made->sizes[axis] < 0)
      return report(why, "%s is launched by a %s that the node has not", kernel->kernel, size);
  }
  return true;
}

static bool load(Launcher* made, int device_index, Report* why) {
  Device device;
  made->driver = find_driver(why);
  if (made->driver == NULL || !find_device(made->driver, device_index, &device, why)) return false;
  made->image = image_for(made->kernel, &device, why);
  if (made->image == NULL) return false;
  made->module = acquire_module(made->driver, &device, made->image, why);
  return made->module != NULL;
}

Launcher* create_launcher(const Operator* what, const Attributes* attributes, const Tensor* inputs, int device,
                          Report* why) {
  const Launch* its_launch = launch_of(what->name);
  if (its_launch == NULL) {
    report(why, "no kernel computes it on a GPU");
    return NULL;
  }
  Values values = {.count = 0};
  its_launch->describe(what, attributes, inputs, &values);
  Launcher made = {.what = what, .launch = its_launch, .kernel = choose_kernel(its_launch, &values, why)};
  if (made.kernel == NULL || !connect(&made, &values, why)) return NULL;
  Launcher* kept = malloc(sizeof *kept);
  if (kept == NULL) {
    report(why, "no memory for the kernel");
    return NULL;
  }
  if (!load(&made, device, why)) {
    free(kept);
    return NULL;
  }
  *kept = made;
  return kept;
}

void destroy_launcher(Launcher* launcher) {
  if (launcher == NULL) return;
  release_module(launcher->module);
  free(launcher);
}

// Write the grid of these sizes; all 0 where there is nothing to compute.
static bool grid_of(const Launcher* it, const Values* values, unsigned int grid[AXES], Report* why) {
  static const int64_t LARGEST[AXES] = {INT32_MAX, UINT16_MAX, UINT16_MAX};
  bool is_empty = false;
  for (int axis = 0; axis < AXES; axis++) {
    const GridAxis* its = &it->kernel->grid[axis];
    int64_t length = it->sizes[axis] < 0 ? 1 : values->values[it->sizes[axis]].integer;
    int64_t programs = ((length + its->block - 1) / its->block) * its->factor;
    if (programs > LARGEST[axis])
      return report(why, "a %s of %lld is more than one launch takes", its->size ? its->size : "size",
                    (long long)length);
    is_empty |= programs == 0;
    grid[axis] = (unsigned int)programs;
  }
  if (is_empty) memset(grid, 0, sizeof(unsigned int) * AXES);
  return true;
}

typedef union {
  void* pointer;
  int32_t int32;
  int64_t int64;
  float float32;
} Argument;

static bool fill(const Parameter* parameter, const Value* value, Argument* argument, Report* why) {
  if (parameter->kind == INT32 && value->integer > INT32_MAX)
    return report(why, "%s: %lld, and a kernel takes no more than %d", value->name, (long long)value->integer,
                  INT32_MAX);
  if (parameter->kind == INT32) argument->int32 = (int32_t)value->integer;
  if (parameter->kind == INT64) argument->int64 = value->integer;
  if (parameter->kind == FLOAT32) argument->float32 = value->real;
  return true;
}

// Kernels are compiled for tensors at addresses that 16 divides, as the runtime's own are; bound ones may lie anywhere.
static bool point(const Parameter* parameter, void* data, Argument* argument, Report* why) {
  argument->pointer = data;
  return (uintptr_t)data % ALIGNMENT_BYTES == 0 ||
         report(why, "%s lies at %p, which %d does not divide", parameter->name, data, ALIGNMENT_BYTES);
}

static bool fill_all(const Launcher* it, const Values* values, const Tensor* inputs, const Tensor* outputs,
                     Argument* arguments, Report* why) {
  for (int number = 0; number < it->kernel->parameter_count; number++) {
    const Parameter* parameter = &it->kernel->parameters[number];
    int source = it->sources[number], first_input = it->what->outputs;
    bool is_filled = true;
    if (parameter->kind == NOTHING)
      arguments[number].pointer = NULL;
    else if (parameter->kind == POINTER)
      is_filled = point(parameter, source < first_input ? outputs[source].data : inputs[source - first_input].data,
                        &arguments[number], why);
    else
      is_filled = fill(parameter, &values->values[source], &arguments[number], why);
    if (!is_filled) return false;
  }
  return true;
}

bool launch(const Launcher* it, const Attributes* attributes, const Tensor* inputs, const Tensor* outputs,
            void* stream, Report* why) {
  Values values = {.count = 0};
  it->launch->describe(it->what, attributes, inputs, &values);
  if (!fits(it->kernel, &values)) {
    report(why, "the graph was opened for");
    list_constants(it->kernel, NULL, why);
    report(why, ", and its inputs have");
    list_constants(it->kernel, &values, why);
    return false;
  }
  unsigned int grid[AXES];
  Argument arguments[MAX_PARAMETERS];
  void* places[MAX_PARAMETERS];
  if (!grid_of(it, &values, grid, why)) return false;
  if (grid[0] == 0) return true;
  if (!fill_all(it, &values, inputs, outputs, arguments, why)) return false;
  for (int number = 0; number < it->kernel->parameter_count; number++) places[number] = &arguments[number];
  unsigned int threads = (unsigned int)(it->image->warps * WARP_THREADS);
  CudaResult result = it->driver->launch(function_of(it->module), grid[0], grid[1], grid[2], threads, 1, 1,
                                         (unsigned int)it->image->shared_bytes, stream, places, NULL);
  return succeeded(it->driver, result, "cuLaunchKernel", why);
}
