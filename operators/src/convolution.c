// Convolutions over maps whose channels are last, and what stands beside them.
//
// DepthwiseConvolution: x (batch, height, width, channels), what is added to x (channels), the weights (kernel, kernel,
// weight channels) and the bias (weight channels) to (batch, height', width', channels). Attributes: stride, padding,
// skip, gelu.
//
// Of h = x + what is added, which is 0 beyond the map, it gives h * weights + bias, plus h with `skip`, and of that the
// GELU with `gelu`. Groups of channels that share weights lie one after the other: channel c has those of c modulo
// their number.
//
// PatchEmbedding: image (batch, height, width, colours), uint8, what lies beyond it (colours), the weights (kernel,
// kernel, colours, channels), their bias, and gain and shift of the norm (channels) to (batch, height', width',
// channels). Attributes: stride, padding, gelu, epsilon.
//
// It convolves pixel - 128, which float16 holds exactly: what normalises an image is in the weights, in the bias and in
// what lies beyond. The LayerNorm over channels follows, and with `gelu` the GELU of it.
//
// PerceptionNorm: residual and x (batch, height, width, channels), what is added to x (channels), the weights (kernel,
// kernel, channels), their bias, and gain and shift of the norm (channels), to h + h * weights + bias, where h is
// residual + x + what is added, and to the LayerNorm of that over channels; both are as large as x. Attribute: epsilon.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "operators.h"
#include "reference.h"

enum { STRIDE, PADDING, GELU, SKIP, MIDDLE = 128 };

// What the two operators have in common: x is their first input, and the weights their third.
static bool check_sides(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  int64_t stride = attributes->integers[STRIDE], padding = attributes->integers[PADDING];
  int64_t gelu = attributes->integers[GELU], kernel = inputs[2].shape[0];
  if (stride < 1 || stride > MAX_STRIDE) return say(message, "a stride of %lld", (long long)stride);
  if (kernel < 1 || kernel > MAX_KERNEL) return say(message, "a kernel of %lld", (long long)kernel);
  if (padding < 0 || padding >= kernel)
    return say(message, "a padding of %lld for a kernel of %lld", (long long)padding, (long long)kernel);
  if (gelu != 0 && gelu != 1) return say(message, "gelu is %lld, and should be 0 or 1", (long long)gelu);
  for (int axis = 1; axis < 3; axis++)
    if (convolved(inputs[0].shape[axis], kernel, stride, padding) < 0)
      return say(message, "a kernel of %lld on a side of %lld and a padding of %lld", (long long)kernel,
                 (long long)inputs[0].shape[axis], (long long)padding);
  return equal(message, "columns of the weights", inputs[2].shape[1], kernel);
}

bool check_depthwise(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  int64_t skip = attributes->integers[SKIP], channels = inputs[0].shape[3], weights = inputs[2].shape[2];
  if (!check_sides(attributes, inputs, message)) return false;
  if (skip != 0 && skip != 1) return say(message, "skip is %lld, and should be 0 or 1", (long long)skip);
  if (skip && (attributes->integers[STRIDE] != 1 || 2 * attributes->integers[PADDING] != inputs[2].shape[0] - 1))
    return say(message, "a skip around a convolution that changes the size of the map");
  return divides(message, "channels of weights", weights, "channels", channels) &&
         equal(message, "values that are added", inputs[1].shape[0], channels) &&
         equal(message, "values of the bias", inputs[3].shape[0], weights);
}

bool check_embedding(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  int64_t colours = inputs[0].shape[3], channels = inputs[2].shape[3];
  return check_sides(attributes, inputs, message) &&
         equal(message, "colours of the weights", inputs[2].shape[2], colours) &&
         equal(message, "colours beyond the image", inputs[1].shape[0], colours) &&
         equal(message, "values of the bias", inputs[3].shape[0], channels) &&
         equal(message, "values of the gain", inputs[4].shape[0], channels) &&
         equal(message, "values of the shift", inputs[5].shape[0], channels);
}

bool check_perception(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  (void)attributes;
  int64_t channels = inputs[0].shape[3], kernel = inputs[3].shape[0];
  if (memcmp(inputs[0].shape, inputs[1].shape, 4 * sizeof(int64_t)) != 0)
    return say(message, "residual and x have different shapes");
  if (kernel < 1 || kernel > MAX_KERNEL || kernel % 2 == 0)
    return say(message, "a kernel of %lld, and it is odd", (long long)kernel);
  return equal(message, "columns of the weights", inputs[3].shape[1], kernel) &&
         equal(message, "channels of the weights", inputs[3].shape[2], channels) &&
         equal(message, "values that are added", inputs[2].shape[0], channels) &&
         equal(message, "values of the bias", inputs[4].shape[0], channels) &&
         equal(message, "values of the gain", inputs[5].shape[0], channels) &&
         equal(message, "values of the shift", inputs[6].shape[0], channels);
}

