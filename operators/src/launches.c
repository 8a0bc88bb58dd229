// One row an operator: adding one is a row of the table, and what its kernel has to be told.
//
// Names are those of the kernels' own arguments. What a kernel does not ask for is not looked at; what it asks for and
// is not given here is an error when a graph is opened.
#include <math.h>
#include <string.h>

#include "launches.h"

static void give(Values* values, const char* name, int64_t integer) {
  values->values[values->count++] = (Value){.name = name, .integer = integer};
}

static void give_real(Values* values, const char* name, float real) {
  values->values[values->count++] = (Value){.name = name, .real = real};
}

static int64_t attribute(const Operator* what, const Attributes* attributes, const char* name) {
  for (int number = 0; number < MAX_ATTRIBUTES && what->attributes[number] != NULL; number++)
    if (strcmp(what->attributes[number], name) == 0) return attributes->integers[number];
  return -1;
}

static int64_t part(int64_t whole, int64_t parts) { return whole < 0 || parts < 1 ? -1 : whole / parts; }

// The values of a tensor along its first `axes` axes; -1 where one of them is not known.
static int64_t volume(const Tensor* tensor, size_t axes) {
  int64_t values = 1;
  for (size_t axis = 0; axis < axes; axis++) {
    if (tensor->shape[axis] < 0) return -1;
    values *= tensor->shape[axis];
  }
  return values;
}

static void give_map(Values* values, const Tensor* map) {
  give(values, "batch", map->shape[0]);
  give(values, "height", map->shape[1]);
  give(values, "width", map->shape[2]);
}

static void give_heads(Values* values, int64_t channels, int64_t heads) {
  int64_t head_dim = part(channels, heads);
  give(values, "heads", heads);
  give(values, "head_dim", head_dim);
  give_real(values, "scale", head_dim < 1 ? 0 : 1 / sqrtf((float)head_dim));
}

static void describe_norm(const Operator* what, const Attributes* attributes, const Tensor* inputs, Values* values) {
  (void)what;
  give(values, "channels", inputs[2].shape[0]);
  give(values, "rows", volume(&inputs[0], inputs[0].rank - 1));
  give_real(values, "epsilon", attributes->epsilon);
}

static void describe_gelu(const Operator* what, const Attributes* attributes, const Tensor* inputs, Values* values) {
  (void)what, (void)attributes;
  give(values, "channels", inputs[1].shape[0]);
  give(values, "elements", volume(&inputs[0], inputs[0].rank));
}

static void describe_window(const Operator* what, const Attributes* attributes, const Tensor* inputs, Values* values) {
  give_map(values, &inputs[0]);
  give_heads(values, part(inputs[0].shape[3], 3), attribute(what, attributes, "heads"));
  give(values, "window", attribute(what, attributes, "window"));
  give(values, "shift", attribute(what, attributes, "shift"));
}

static void describe_neighborhood(const Operator* what, const Attributes* attributes, const Tensor* inputs,
                                  Values* values) {
  give_map(values, &inputs[0]);
  give_heads(values, part(inputs[0].shape[3], 3), attribute(what, attributes, "heads"));
  give(values, "kernel", attribute(what, attributes, "kernel"));
}

static void describe_sampling(const Operator* what, const Attributes* attributes, const Tensor* inputs,
                              Values* values) {
  (void)what, (void)attributes;
  give_map(values, &inputs[0]);
  give(values, "groups", inputs[1].shape[1]);
  give(values, "channels", part(inputs[0].shape[3], inputs[1].shape[1]));
  give(values, "keys", inputs[1].shape[2]);
}

static void describe_deformable(const Operator* what, const Attributes* attributes, const Tensor* inputs,
                                Values* values) {
  give_map(values, &inputs[0]);
  give(values, "keys", inputs[1].shape[1]);
  give(values, "groups", inputs[3].shape[1]);
  give_heads(values, inputs[0].shape[3], attribute(what, attributes, "heads"));
  give(values, "generation", attribute(what, attributes, "generation"));
  give(values, "table_height", inputs[4].shape[1]);
  give(values, "table_width", inputs[4].shape[2]);
}

