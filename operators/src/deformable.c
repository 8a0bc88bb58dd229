// Features sampled at positions, and attention to them: the reference on the CPU.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "operators.h"
#include "reference.h"

static bool same_batch(char message[MESSAGE_BYTES], const Tensor* one, const Tensor* other) {
  return equal(message, "images in the batch", other->shape[0], one->shape[0]);
}

static bool are_places(char message[MESSAGE_BYTES], const Tensor* positions) {
  return equal(message, "coordinates of a position", positions->shape[3], 2);
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

bool check_sampling(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  (void)attributes;
  return same_batch(message, &inputs[0], &inputs[1]) && are_places(message, &inputs[1]) &&
         divides(message, "groups", inputs[1].shape[1], "channels", inputs[0].shape[3]);
}

bool sample_features(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
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

enum { HEADS, GENERATION };

bool check_deformable(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
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

bool deformable_attention(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
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
