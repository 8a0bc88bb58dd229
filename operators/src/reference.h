// What the files of the reference have in common: checks that write what is wrong, the arithmetic, and for the table in
// operators.c the three functions of each operator.
#ifndef DAT_REFERENCE_H
#define DAT_REFERENCE_H

#include "operators.h"

// Return how many values a tensor has.
int64_t count(const Tensor*);

// What a convolution may have: sizes beyond these are mistakes, and would overflow.
enum { MAX_KERNEL = 63, MAX_STRIDE = 1024, MAX_SIDE = 1 << 30 };

// Return how many places a kernel has along a side; -1 where that is not known, or there can be none, whatever is given.
int64_t convolved(int64_t length, int64_t kernel, int64_t stride, int64_t padding);

// Write what is wrong, and return false.
__attribute__((format(printf, 2, 3))) bool say(char message[MESSAGE_BYTES], const char* format, ...);
bool equal(char message[MESSAGE_BYTES], const char* what, int64_t got, int64_t expected);
bool divides(char message[MESSAGE_BYTES], const char* parts, int64_t number, const char* whole, int64_t total);

// Turn scores into weights that sum to 1.
void softmax(float* scores, int64_t length);

float dot(const float* one, const float* other, int64_t length);

// Subtract the mean of values, divide by their standard deviation, and apply gain and shift.
void normalise(float* values, int64_t length, float epsilon, const half* gain, const half* shift);

// Return the GELU of a value, by the error function.
float gelu_of(float value);

bool check_layer_norm(const Attributes*, const Tensor* inputs, char message[MESSAGE_BYTES]);
bool residual_layer_norm(const Attributes*, const Tensor* inputs, const Tensor* outputs);

bool check_gelu(const Attributes*, const Tensor* inputs, char message[MESSAGE_BYTES]);
bool bias_gelu(const Attributes*, const Tensor* inputs, const Tensor* outputs);

bool check_window(const Attributes*, const Tensor* inputs, char message[MESSAGE_BYTES]);
bool window_attention(const Attributes*, const Tensor* inputs, const Tensor* outputs);

bool check_sampling(const Attributes*, const Tensor* inputs, char message[MESSAGE_BYTES]);
bool sample_features(const Attributes*, const Tensor* inputs, const Tensor* outputs);

bool check_deformable(const Attributes*, const Tensor* inputs, char message[MESSAGE_BYTES]);
bool deformable_attention(const Attributes*, const Tensor* inputs, const Tensor* outputs);

bool check_neighborhood(const Attributes*, const Tensor* inputs, char message[MESSAGE_BYTES]);
bool neighborhood_attention(const Attributes*, const Tensor* inputs, const Tensor* outputs);

bool check_depthwise(const Attributes*, const Tensor* inputs, char message[MESSAGE_BYTES]);
void shape_depthwise(const Attributes*, const Tensor* inputs, Tensor* output);
bool depthwise_convolution(const Attributes*, const Tensor* inputs, const Tensor* outputs);

bool check_embedding(const Attributes*, const Tensor* inputs, char message[MESSAGE_BYTES]);
void shape_embedding(const Attributes*, const Tensor* inputs, Tensor* output);
bool patch_embedding(const Attributes*, const Tensor* inputs, const Tensor* outputs);

bool check_perception(const Attributes*, const Tensor* inputs, char message[MESSAGE_BYTES]);
bool perception_norm(const Attributes*, const Tensor* inputs, const Tensor* outputs);

bool check_positions(const Attributes*, const Tensor* inputs, char message[MESSAGE_BYTES]);
void shape_positions(const Attributes*, const Tensor* inputs, Tensor* output);
bool sampling_positions(const Attributes*, const Tensor* inputs, const Tensor* outputs);

#endif
