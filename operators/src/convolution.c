// DepthwiseConvolution: x (batch, height, width, channels), what is added to x (channels), the weights (kernel, kernel,
// weight channels) and the bias (weight channels) to (batch, height', width', channels). Attributes: stride, padding,
// skip, gelu.
//
// Of h = x + what is added, which is 0 beyond the map, it gives h * weights + bias, plus h with `skip`, and of that the
// GELU with `gelu`. Groups of channels that share weights lie one after the other: channel c has those of c modulo
// their number.
#include <math.h>

#include "operators.h"
#include "reference.h"

enum { STRIDE, PADDING, SKIP, GELU, MAX_KERNEL = 63, MAX_STRIDE = 1024 };

// How many places of the output a side has; -1 where that is not known, or there can be none.
static int64_t convolved(const Attributes* attributes, int64_t length, int64_t kernel) {
  int64_t stride = attributes->integers[STRIDE], steps = length + 2 * attributes->integers[PADDING] - kernel;
  return length < 0 || kernel < 1 || stride < 1 || steps < 0 ? -1 : steps / stride + 1;
}

bool check_depthwise(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  int64_t stride = attributes->integers[STRIDE], padding = attributes->integers[PADDING];
  int64_t kernel = inputs[2].shape[0], channels = inputs[0].shape[3], weights = inputs[2].shape[2];
  if (stride < 1 || stride > MAX_STRIDE) return say(message, "a stride of %lld", (long long)stride);
  if (kernel < 1 || kernel > MAX_KERNEL) return say(message, "a kernel of %lld", (long long)kernel);
  if (padding < 0 || padding >= kernel)
    return say(message, "a padding of %lld for a kernel of %lld", (long long)padding, (long long)kernel);
  for (int number = SKIP; number <= GELU; number++)
    if (attributes->integers[number] != 0 && attributes->integers[number] != 1)
      return say(message, "%s is %lld, and should be 0 or 1", number == SKIP ? "skip" : "gelu",
                 (long long)attributes->integers[number]);
  if (attributes->integers[SKIP] && (stride != 1 || 2 * padding != kernel - 1))
    return say(message, "a skip around a convolution that changes the size of the map");
  for (int axis = 1; axis < 3; axis++)
    if (inputs[0].shape[axis] + 2 * padding < kernel)
      return say(message, "a kernel of %lld on a map of %lld cells and a padding of %lld", (long long)kernel,
                 (long long)inputs[0].shape[axis], (long long)padding);
  return equal(message, "columns of the weights", inputs[2].shape[1], kernel) &&
         divides(message, "channels of weights", weights, "channels", channels) &&
         equal(message, "values that are added", inputs[1].shape[0], channels) &&
         equal(message, "values of the bias", inputs[3].shape[0], weights);
}

void shape_depthwise(const Attributes* attributes, const Tensor* inputs, Tensor* output) {
  *output = inputs[0];
  output->data = NULL;
  for (size_t axis = 1; axis < 3; axis++) {
    output->shape[axis] = convolved(attributes, inputs[0].shape[axis], inputs[2].shape[0]);
    output->names[axis] = "";
  }
}

static float gelu(float value) { return value * 0.5f * (1 + erff(value * 0.70710678f)); }

// One channel at one place of the output; the cell under the kernel's corner is (top, left).
static float weighed(const Tensor* inputs, int64_t image, int64_t top, int64_t left, int64_t channel) {
  int64_t height = inputs[0].shape[1], width = inputs[0].shape[2], channels = inputs[0].shape[3];
  int64_t kernel = inputs[2].shape[0], weights = inputs[2].shape[2];
  const half *x = inputs[0].data, *weight = inputs[2].data;
  float added = (float)((const half*)inputs[1].data)[channel], sum = 0;
  for (int64_t row = 0; row < kernel; row++)
    for (int64_t column = 0; column < kernel; column++) {
      int64_t y = top + row, x_ = left + column;
      if (y < 0 || y >= height || x_ < 0 || x_ >= width) continue;
      float value = (float)x[((image * height + y) * width + x_) * channels + channel] + added;
      sum += value * (float)weight[(row * kernel + column) * weights + channel % weights];
    }
  return sum;
}

bool depthwise_convolution(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  int64_t stride = attributes->integers[STRIDE], padding = attributes->integers[PADDING];
  const int64_t *shape = inputs[0].shape, *given = outputs[0].shape;
  int64_t channels = shape[3], weights = inputs[2].shape[2];
  const half *x = inputs[0].data, *added = inputs[1].data, *bias = inputs[3].data;
  half* out = outputs[0].data;
  for (int64_t image = 0; image < given[0]; image++)
    for (int64_t row = 0; row < given[1]; row++)
      for (int64_t column = 0; column < given[2]; column++)
        for (int64_t c = 0; c < channels; c++) {
          int64_t at = ((image * given[1] + row) * given[2] + column) * channels + c;
          float value = weighed(inputs, image, row * stride - padding, column * stride - padding, c);
          value += (float)bias[c % weights];
          if (attributes->integers[SKIP]) value += (float)x[at] + (float)added[c];
          out[at] = (half)(attributes->integers[GELU] ? gelu(value) : value);
        }
  return true;
}
