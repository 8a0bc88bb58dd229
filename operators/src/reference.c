// The reference on the CPU, through which a whole graph is compared where there is no GPU: what its files share, and
// the operators that work row by row. Attention, convolutions and positions have files of their own.
//
// Written to be read, one value after the other; sums are float32, as the kernels of the GPU have them. Sources: the
// modules of the same names in models/, which the tests compare these with.
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "operators.h"
#include "reference.h"

static const float SQRT_HALF = 0.70710678f;

int64_t count(const Tensor* tensor) {
  int64_t values = 1;
  for (size_t axis = 0; axis < tensor->rank; axis++) values *= tensor->shape[axis];
  return values;
}

int64_t convolved(int64_t length, int64_t kernel, int64_t stride, int64_t padding) {
  bool is_sound = length >= 0 && length <= MAX_SIDE && kernel >= 1 && kernel <= MAX_KERNEL && stride >= 1 &&
                  padding >= 0 && padding < kernel && length + 2 * padding >= kernel;
  return is_sound ? (length + 2 * padding - kernel) / stride + 1 : -1;
}

bool say(char message[MESSAGE_BYTES], const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message, MESSAGE_BYTES, format, values);
  va_end(values);
  return false;
}

bool equal(char message[MESSAGE_BYTES], const char* what, int64_t got, int64_t expected) {
  return got == expected || say(message, "%s: %lld, and should be %lld", what, (long long)got, (long long)expected);
}

bool divides(char message[MESSAGE_BYTES], const char* parts, int64_t number, const char* whole, int64_t total) {
  return (number >= 1 && total % number == 0) ||
         say(message, "%lld %s do not divide %lld %s", (long long)number, parts, (long long)total, whole);
}

void softmax(float* scores, int64_t length) {
  float largest = -FLT_MAX, sum = 0;
  for (int64_t i = 0; i < length; i++) largest = fmaxf(largest, scores[i]);
  for (int64_t i = 0; i < length; i++) sum += scores[i] = expf(scores[i] - largest);
  for (int64_t i = 0; i < length; i++) scores[i] /= sum;
}

void normalise(float* values, int64_t length, float epsilon, const half* gain, const half* shift) {
  float mean = 0, variance = 0;
  for (int64_t i = 0; i < length; i++) mean += values[i] / (float)length;
  for (int64_t i = 0; i < length; i++) variance += (values[i] - mean) * (values[i] - mean) / (float)length;
  float scale = 1 / sqrtf(variance + epsilon);
  for (int64_t i = 0; i < length; i++) values[i] = (values[i] - mean) * scale * (float)gain[i] + (float)shift[i];
}

float gelu_of(float value) { return value * 0.5f * (1 + erff(value * SQRT_HALF)); }

float dot(const float* one, const float* other, int64_t length) {
  float sum = 0;
  for (int64_t i = 0; i < length; i++) sum += one[i] * other[i];
  return sum;
}

// ResidualLayerNorm: residual, x (..., channels), bias, gain, shift (channels) to their sum and its norm.

bool check_layer_norm(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  (void)attributes;
  int64_t channels = inputs[0].shape[inputs[0].rank - 1];
  bool alike = inputs[0].rank == inputs[1].rank &&
               memcmp(inputs[0].shape, inputs[1].shape, inputs[0].rank * sizeof(int64_t)) == 0;
  if (!alike) return say(message, "residual and x have different shapes");
  return equal(message, "values of the bias", inputs[2].shape[0], channels) &&
         equal(message, "values of the gain", inputs[3].shape[0], channels) &&
         equal(message, "values of the shift", inputs[4].shape[0], channels);
}

bool residual_layer_norm(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  int64_t channels = inputs[2].shape[0], rows = channels ? count(&inputs[0]) / channels : 0;
  const half *residual = inputs[0].data, *x = inputs[1].data, *bias = inputs[2].data;
  const half *gain = inputs[3].data, *shift = inputs[4].data;
  half *total = outputs[0].data, *normed = outputs[1].data;
  float* sum = malloc(sizeof(float) * (size_t)(channels + 1));
  if (sum == NULL) return false;
  for (int64_t row = 0; row < rows; row++) {
    int64_t at = row * channels;
    for (int64_t c = 0; c < channels; c++) {
      sum[c] = (float)residual[at + c] + (float)x[at + c] + (float)bias[c];
      total[at + c] = (half)sum[c];
    }
    normalise(sum, channels, attributes->epsilon, gain, shift);
    for (int64_t c = 0; c < channels; c++) normed[at + c] = (half)sum[c];
  }
  free(sum);
  return true;
}

// BiasGelu: x (..., channels) and bias (channels) to GELU(x + bias), by the error function.

bool check_gelu(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  (void)attributes;
  int64_t channels = inputs[0].shape[inputs[0].rank - 1];
  return equal(message, "values of the bias", inputs[1].shape[0], channels);
}

bool bias_gelu(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  (void)attributes;
  const half *x = inputs[0].data, *bias = inputs[1].data;
  half* out = outputs[0].data;
  int64_t channels = inputs[1].shape[0], values = count(&inputs[0]);
  for (int64_t i = 0; i < values; i++) out[i] = (half)gelu_of((float)x[i] + (float)bias[i % channels]);
  return true;
}
