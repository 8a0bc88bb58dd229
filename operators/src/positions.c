// SamplingPositions: query (batch, height, width, channels), the weights (kernel, kernel, group channels) and the bias
// (group channels) of the offsets' depthwise convolution, gain and shift of its norm (group channels), the projection
// (2, group channels) and, float32, what an offset of 1 is along each axis (2), to positions (batch, groups, keys, 2),
// float32. Attributes: stride, padding, generation (which cells keys stand for by themselves), bound, epsilon.
//
// Groups of channels lie one after the other and share all weights. After the convolution come LayerNorm, GELU and the
// projection to offsets, which are taken as they are (bound 0), as their tanh times what 1 is (1), or as they are and
// the position is bound to the map (2): by tanh in generation 1, by clamping in generation 2.
#include <math.h>
#include <stdlib.h>

#include "operators.h"
#include "reference.h"

enum { STRIDE, PADDING, GENERATION, BOUND };
enum { UNBOUND, BOUND_OFFSETS, BOUND_POSITIONS };

static int64_t keys_of(const Attributes* attributes, int64_t length, int64_t kernel) {
  return convolved(length, kernel, attributes->integers[STRIDE], attributes->integers[PADDING]);
}

bool check_positions(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  int64_t stride = attributes->integers[STRIDE], padding = attributes->integers[PADDING];
  int64_t generation = attributes->integers[GENERATION], bound = attributes->integers[BOUND];
  int64_t kernel = inputs[1].shape[0], channels = inputs[1].shape[2];
  if (stride < 1 || stride > MAX_STRIDE) return say(message, "a stride of %lld", (long long)stride);
  if (kernel < 1 || kernel > MAX_KERNEL) return say(message, "a kernel of %lld", (long long)kernel);
  if (padding < 0 || padding >= kernel)
    return say(message, "a padding of %lld for a kernel of %lld", (long long)padding, (long long)kernel);
  if (generation != 1 && generation != 2)
    return say(message, "generation %lld, and there are 1 and 2", (long long)generation);
  if (bound < UNBOUND || bound > BOUND_POSITIONS)
    return say(message, "bound %lld, and there are 0, 1 and 2", (long long)bound);
  for (int axis = 1; axis < 3; axis++)
    if (keys_of(attributes, inputs[0].shape[axis], kernel) < generation)
      return say(message, "a side of %lld cells has fewer than %lld keys", (long long)inputs[0].shape[axis],
                 (long long)generation);
  return equal(message, "columns of the weights", inputs[1].shape[1], kernel) &&
         divides(message, "channels of weights", channels, "channels", inputs[0].shape[3]) &&
         equal(message, "values of the bias", inputs[2].shape[0], channels) &&
         equal(message, "values of the gain", inputs[3].shape[0], channels) &&
         equal(message, "values of the shift", inputs[4].shape[0], channels) &&
         equal(message, "rows of the projection", inputs[5].shape[0], 2) &&
         equal(message, "columns of the projection", inputs[5].shape[1], channels) &&
         equal(message, "what offsets stand for", inputs[6].shape[0], 2);
}

void shape_positions(const Attributes* attributes, const Tensor* inputs, Tensor* output) {
  int64_t kernel = inputs[1].shape[0], channels = inputs[0].shape[3], group = inputs[1].shape[2];
  int64_t rows = keys_of(attributes, inputs[0].shape[1], kernel);
  int64_t columns = keys_of(attributes, inputs[0].shape[2], kernel);
  *output = (Tensor){
      .rank = 4,
      .shape = {inputs[0].shape[0], channels < 0 || group < 1 ? -1 : channels / group,
                rows < 0 || columns < 0 ? -1 : rows * columns, 2},
      .names = {inputs[0].names[0], "", "", ""},
  };
}

static float bounded(float position, int64_t generation) {
  return generation == 1 ? tanhf(position) : fminf(fmaxf(position, -1), 1);
}

// The convolution of one group at the cells from (top, left) on, one image's map beginning at `map`, into `sum`.
static void convolve(const Tensor* inputs, const half* map, int64_t top, int64_t left, float* sum) {
  int64_t height = inputs[0].shape[1], width = inputs[0].shape[2], channels = inputs[0].shape[3];
  int64_t kernel = inputs[1].shape[0], group = inputs[1].shape[2];
  const half *weight = inputs[1].data, *bias = inputs[2].data;
  for (int64_t c = 0; c < group; c++) sum[c] = (float)bias[c];
  for (int64_t tap = 0; tap < kernel * kernel; tap++) {
    int64_t y = top + tap / kernel, x = left + tap % kernel;
    if (y < 0 || y >= height || x < 0 || x >= width) continue;
    const half* cell = map + (y * width + x) * channels;
    for (int64_t c = 0; c < group; c++) sum[c] += (float)cell[c] * (float)weight[tap * group + c];
  }
}

// One coordinate: of key `index` of `keys` along an axis, of which `sum` has the features.
static float coordinate(const Attributes* attributes, const Tensor* inputs, const float* sum, int axis, int64_t index,
                        int64_t keys) {
  int64_t group = inputs[1].shape[2], generation = attributes->integers[GENERATION];
  const half* projection = (const half*)inputs[5].data + axis * group;
  float offset = 0, span = (float)(generation == 1 ? keys : keys - 1);
  for (int64_t c = 0; c < group; c++) offset += gelu_of(sum[c]) * (float)projection[c];
  if (attributes->integers[BOUND] == BOUND_OFFSETS) offset = tanhf(offset) * ((const float*)inputs[6].data)[axis];
  float position = ((float)index + 0.5f) / span * 2 - 1 + offset;
  return attributes->integers[BOUND] == BOUND_POSITIONS ? bounded(position, generation) : position;
}

bool sampling_positions(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  const int64_t *shape = inputs[0].shape, group = inputs[1].shape[2], groups = outputs[0].shape[1];
  int64_t stride = attributes->integers[STRIDE], padding = attributes->integers[PADDING];
  int64_t rows = keys_of(attributes, shape[1], inputs[1].shape[0]), columns = outputs[0].shape[2] / rows;
  float *out = outputs[0].data, *sum = malloc(sizeof(float) * (size_t)(group + 1));
  if (sum == NULL) return false;
  for (int64_t image = 0; image < shape[0]; image++)
    for (int64_t number = 0; number < groups; number++)
      for (int64_t key = 0; key < rows * columns; key++, out += 2) {
        const half* map = (const half*)inputs[0].data + image * shape[1] * shape[2] * shape[3] + number * group;
        int64_t row = key / columns, column = key % columns;
        convolve(inputs, map, row * stride - padding, column * stride - padding, sum);
        normalise(sum, group, attributes->epsilon, inputs[3].data, inputs[4].data);
        out[0] = coordinate(attributes, inputs, sum, 0, row, rows);
        out[1] = coordinate(attributes, inputs, sum, 1, column, columns);
      }
  free(sum);
  return true;
}
