// Which kernel an operator is launched as, and what the kernel is given.
#ifndef DAT_LAUNCHES_H
#define DAT_LAUNCHES_H

#include "operators.h"

enum { MAX_VALUES = 16, MAX_TENSORS = 12 };

// A number by the name that kernels have for it: a constant, a parameter that is no tensor, or a size of the grid.
typedef struct {
  const char* name;
  int64_t integer;  // -1 where it is not known yet, or where nothing fits
  float real;       // of what is no integer
} Value;

typedef struct {
  Value values[MAX_VALUES];
  int count;
} Values;

typedef struct {
  const char *name, *kernel;  // of the operator in operators.h, and of the kernel in kernels/
  const char* tensors[MAX_TENSORS];  // as the kernel calls them: the outputs, then the inputs
  // Gives all that the kernel may ask for, always in the same order. Nothing is checked yet, and dimensions may be -1.
  void (*describe)(const Operator*, const Attributes*, const Tensor* inputs, Values*);
} Launch;

// Returns NULL for an operator that no kernel computes.
const Launch* launch_of(const char* name);

#endif