static void describe_convolution(const Operator* what, const Attributes* attributes, const Tensor* inputs,
                                 Values* values) {
  give_map(values, &inputs[0]);
  give(values, "channels", inputs[0].shape[3]);
  give(values, "weight_channels", inputs[2].shape[2]);
  give(values, "kernel", inputs[2].shape[0]);
  give(values, "stride", attribute(what, attributes, "stride"));
  give(values, "padding", attribute(what, attributes, "padding"));
  give(values, "has_skip", attribute(what, attributes, "skip"));
  give(values, "has_gelu", attribute(what, attributes, "gelu"));
}

static void describe_embedding(const Operator* what, const Attributes* attributes, const Tensor* inputs,
                               Values* values) {
  give_map(values, &inputs[0]);
  give(values, "colours", inputs[0].shape[3]);
  give(values, "channels", inputs[3].shape[0]);
  give(values, "kernel", inputs[2].shape[0]);
  give(values, "stride", attribute(what, attributes, "stride"));
  give(values, "padding", attribute(what, attributes, "padding"));
  give(values, "has_gelu", attribute(what, attributes, "gelu"));
  give_real(values, "epsilon", attributes->epsilon);
}

static void describe_perception(const Operator* what, const Attributes* attributes, const Tensor* inputs,
                                Values* values) {
  (void)what;
  give_map(values, &inputs[0]);
  give(values, "channels", inputs[0].shape[3]);
  give(values, "kernel", inputs[3].shape[0]);
  give_real(values, "epsilon", attributes->epsilon);
}

static void describe_positions(const Operator* what, const Attributes* attributes, const Tensor* inputs,
                               Values* values) {
  give_map(values, &inputs[0]);
  give(values, "groups", part(inputs[0].shape[3], inputs[1].shape[2]));
  give(values, "channels", inputs[1].shape[2]);
  give(values, "kernel", inputs[1].shape[0]);
  give(values, "stride", attribute(what, attributes, "stride"));
  give(values, "padding", attribute(what, attributes, "padding"));
  give(values, "generation", attribute(what, attributes, "generation"));
  give(values, "bound", attribute(what, attributes, "bound"));
  give_real(values, "epsilon", attributes->epsilon);
}

static const Launch launches[] = {
    {"ResidualLayerNorm", "residual_layer_norm", {"total", "normed", "residual", "x", "bias", "gain", "shift"},
     describe_norm},
    {"BiasGelu", "bias_gelu", {"out", "x", "bias"}, describe_gelu},
    {"WindowAttention", "window_attention", {"out", "qkv", "qkv_bias", "position_bias"}, describe_window},
    {"NeighborhoodAttention", "neighborhood_attention", {"out", "qkv", "qkv_bias", "position_bias"},
     describe_neighborhood},
    {"SampleFeatures", "feature_sampling", {"out", "x", "position"}, describe_sampling},
    {"DeformableAttention", "deformable_attention", {"out", "query", "key", "value", "position", "table"},
     describe_deformable},
    {"DepthwiseConvolution", "depthwise_convolution", {"out", "x", "added", "weight", "bias"}, describe_convolution},
    {"PatchEmbedding", "patch_embedding", {"out", "image", "beyond", "weight", "bias", "gain", "shift"},
     describe_embedding},
    {"PerceptionNorm", "perception_norm",
     {"total", "normed", "residual", "x", "added", "weight", "bias", "gain", "shift"}, describe_perception},
    {"SamplingPositions", "sampling_positions",
     {"out", "query", "weight", "bias", "gain", "shift", "projection", "scale"}, describe_positions},
};

const Launch* launch_of(const char* name) {
  for (size_t number = 0; number < sizeof launches / sizeof *launches; number++)
    if (strcmp(launches[number].name, name) == 0) return &launches[number];
  return NULL;
}
