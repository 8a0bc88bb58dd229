// What each operator computes, on the CPU: the reference that a whole graph is compared through where there is no GPU.
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

static const float SQRT_HALF = 0.70710678f, MASKED = -100.0f;

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

static bool same_batch(char message[MESSAGE_BYTES], const Tensor* one, const Tensor* other) {
  return equal(message, "images in the batch", other->shape[0], one->shape[0]);
}

static bool are_places(char message[MESSAGE_BYTES], const Tensor* positions) {
  return equal(message, "coordinates of a position", positions->shape[3], 2);
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

static bool check_layer_norm(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  (void)attributes;
  int64_t channels = inputs[0].shape[inputs[0].rank - 1];
  bool alike = inputs[0].rank == inputs[1].rank &&
               memcmp(inputs[0].shape, inputs[1].shape, inputs[0].rank * sizeof(int64_t)) == 0;
  if (!alike) return say(message, "residual and x have different shapes");
  return equal(message, "values of the bias", inputs[2].shape[0], channels) &&
         equal(message, "values of the gain", inputs[3].shape[0], channels) &&
         equal(message, "values of the shift", inputs[4].shape[0], channels);
}

static bool layer_norm(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
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

static bool check_gelu(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  (void)attributes;
  int64_t channels = inputs[0].shape[inputs[0].rank - 1];
  return equal(message, "values of the bias", inputs[1].shape[0], channels);
}

static bool gelu(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  (void)attributes;
  const half *x = inputs[0].data, *bias = inputs[1].data;
  half* out = outputs[0].data;
  int64_t channels = inputs[1].shape[0], values = count(&inputs[0]);
  for (int64_t i = 0; i < values; i++) out[i] = (half)gelu_of((float)x[i] + (float)bias[i % channels]);
  return true;
}

// WindowAttention: qkv (batch, height, width, 3 channels), its bias (3 channels) and the position bias (heads, window^2,
// window^2) to (batch, height, width, channels). Attributes: heads, window, shift.

enum { HEADS, WINDOW, SHIFT, MAX_WINDOW = 64 };

static bool check_window(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  int64_t heads = attributes->integers[HEADS], window = attributes->integers[WINDOW];
  int64_t shift = attributes->integers[SHIFT], wide = inputs[0].shape[3];
  if (window < 1 || window > MAX_WINDOW) return say(message, "a window of %lld", (long long)window);
  if (shift < 0 || shift >= window)
    return say(message, "a shift of %lld in a window of %lld", (long long)shift, (long long)window);
  return divides(message, "parts", 3, "channels", wide) && divides(message, "heads", heads, "channels", wide / 3) &&
         equal(message, "values of the bias", inputs[1].shape[0], wide) &&
         equal(message, "heads of the position bias", inputs[2].shape[0], heads) &&
         equal(message, "queries of the position bias", inputs[2].shape[1], window * window) &&
         equal(message, "keys of the position bias", inputs[2].shape[2], window * window);
}

typedef struct {
  const half* position_bias;
  float* map;  // queries, keys and values of an image, padded and rolled: (padded height, padded width, 3 channels)
  half* out;
  int64_t height, width, heads, head_dim, window, shift, padded_height, padded_width;
} Windows;

static float* cell(const Windows* w, int64_t y, int64_t x) {
  return w->map + (y * w->padded_width + x) * 3 * w->heads * w->head_dim;
}

// Beyond the map the product is 0, and its bias is all that there is.
static void project(const Windows* w, const half* qkv, const half* bias) {
  int64_t wide = 3 * w->heads * w->head_dim;
  for (int64_t y = 0; y < w->padded_height; y++)
    for (int64_t x = 0; x < w->padded_width; x++) {
      int64_t row = (y + w->shift) % w->padded_height, column = (x + w->shift) % w->padded_width;
      bool is_inside = row < w->height && column < w->width;
      const half* product = qkv + (row * w->width + column) * wide;
      for (int64_t c = 0; c < wide; c++) cell(w, y, x)[c] = (float)bias[c] + (is_inside ? (float)product[c] : 0);
    }
}

static int region(const Windows* w, int64_t y, int64_t x) {
  int rows = (y >= w->padded_height - w->window) + (y >= w->padded_height - w->shift);
  return rows * 3 + (x >= w->padded_width - w->window) + (x >= w->padded_width - w->shift);
}

// One query and head: `scores` has room for the window's tokens, and `sum` for a head's channels.
static void attend_in_window(const Windows* w, int64_t y, int64_t x, int64_t head, float* scores, float* sum) {
  int64_t tokens = w->window * w->window, channels = w->heads * w->head_dim, first = head * w->head_dim;
  int64_t top = y / w->window * w->window, left = x / w->window * w->window;
  int64_t token = (y - top) * w->window + (x - left);
  int64_t row = (y + w->shift) % w->padded_height, column = (x + w->shift) % w->padded_width;
  if (row >= w->height || column >= w->width) return;
  const float* query = cell(w, y, x) + first;
  for (int64_t number = 0; number < tokens; number++) {
    int64_t key_y = top + number / w->window, key_x = left + number % w->window;
    const float* key = cell(w, key_y, key_x) + channels + first;
    float bias = (float)w->position_bias[(head * tokens + token) * tokens + number];
    if (w->shift > 0 && region(w, y, x) != region(w, key_y, key_x)) bias += MASKED;
    scores[number] = dot(query, key, w->head_dim) / sqrtf((float)w->head_dim) + bias;
  }
  softmax(scores, tokens);
  memset(sum, 0, sizeof(float) * (size_t)w->head_dim);
  for (int64_t number = 0; number < tokens; number++) {
    const float* value = cell(w, top + number / w->window, left + number % w->window) + 2 * channels + first;
    for (int64_t c = 0; c < w->head_dim; c++) sum[c] += scores[number] * value[c];
  }
  half* out = w->out + (row * w->width + column) * channels + first;
  for (int64_t c = 0; c < w->head_dim; c++) out[c] = (half)sum[c];
}

static bool window_attention(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  int64_t window = attributes->integers[WINDOW], heads = attributes->integers[HEADS];
  const int64_t* shape = inputs[0].shape;
  int64_t wide = shape[3], image_values = shape[1] * shape[2] * wide;
  Windows w = {
      .position_bias = inputs[2].data, .height = shape[1], .width = shape[2], .heads = heads,
      .head_dim = wide / 3 / heads, .window = window, .shift = attributes->integers[SHIFT],
      .padded_height = (shape[1] + window - 1) / window * window,
      .padded_width = (shape[2] + window - 1) / window * window,
  };
  w.map = malloc(sizeof(float) * (size_t)(w.padded_height * w.padded_width * wide + 1));
  float* scores = malloc(sizeof(float) * (size_t)(window * window + w.head_dim));
  bool has_memory = w.map != NULL && scores != NULL;
  for (int64_t image = 0; has_memory && image < shape[0]; image++) {
    project(&w, (const half*)inputs[0].data + image * image_values, inputs[1].data);
    w.out = (half*)outputs[0].data + image * image_values / 3;
    for (int64_t y = 0; y < w.padded_height; y++)
      for (int64_t x = 0; x < w.padded_width; x++)
        for (int64_t head = 0; head < heads; head++)
          attend_in_window(&w, y, x, head, scores, scores + window * window);
  }
  free(scores);
  free(w.map);
  return has_memory;
}

// The bilinear value of a map at (y, x) in [-1, 1], whose pixels are `step` values apart; 0 outside.
static float sampled(const half* map, int64_t height, int64_t width, int64_t step, float y, float x) {
  float row = (y + 1) / 2 * (float)(height - 1), column = (x + 1) / 2 * (float)(width - 1), value = 0;
  float top = floorf(row), left = floorf(column);
  for (int corner = 0; corner < 4; corner++) {
    float at_y = top + (float)(corner / 2), at_x = left + (float)(corner % 2);
    if (!(at_y >= 0 && at_y < (float)height && at_x >= 0 && at_x < (float)width)) continue;
    float weight = (1 - fabsf(row - at_y)) * (1 - fabsf(column - at_x));
    value += weight * (float)map[((int64_t)at_y * width + (int64_t)at_x) * step];
  }
  return value;
}

// SampleFeatures: a map (batch, height, width, channels) at positions (batch, groups, keys, 2), each group of channels
// at its own, to (batch, keys, channels).

static bool check_sampling(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  (void)attributes;
  return same_batch(message, &inputs[0], &inputs[1]) && are_places(message, &inputs[1]) &&
         divides(message, "groups", inputs[1].shape[1], "channels", inputs[0].shape[3]);
}

static bool sample_features(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  (void)attributes;
  const int64_t *shape = inputs[0].shape, groups = inputs[1].shape[1], keys = inputs[1].shape[2];
  int64_t height = shape[1], width = shape[2], channels = shape[3];
  const half* maps = inputs[0].data;
  const float* positions = inputs[1].data;
  half* out = outputs[0].data;
  for (int64_t image = 0; image < shape[0]; image++)
    for (int64_t key = 0; key < keys; key++)
      for (int64_t c = 0; c < channels; c++) {
        const float* at = positions + ((image * groups + c / (channels / groups)) * keys + key) * 2;
        const half* map = maps + image * height * width * channels + c;
        out[(image * keys + key) * channels + c] = (half)sampled(map, height, width, channels, at[0], at[1]);
      }
  return true;
}

// DeformableAttention: query (batch, height, width, channels), key and value (batch, keys, channels), positions of the
// keys (batch, groups, keys, 2) and the bias table (heads, table height, table width), which is read at half of query
// minus key, to (batch, height, width, channels). A table without rows is no bias, and positions do not matter then.
// Attributes: heads, generation (how queries lie on the map).

enum { GENERATION = 1 };

static bool check_deformable(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  int64_t heads = attributes->integers[HEADS], generation = attributes->integers[GENERATION];
  int64_t channels = inputs[0].shape[3], keys = inputs[1].shape[1], groups = inputs[3].shape[1];
  if (generation != 1 && generation != 2)
    return say(message, "generation %lld, and there are 1 and 2", (long long)generation);
  for (int number = 1; number < 3; number++)
    if (!equal(message, "number of keys or values", inputs[number].shape[1], keys) ||
        !equal(message, "channels of key or value", inputs[number].shape[2], channels) ||
        !same_batch(message, &inputs[0], &inputs[number]))
      return false;
  return divides(message, "heads", heads, "channels", channels) && divides(message, "groups", groups, "heads", heads) &&
         same_batch(message, &inputs[0], &inputs[3]) && are_places(message, &inputs[3]) &&
         equal(message, "number of positions", inputs[3].shape[2], keys) &&
         equal(message, "heads of the table", inputs[4].shape[0], heads);
}

static float query_coordinate(int64_t index, int64_t length, int64_t generation) {
  if (generation == 1) return ((float)index + 0.5f) / (float)length * 2 - 1;
  return (float)index / (float)(length - 1) * 2 - 1;
}

typedef struct {
  const Attributes* attributes;
  const Tensor* inputs;
  const float *query, *key, *value;
  half* out;
} Sampled;

// One query and head; `scores` has room for the keys, and `sum` for a head's channels.
static void attend_to_sampled(const Sampled* s, int64_t image, int64_t y, int64_t x, int64_t head, float* scores,
                              float* sum) {
  int64_t heads = s->attributes->integers[HEADS], generation = s->attributes->integers[GENERATION];
  int64_t height = s->inputs[0].shape[1], width = s->inputs[0].shape[2], channels = s->inputs[0].shape[3];
  int64_t keys = s->inputs[1].shape[1], groups = s->inputs[3].shape[1], size = channels / heads;
  int64_t table_height = s->inputs[4].shape[1], table_width = s->inputs[4].shape[2];
  int64_t place = ((image * height + y) * width + x) * channels + head * size;
  const float *query = s->query + place, *key = s->key + image * keys * channels + head * size;
  const float* value = s->value + image * keys * channels + head * size;
  const float* position = (const float*)s->inputs[3].data + (image * groups + head / (heads / groups)) * keys * 2;
  const half* table = (const half*)s->inputs[4].data + head * table_height * table_width;
  float at_y = query_coordinate(y, height, generation), at_x = query_coordinate(x, width, generation);
  for (int64_t k = 0; k < keys; k++) {
    scores[k] = dot(query, key + k * channels, size) / sqrtf((float)size);
    if (table_height == 0) continue;
    float down = (at_y - position[k * 2]) / 2, across = (at_x - position[k * 2 + 1]) / 2;
    scores[k] += sampled(table, table_height, table_width, 1, down, across);
  }
  softmax(scores, keys);
  memset(sum, 0, sizeof(float) * (size_t)size);
  for (int64_t k = 0; k < keys; k++)
    for (int64_t c = 0; c < size; c++) sum[c] += scores[k] * value[k * channels + c];
  for (int64_t c = 0; c < size; c++) s->out[place + c] = (half)sum[c];
}

// Return a tensor's values as floats, for the caller to free; NULL where memory runs out.
static float* widened(const Tensor* tensor) {
  int64_t values = count(tensor);
  float* wide = malloc(sizeof(float) * (size_t)(values + 1));
  for (int64_t i = 0; wide != NULL && i < values; i++) wide[i] = (float)((const half*)tensor->data)[i];
  return wide;
}

static bool deformable_attention(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  const int64_t *shape = inputs[0].shape, keys = inputs[1].shape[1];
  float* scores = malloc(sizeof(float) * (size_t)(keys + shape[3] + 1));
  float *query = widened(&inputs[0]), *key = widened(&inputs[1]), *value = widened(&inputs[2]);
  bool has_memory = scores != NULL && query != NULL && key != NULL && value != NULL;
  Sampled s = {attributes, inputs, query, key, value, outputs[0].data};
  for (int64_t image = 0; has_memory && image < shape[0]; image++)
    for (int64_t y = 0; y < shape[1]; y++)
      for (int64_t x = 0; x < shape[2]; x++)
        for (int64_t head = 0; head < attributes->integers[HEADS]; head++)
          attend_to_sampled(&s, image, y, x, head, scores, scores + keys);
  free(scores);
  free(query);
  free(key);
  free(value);
  return has_memory;
}

const Operator dat_operators[OPERATORS] = {
    {
        .name = "ResidualLayerNorm",
        .inputs = 5,
        .outputs = 2,
        .ranks = {0, 0, 1, 1, 1},
        .has_epsilon = true,
        .check = check_layer_norm,
        .compute = layer_norm,
    },
    {.name = "BiasGelu", .inputs = 2, .outputs = 1, .ranks = {0, 1}, .check = check_gelu, .compute = gelu},
    {
        .name = "WindowAttention",
        .inputs = 3,
        .outputs = 1,
        .ranks = {4, 1, 3},
        .attributes = {"heads", "window", "shift"},
        .shapes = {{.rank = 4, .dimensions = {{0, 0, 1}, {0, 1, 1}, {0, 2, 1}, {0, 3, 3}}}},
        .check = check_window,
        .compute = window_attention,
    },
    {
        .name = "SampleFeatures",
        .inputs = 2,
        .outputs = 1,
        .ranks = {4, 4},
        .is_float32 = {false, true},
        .shapes = {{.rank = 3, .dimensions = {{0, 0, 1}, {1, 2, 1}, {0, 3, 1}}}},
        .check = check_sampling,
        .compute = sample_features,
    },
    {
        .name = "DeformableAttention",
        .inputs = 5,
        .outputs = 1,
        .ranks = {4, 3, 3, 4, 3},
        .is_float32 = {false, false, false, true, false},
        .attributes = {"heads", "generation"},
        .check = check_deformable,
        .compute = deformable_attention,
    },
    {
        .name = "NeighborhoodAttention",
        .inputs = 3,
        .outputs = 1,
        .ranks = {4, 1, 3},
        .attributes = {"heads", "kernel"},
        .shapes = {{.rank = 4, .dimensions = {{0, 0, 1}, {0, 1, 1}, {0, 2, 1}, {0, 3, 3}}}},
        .check = check_neighborhood,
        .compute = neighborhood_attention,
    },
    {
        .name = "DepthwiseConvolution",
        .inputs = 4,
        .outputs = 1,
        .ranks = {4, 1, 3, 1},
        .attributes = {"stride", "padding", "gelu", "skip"},
        .shape = shape_depthwise,
        .check = check_depthwise,
        .compute = depthwise_convolution,
    },
    {
        .name = "PatchEmbedding",
        .inputs = 6,
        .outputs = 1,
        .ranks = {4, 1, 4, 1, 1, 1},
        .is_uint8 = {true},
        .has_epsilon = true,
        .attributes = {"stride", "padding", "gelu"},
        .shape = shape_embedding,
        .check = check_embedding,
        .compute = patch_embedding,
    },
    {
        .name = "PerceptionNorm",
        .inputs = 7,
        .outputs = 2,
        .ranks = {4, 4, 1, 3, 1, 1, 1},
        .has_epsilon = true,
        .check = check_perception,
        .compute = perception_norm,
    },
    {
        .name = "SamplingPositions",
        .inputs = 7,
        .outputs = 1,
        .ranks = {4, 3, 1, 1, 1, 2, 1},
        .is_float32 = {[6] = true},
        .gives_float32 = true,
        .has_epsilon = true,
        .attributes = {"stride", "padding", "generation", "bound"},
        .shape = shape_positions,
        .check = check_positions,
        .compute = sampling_positions,
    },
};