void shape_depthwise(const Attributes* attributes, const Tensor* inputs, Tensor* output) {
  *output = inputs[0];
  output->data = NULL;
  for (size_t axis = 1; axis < 3; axis++) {
    output->shape[axis] = convolved(inputs[0].shape[axis], inputs[2].shape[0], attributes->integers[STRIDE],
                                    attributes->integers[PADDING]);
    output->names[axis] = "";
  }
}

void shape_embedding(const Attributes* attributes, const Tensor* inputs, Tensor* output) {
  shape_depthwise(attributes, inputs, output);
  output->shape[3] = inputs[2].shape[3];
  output->names[3] = inputs[2].names[3];
}

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
          out[at] = (half)(attributes->integers[GELU] ? gelu_of(value) : value);
        }
  return true;
}

// All channels at one place of the output into `sum`.
static void embed(const Tensor* inputs, int64_t image, int64_t top, int64_t left, float* sum) {
  int64_t height = inputs[0].shape[1], width = inputs[0].shape[2], colours = inputs[0].shape[3];
  int64_t kernel = inputs[2].shape[0], channels = inputs[2].shape[3];
  const uint8_t* pixels = inputs[0].data;
  const half *beyond = inputs[1].data, *weight = inputs[2].data, *bias = inputs[3].data;
  for (int64_t c = 0; c < channels; c++) sum[c] = (float)bias[c];
  for (int64_t tap = 0; tap < kernel * kernel * colours; tap++) {
    int64_t colour = tap % colours, y = top + tap / colours / kernel, x = left + tap / colours % kernel;
    bool is_inside = y >= 0 && y < height && x >= 0 && x < width;
    float value = is_inside ? (float)(pixels[((image * height + y) * width + x) * colours + colour] - MIDDLE)
                            : (float)beyond[colour];
    for (int64_t c = 0; c < channels; c++) sum[c] += value * (float)weight[tap * channels + c];
  }
}

bool patch_embedding(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  int64_t stride = attributes->integers[STRIDE], padding = attributes->integers[PADDING];
  const int64_t* given = outputs[0].shape;
  const half *gain = inputs[4].data, *shift = inputs[5].data;
  float* sum = malloc(sizeof(float) * (size_t)(given[3] + 1));
  if (sum == NULL) return false;
  half* out = outputs[0].data;
  for (int64_t image = 0; image < given[0]; image++)
    for (int64_t row = 0; row < given[1]; row++)
      for (int64_t column = 0; column < given[2]; column++, out += given[3]) {
        embed(inputs, image, row * stride - padding, column * stride - padding, sum);
        normalise(sum, given[3], attributes->epsilon, gain, shift);
        for (int64_t c = 0; c < given[3]; c++)
          out[c] = (half)(attributes->integers[GELU] ? gelu_of(sum[c]) : sum[c]);
      }
  free(sum);
  return true;
}

// All channels at one cell, of a map of float32 sums, into `sum`.
static void perceive(const Tensor* inputs, const float* map, int64_t y, int64_t x, float* sum) {
  int64_t height = inputs[0].shape[1], width = inputs[0].shape[2], channels = inputs[0].shape[3];
  int64_t kernel = inputs[3].shape[0], reach = kernel / 2;
  const half *weight = inputs[3].data, *bias = inputs[4].data;
  for (int64_t c = 0; c < channels; c++) sum[c] = (float)bias[c] + map[(y * width + x) * channels + c];
  for (int64_t tap = 0; tap < kernel * kernel; tap++) {
    int64_t row = y + tap / kernel - reach, column = x + tap % kernel - reach;
    if (row < 0 || row >= height || column < 0 || column >= width) continue;
    const float* cell = map + (row * width + column) * channels;
    for (int64_t c = 0; c < channels; c++) sum[c] += cell[c] * (float)weight[tap * channels + c];
  }
}

bool perception_norm(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  const int64_t* shape = inputs[0].shape;
  int64_t channels = shape[3], image_values = shape[1] * shape[2] * channels;
  const half *residual = inputs[0].data, *x = inputs[1].data, *added = inputs[2].data;
  half *total = outputs[0].data, *normed = outputs[1].data;
  float* map = malloc(sizeof(float) * (size_t)(image_values + channels + 1));
  if (map == NULL) return false;
  float* sum = map + image_values;
  for (int64_t image = 0; image < shape[0]; image++) {
    for (int64_t i = 0; i < image_values; i++)
      map[i] = (float)*residual++ + (float)*x++ + (float)added[i % channels];
    for (int64_t cell = 0; cell < shape[1] * shape[2]; cell++) {
      perceive(inputs, map, cell / shape[2], cell % shape[2], sum);
      for (int64_t c = 0; c < channels; c++) *total++ = (half)sum[c];
      normalise(sum, channels, attributes->epsilon, inputs[5].data, inputs[6].data);
      for (int64_t c = 0; c < channels; c++) *normed++ = (half)sum[c];
    }
  }
  free(map);
  return true;
}
