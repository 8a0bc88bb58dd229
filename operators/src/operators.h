// The operators of the domain `dat`: what each takes, gives and computes.
//
// One table (`dat_operators`) says everything that the runtime is told; library.c turns it into the runtime's own
// structures. The reference computes on the CPU: reference.c, window.c, neighborhood.c, deformable.c, positions.c and
// convolution.c. cuda.c launches kernels instead. Maps are float16, images uint8, channels last; positions are float32
// (y, x) with -1 and 1 at the centres of the outermost pixels; sums, softmax and statistics are float32.
//
// Invariant: an operator's `check` has passed before `compute` is called, so that `compute` reads no place outside.
#ifndef DAT_OPERATORS_H
#define DAT_OPERATORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_RANK = 6, MAX_INPUTS = 7, MAX_OUTPUTS = 2, MAX_ATTRIBUTES = 4, MESSAGE_BYTES = 256 };

typedef _Float16 half;

// A tensor, or its shape alone: `data` is NULL then, and a dimension that is not known yet is -1, and may have a name.
typedef struct {
  void* data;
  size_t rank;
  int64_t shape[MAX_RANK];
  const char* names[MAX_RANK];
} Tensor;

// The attributes of a node; each operator has those that `Operator.attributes` names, the rest are 0.
typedef struct {
  int64_t integers[MAX_ATTRIBUTES];
  float epsilon;
} Attributes;

// Where an output's dimension is from: that of an input, or a part of it.
typedef struct {
  int input, axis, divisor;
} Dimension;

// An output's rank and dimensions; of rank 0 where it has the shape of the first input.
typedef struct {
  size_t rank;
  Dimension dimensions[MAX_RANK];
} OutputShape;

typedef struct {
  const char* name;
  int inputs, outputs;
  size_t ranks[MAX_INPUTS];     // of each input; 0 for any
  bool is_float32[MAX_INPUTS], is_uint8[MAX_INPUTS];  // else float16
  bool gives_float32;                                 // its outputs; else float16
  bool has_epsilon;
  const char* attributes[MAX_ATTRIBUTES];  // required integers, ended by NULL where there are fewer
  OutputShape shapes[MAX_OUTPUTS];
  // Writes the shape of the only output where `shapes` cannot say it, and is NULL where they can. Nothing is checked
  // yet: attributes may be anything, and dimensions not known.
  void (*shape)(const Attributes*, const Tensor* inputs, Tensor* output);
  // Returns whether the inputs fit each other, and else writes what is wrong with them. All dimensions are known.
  bool (*check)(const Attributes*, const Tensor* inputs, char message[MESSAGE_BYTES]);
  // Returns false where memory runs out.
  bool (*compute)(const Attributes*, const Tensor* inputs, const Tensor* outputs);
} Operator;

enum { OPERATORS = 10 };
extern const Operator dat_operators[OPERATORS];

#endif
