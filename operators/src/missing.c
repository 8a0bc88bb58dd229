// `dat_operators_missing`: whether a device can run the kernels, for who chooses a graph before there is a session.
#include <stdint.h>
#include <stddef.h>

#include "kernels.h"
#include "modules.h"

// Writes what device `index` lacks to run the kernels, at most `size` bytes with the end, and returns its length; 0
// where it lacks nothing. Nothing is loaded onto the device.
__attribute__((visibility("default"))) size_t dat_operators_missing(int index, char* text, size_t size);

static bool can_run(int index, Report* why) {
  Device device;
  if (dat_specialization_count == 0) return report(why, "the operators were built without kernels for GPUs");
  const Driver* driver = find_driver(why);
  if (driver == NULL || !find_device(driver, index, &device, why)) return false;
  for (int number = 0; number < dat_specialization_count; number++)
    if (image_for(&dat_specializations[number], &device, why) == NULL) return false;
  return true;
}

size_t dat_operators_missing(int index, char* text, size_t size) {
  Report why;
  clear(&why);
  if (can_run(index, &why)) clear(&why);
  if (size > 0) snprintf(text, size, "%s", why.text);
  return (size_t)why.used;
}
