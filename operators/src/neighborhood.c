// NeighborhoodAttention: qkv (batch, height, width, 3 channels), its bias (3 channels) and the position bias (heads,
// 2 kernel - 1, 2 kernel - 1), at key minus query, to (batch, height, width, channels). Attributes: heads, kernel.
//
// A query sees kernel x kernel cells around it, which are shifted inward at borders. A map smaller than that is padded
// on the right and bottom with tokens whose product is 0.
#include <math.h>
#include <stdlib.h>

#include "operators.h"
#include "reference.h"

enum { HEADS, KERNEL, MAX_KERNEL = 63 };

typedef struct {
  const half *qkv, *bias, *position_bias;
  half* out;
  int64_t height, width, heads, head_dim, kernel;
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

// One of query (0), key (1) or value (2) at a cell; beyond the map the product is 0.
static float projected(const Neighborhoods* n, int64_t image, int64_t y, int64_t x, int part, int64_t channel) {
  int64_t channels = n->heads * n->head_dim, at = part * channels + channel;
  float value = (float)n->bias[at];
  if (y < n->height && x < n->width)
    value += (float)n->qkv[((image * n->height + y) * n->width + x) * 3 * channels + at];
  return value;
}

// Where along an axis the cells begin that the query at `place` sees.
static int64_t window_start(int64_t place, int64_t length, int64_t kernel) {
  int64_t start = place - kernel / 2;
  if (start > length - kernel) start = length - kernel;
  return start < 0 ? 0 : start;
}

// One query and head: `scores` has room for kernel x kernel.
static void attend_around(const Neighborhoods* n, int64_t image, int64_t y, int64_t x, int64_t head, float* scores) {
  int64_t kernel = n->kernel, cells = kernel * kernel, first = head * n->head_dim, side = 2 * kernel - 1;
  int64_t top = window_start(y, n->height, kernel), left = window_start(x, n->width, kernel);
  float scale = 1 / sqrtf((float)n->head_dim);
  for (int64_t key = 0; key < cells; key++) {
    int64_t key_y = top + key / kernel, key_x = left + key % kernel;
    float score = 0;
    for (int64_t c = first; c < first + n->head_dim; c++)
      score += projected(n, image, y, x, 0, c) * projected(n, image, key_y, key_x, 1, c);
    int64_t bias = (head * side + key_y - y + kernel - 1) * side + key_x - x + kernel - 1;
    scores[key] = score * scale + (float)n->position_bias[bias];
  }
  softmax(scores, cells);
  half* out = n->out + ((image * n->height + y) * n->width + x) * n->heads * n->head_dim;
  for (int64_t c = first; c < first + n->head_dim; c++) {
    float value = 0;
    for (int64_t key = 0; key < cells; key++)
      value += scores[key] * projected(n, image, top + key / kernel, left + key % kernel, 2, c);
    out[c] = (half)value;
  }
}

bool neighborhood_attention(const Attributes* attributes, const Tensor* inputs, const Tensor* outputs) {
  const int64_t* shape = inputs[0].shape;
  int64_t heads = attributes->integers[HEADS], kernel = attributes->integers[KERNEL];
  Neighborhoods n = {
      .qkv = inputs[0].data, .bias = inputs[1].data, .position_bias = inputs[2].data, .out = outputs[0].data,
      .height = shape[1], .width = shape[2], .heads = heads, .head_dim = shape[3] / 3 / heads, .kernel = kernel,
  };
  float* scores = malloc(sizeof(float) * (size_t)(kernel * kernel));
  if (scores == NULL) return false;
  for (int64_t image = 0; image < shape[0]; image++)
    for (int64_t y = 0; y < n.height; y++)
      for (int64_t x = 0; x < n.width; x++)
        for (int64_t head = 0; head < heads; head++) attend_around(&n, image, y, x, head, scores);
  free(scores);
  return true;
}
