// The kernels that are built in: machine code for GPUs, and what is needed to launch each.
//
// `python -m operators` writes the table in C from what the compiler of the kernels says (operators/embed.py); built
// without kernels, it is empty.
#ifndef DAT_KERNELS_H
#define DAT_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

// A constant that a kernel was compiled with; a choice says how it computes (the size of a block), and not what.
typedef struct {
  const char* name;
  int64_t value;
  bool is_choice;
} Constant;

// NOTHING is memory to work in, which Triton lets every kernel be given and these need none of: a null pointer.
typedef enum { POINTER, INT32, INT64, FLOAT32, NOTHING } ParameterKind;

typedef struct {
  const char* name;
  ParameterKind kind;
} Parameter;

// Along this axis, `factor` programs for each `block` of the size of this name; `factor` where that is NULL.
typedef struct {
  const char* size;
  int64_t block, factor;
} GridAxis;

// One kernel's code for a compute capability, as 90: machine code for it and for later ones of the same major version,
// or PTX, which a driver compiles for it and for all that are later. `assembler` is the CUDA that made it, as 12080.
typedef struct {
  int capability, assembler;
  bool is_ptx;
  const char* entry;
  int warps, shared_bytes;
  const unsigned char* code;
} Image;

enum { AXES = 3, WARP_THREADS = 32, ALIGNMENT_BYTES = 16, MAX_PARAMETERS = 24 };

typedef struct {
  const char* kernel;
  int constant_count, parameter_count, image_count;
  const Constant* constants;
  const Parameter* parameters;  // in their order; no more than MAX_PARAMETERS
  GridAxis grid[AXES];
  const Image* images;
} Specialization;

extern const int dat_specialization_count;
extern const Specialization dat_specializations[];

#endif
