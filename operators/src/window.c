// WindowAttention: qkv (batch, height, width, 3 channels), its bias (3 channels) and the position bias (heads,
// window^2, window^2) to (batch, height, width, channels). Attributes: heads, window, shift (0: not rolled).
//
// A map that the window does not divide is padded on the right and bottom with tokens whose product is 0.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "operators.h"
#include "reference.h"

static const float MASKED = -100.0f;  // what models/ add to scores of what only the roll has brought together

enum { HEADS, WINDOW, SHIFT, MAX_WINDOW = 64 };

bool check_window(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
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

bool window_attention(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
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
