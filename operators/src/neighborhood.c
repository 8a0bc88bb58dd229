// NeighborhoodAttention: qkv (batch, height, width, 3 channels), its bias (3 channels) and the position bias (heads,
// 2 kernel - 1, 2 kernel - 1), at key minus query, to (batch, height, width, channels). Attributes: heads, kernel.
//
// A query sees kernel x kernel cells around it, which are shifted inward at borders. A map smaller than that is padded
// on the right and bottom with tokens whose product is 0.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "operators.h"
#include "reference.h"

enum { HEADS, KERNEL };

typedef struct {
  const half* position_bias;
  float* map;  // queries, keys and values of an image, padded to the kernel: (rows, columns, 3 channels)
  half* out;
  int64_t height, width, rows, columns, heads, head_dim, kernel;
} Neighborhoods;

bool check_neighborhood(const Attributes* attributes, const Tensor* inputs, char message[MESSAGE_BYTES]) {
  int64_t heads = attributes->integers[HEADS], kernel = attributes->integers[KERNEL], wide = inputs[0].shape[3];
  if (kernel < 1 || kernel > MAX_KERNEL || kernel % 2 == 0)
    return say(message, "a kernel of %lld, and it is odd", (long long)kernel);
  return divides(message, "parts", 3, "channels", wide) && divides(message, "heads", heads, "channels", wide / 3) &&
         equal(message, "values of the bias", inputs[1].shape[0], wide) &&
         equal(message, "heads of the position bias", inputs[2].shape[0], heads) &&
         equal(message, "rows of the position bias", inputs[2].shape[1], 2 * kernel - 1) &&
         equal(message, "columns of the position bias", inputs[2].shape[2], 2 * kernel - 1);
}

static float* cell(const Neighborhoods* n, int64_t y, int64_t x) {
  return n->map + (y * n->columns + x) * 3 * n->heads * n->head_dim;
}

// Beyond the map the product is 0, and its bias is all that there is.
static void project(const Neighborhoods* n, const half* qkv, const half* bias) {
  int64_t wide = 3 * n->heads * n->head_dim;
  for (int64_t y = 0; y < n->rows; y++)
    for (int64_t x = 0; x < n->columns; x++) {
      bool is_inside = y < n->height && x < n->width;
      const half* product = qkv + (y * n->width + x) * wide;
      for (int64_t c = 0; c < wide; c++) cell(n, y, x)[c] = (float)bias[c] + (is_inside ? (float)product[c] : 0);
    }
}

// Where along an axis the cells begin that the query at `place` sees.
static int64_t window_start(int64_t place, int64_t length, int64_t kernel) {
  int64_t start = place - kernel / 2;
  if (start > length - kernel) start = length - kernel;
  return start < 0 ? 0 : start;
}

// One query and head: `scores` has room for kernel x kernel, and `sum` for a head's channels.
static void attend_around(const Neighborhoods* n, int64_t y, int64_t x, int64_t head, float* scores, float* sum) {
  int64_t kernel = n->kernel, cells = kernel * kernel, first = head * n->head_dim, side = 2 * kernel - 1;
  int64_t top = window_start(y, n->height, kernel), left = window_start(x, n->width, kernel);
  int64_t channels = n->heads * n->head_dim;
  const float* query = cell(n, y, x) + first;
  for (int64_t number = 0; number < cells; number++) {
    int64_t key_y = top + number / kernel, key_x = left + number % kernel;
    int64_t bias = (head * side + key_y - y + kernel - 1) * side + key_x - x + kernel - 1;
    float score = dot(query, cell(n, key_y, key_x) + channels + first, n->head_dim);
    scores[number] = score / sqrtf((float)n->head_dim) + (float)n->position_bias[bias];
  }
  softmax(scores, cells);
  memset(sum, 0, sizeof(float) * (size_t)n->head_dim);
  for (int64_t number = 0; number < cells; number++) {
    const float* value = cell(n, top + number / kernel, left + number % kernel) + 2 * channels + first;
    for (int64_t c = 0; c < n->head_dim; c++) sum[c] += scores[number] * value[c];
  }
  half* out = n->out + (y * n->width + x) * channels + first;
  for (int64_t c = 0; c < n->head_dim; c++) out[c] = (half)sum[c];
}

bool neighborhood_attention(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  const int64_t* shape = inputs[0].shape;
  int64_t heads = attributes->integers[HEADS], kernel = attributes->integers[KERNEL];
  int64_t wide = shape[3], image_values = shape[1] * shape[2] * wide;
  Neighborhoods n = {
      .position_bias = inputs[2].data, .height = shape[1], .width = shape[2],
      .rows = shape[1] < kernel ? kernel : shape[1], .columns = shape[2] < kernel ? kernel : shape[2],
      .heads = heads, .head_dim = wide / 3 / heads, .kernel = kernel,
  };
  n.map = malloc(sizeof(float) * (size_t)(n.rows * n.columns * wide + 1));
  float* scores = malloc(sizeof(float) * (size_t)(kernel * kernel + n.head_dim));
  bool has_memory = n.map != NULL && scores != NULL;
  for (int64_t image = 0; has_memory && image < shape[0]; image++) {
    project(&n, (const half*)inputs[0].data + image * image_values, inputs[1].data);
    n.out = (half*)outputs[0].data + image * image_values / 3;
    for (int64_t y = 0; y < n.height; y++)
      for (int64_t x = 0; x < n.width; x++)
        for (int64_t head = 0; head < heads; head++) attend_around(&n, y, x, head, scores, scores + kernel * kernel);
  }
  free(scores);
  free(n.map);
  return has_memory;
}
