// Pillow's bicubic resize of 8-bit pixels, bit for bit, in instructions of AVX2.
//
// The arithmetic is Pillow 13's: weights in double, rounded to 22 bits of fraction; sums of 32 bits; each of two passes
// rounded to 8 bits, across first unless the height shrinks by more than twice as many pixels as the width. Here a
// weight is high * 2^11 + low, two numbers of 16 bits, since one instruction multiplies sixteen of these by pixels and
// adds the products in pairs. Sums of whole numbers are the same in any order, modulo 2^32, so that no bit is lost.
//
// Invariants: nothing is read beside the image's own bytes, nor written beside the bytes that are asked for; nothing is
// kept between calls, and any number of threads may call at once.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

enum { DONE = 0, NO_MEMORY = 1, UNFIT = 2 };
enum {
  FRACTION_BITS = 22,
  LOW_BITS = 11,
  HALF = 1 << (FRACTION_BITS - 1),
  CHANNELS = 3,
  PIXEL_BYTES = 4,
  TAPS_ACROSS = 4,    // neighbours across that one step takes: 16 bytes of pixels
  TAPS_DOWN = 2,      // and rows down
  BYTES_A_STEP = 16,  // columns down that one step takes
  LEAST_COLUMNS = (BYTES_A_STEP + CHANNELS - 1) / CHANNELS,
  ALIGNMENT = 64,
};

#ifdef __x86_64__
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

// The neighbours of each output along one side. Each has as many `taps`, which begin at `first`: whole steps, so that
// the weights of some are 0.
typedef struct {
  int count;
  int taps;
  int* first;
  int32_t* weights;
} Filter;

static void* room(size_t count, size_t bytes) {
  size_t all = 0;
  if (__builtin_mul_overflow(count, bytes, &all) || all > SIZE_MAX - ALIGNMENT) return NULL;
  return aligned_alloc(ALIGNMENT, (all + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
}

static void free_filter(Filter* filter) {
  free(filter->first);
  free(filter->weights);
}

// Keys' cubic with a = -1/2, in the order of operations that rounds as Pillow's.
static double cubic(double x) {
  x = fabs(x);
  if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
  return 0.0;
}

static int32_t rounded(double weight) {
  double scaled = weight * (1 << FRACTION_BITS);
  return (int32_t)(weight < 0 ? scaled - 0.5 : scaled + 0.5);
}

// Fill in the weights of one output, whose place is `at` in pixels of a side of `in`; `exact` has room for all taps.
static void weigh(Filter* filter, int output, int in, double at, double reach, double shrink, double* exact) {
  int from = (int)(at - reach + 0.5), to = (int)(at + reach + 0.5);
  double sum = 0.0;
  if (from < 0) from = 0;
  if (to > in) to = in;
  for (int x = from; x < to; x++) sum += exact[x - from] = cubic((x - at + 0.5) * shrink);
  int first = from > in - filter->taps ? in - filter->taps : from;  // no tap lies beyond the side's end
  int32_t* weights = filter->weights + (size_t)output * filter->taps;
  memset(weights, 0, sizeof *weights * filter->taps);
  for (int x = from; x < to; x++) weights[x - first] = rounded(sum != 0.0 ? exact[x - from] / sum : exact[x - from]);
  filter->first[output] = first;
}

// Make the filter of `count` outputs from `begin` on, of a side of `in` pixels, the first `filled` of which are resized to
// `out`. The caller frees it, whatever comes of it.
static int make_filter(Filter* filter, int in, double filled, int out, int begin, int count, int taps_a_step) {
  double scale = filled / out, widening = scale < 1.0 ? 1.0 : scale, reach = 2.0 * widening;
  int most = (int)ceil(reach) * 2 + 1, taps = (most + taps_a_step - 1) / taps_a_step * taps_a_step;
  if (taps > in) return UNFIT;
  double* exact = room(taps, sizeof *exact);
  *filter = (Filter){count, taps, room(count, sizeof(int)), room(count, taps * sizeof(int32_t))};
  if (exact == NULL || filter->first == NULL || filter->weights == NULL) {
    free(exact);
    return NO_MEMORY;
  }
  for (int output = 0; output < count; output++) {
    weigh(filter, output, in, (begin + output + 0.5) * scale, reach, 1.0 / widening, exact);
  }
  free(exact);
  return DONE;
}

// Where the last output's neighbours end.
static int end_of(const Filter* filter) { return filter->first[filter->count - 1] + filter->taps; }

// Two weights' parts as a pair of 16 bits: what multiplies a pixel and its neighbour.
static inline int32_t high_pair(const int32_t* w) {
  return (int32_t)((uint32_t)(uint16_t)(w[0] >> LOW_BITS) | (uint32_t)(uint16_t)(w[1] >> LOW_BITS) << 16);
}

static inline int32_t low_pair(const int32_t* w) {
  const int32_t mask = (1 << LOW_BITS) - 1;
  return (w[0] & mask) | (w[1] & mask) << 16;
}

// For each step across, 8 pairs of high parts and 8 of low ones: each pair once for each byte of a pixel.
static int32_t* pairs_across(const Filter* across) {
  size_t steps = (size_t)across->count * (across->taps / TAPS_ACROSS);
  int32_t* pairs = room(steps, 16 * sizeof *pairs);
  for (size_t step = 0; pairs != NULL && step < steps; step++) {
    const int32_t* weights = across->weights + step * TAPS_ACROSS;
    for (int lane = 0; lane < 8; lane++) {
      pairs[step * 16 + lane] = high_pair(weights + lane / 4 * 2);
      pairs[step * 16 + 8 + lane] = low_pair(weights + lane / 4 * 2);
    }
  }
  return pairs;
}

// For each step down, the pair of high parts and that of low ones.
static int32_t* pairs_down(const Filter* down) {
  size_t steps = (size_t)down->count * (down->taps / TAPS_DOWN);
  int32_t* pairs = room(steps, 2 * sizeof *pairs);
  for (size_t step = 0; pairs != NULL && step < steps; step++) {
    pairs[step * 2] = high_pair(down->weights + step * TAPS_DOWN);
    pairs[step * 2 + 1] = low_pair(down->weights + step * TAPS_DOWN);
  }
  return pairs;
}

AVX2 static inline __m256i sum_of(__m256i high, __m256i low) {
  return _mm256_add_epi32(_mm256_slli_epi32(high, LOW_BITS), low);
}

AVX2 static inline __m256i levels_of(__m256i sum) {
  return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(HALF)), FRACTION_BITS);
}

// The bytes of a row of outputs, which are written as RGB by fours: there is room for the last one's fourth.
static ptrdiff_t row_bytes_of(const Filter* across) { return (ptrdiff_t)across->count * CHANNELS + 1; }

// Resize rows of RGBX across, two at a time, to rows of `row_bytes_of`; the rows begin with the pixel `begin`.
AVX2 static void pass_across(const uint8_t* in, ptrdiff_t in_bytes, int begin, int rows, const Filter* across,
                             const int32_t* pairs, uint8_t* out) {
  const __m256i beside = _mm256_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1,  //
                                          8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1);
  const int steps = across->taps / TAPS_ACROSS;
  const ptrdiff_t out_bytes = row_bytes_of(across);
  for (int row = 0; row < rows; row += 2) {
    int next = row + 1 < rows ? 1 : 0;  // an odd last row is done twice
    const uint8_t *in0 = in + row * in_bytes, *in1 = in0 + next * in_bytes;
    uint8_t *out0 = out + row * out_bytes, *out1 = out0 + next * out_bytes;
    const __m256i* weights = (const __m256i*)pairs;
    for (int i = 0; i < across->count; i++) {
      ptrdiff_t place = (ptrdiff_t)(across->first[i] - begin) * PIXEL_BYTES;
      __m256i high0 = _mm256_setzero_si256(), low0 = high0, high1 = high0, low1 = high0;
      for (int step = 0; step < steps; step++, place += TAPS_ACROSS * PIXEL_BYTES, weights += 2) {
        __m256i high = _mm256_load_si256(weights), low = _mm256_load_si256(weights + 1);
        __m256i p0 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(in0 + place)));
        __m256i p1 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(in1 + place)));
        p0 = _mm256_shuffle_epi8(p0, beside);
        p1 = _mm256_shuffle_epi8(p1, beside);
        high0 = _mm256_add_epi32(high0, _mm256_madd_epi16(p0, high));
        low0 = _mm256_add_epi32(low0, _mm256_madd_epi16(p0, low));
        high1 = _mm256_add_epi32(high1, _mm256_madd_epi16(p1, high));
        low1 = _mm256_add_epi32(low1, _mm256_madd_epi16(p1, low));
      }
      // The one half of a sum is of the first and second tap of each step, the other of the third and fourth.
      __m256i sum0 = sum_of(high0, low0), sum1 = sum_of(high1, low1);
      __m256i sum = _mm256_add_epi32(_mm256_permute2x128_si256(sum0, sum1, 0x20),
                                     _mm256_permute2x128_si256(sum0, sum1, 0x31));
      __m256i levels = _mm256_packs_epi32(levels_of(sum), _mm256_setzero_si256());
      levels = _mm256_packus_epi16(levels, levels);
      int32_t pixel0 = _mm_cvtsi128_si32(_mm256_castsi256_si128(levels));
      int32_t pixel1 = _mm_cvtsi128_si32(_mm256_extracti128_si256(levels, 1));
      memcpy(out0 + i * CHANNELS, &pixel0, sizeof pixel0);
      memcpy(out1 + i * CHANNELS, &pixel1, sizeof pixel1);
    }
  }
}

// Sixteen columns' bytes, of which the first sums are of 0 to 3 and 8 to 11, and the second ones of the others.
AVX2 static inline __m128i columns_of(__m256i sum0, __m256i sum1) {
  __m256i bytes = _mm256_packs_epi32(levels_of(sum0), levels_of(sum1));
  bytes = _mm256_packus_epi16(bytes, bytes);
  return _mm_unpacklo_epi64(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
}

// Resize columns of bytes, at least 16, down; `in` is the row `begin`.
AVX2 static void pass_down(const uint8_t* in, ptrdiff_t in_bytes, int begin, int bytes, const Filter* down,
                           const int32_t* pairs, uint8_t* out, ptrdiff_t out_bytes) {
  const int steps = down->taps / TAPS_DOWN;
  for (int i = 0; i < down->count; i++, out += out_bytes, pairs += 2 * steps) {
    const uint8_t* rows = in + (down->first[i] - begin) * in_bytes;
    for (int from = 0; from < bytes; from += BYTES_A_STEP) {
      int column = from < bytes - BYTES_A_STEP ? from : bytes - BYTES_A_STEP;  // the last ones may overlap
      const uint8_t* place = rows + column;
      __m256i high0 = _mm256_setzero_si256(), low0 = high0, high1 = high0, low1 = high0;
      for (int step = 0; step < steps; step++, place += TAPS_DOWN * in_bytes) {
        __m256i high = _mm256_set1_epi32(pairs[2 * step]), low = _mm256_set1_epi32(pairs[2 * step + 1]);
        __m256i upper = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)place));
        __m256i lower = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(place + in_bytes)));
        __m256i p0 = _mm256_unpacklo_epi16(upper, lower), p1 = _mm256_unpackhi_epi16(upper, lower);
        high0 = _mm256_add_epi32(high0, _mm256_madd_epi16(p0, high));
        low0 = _mm256_add_epi32(low0, _mm256_madd_epi16(p0, low));
        high1 = _mm256_add_epi32(high1, _mm256_madd_epi16(p1, high));
        low1 = _mm256_add_epi32(low1, _mm256_madd_epi16(p1, low));
      }
      _mm_storeu_si128((__m128i*)(out + column), columns_of(sum_of(high0, low0), sum_of(high1, low1)));
    }
  }
}

// Both filters and their weights as the passes take them.
typedef struct {
  Filter across, down;
  int32_t *pairs_across, *pairs_down;
} Plan;

static void free_plan(Plan* plan) {
  free_filter(&plan->across);
  free_filter(&plan->down);
  free(plan->pairs_across);
  free(plan->pairs_down);
}

static int across_then_down(const uint8_t* in, ptrdiff_t in_bytes, const Plan* plan, uint8_t* out) {
  int top = plan->down.first[0], rows = end_of(&plan->down) - top, out_bytes = plan->across.count * CHANNELS;
  ptrdiff_t row_bytes = row_bytes_of(&plan->across);
  uint8_t* between = room(rows, row_bytes);
  if (between == NULL) return NO_MEMORY;
  pass_across(in + top * in_bytes, in_bytes, 0, rows, &plan->across, plan->pairs_across, between);
  pass_down(between, row_bytes, top, out_bytes, &plan->down, plan->pairs_down, out, out_bytes);
  free(between);
  return DONE;
}

static int down_then_across(const uint8_t* in, ptrdiff_t in_bytes, const Plan* plan, uint8_t* out) {
  int left = plan->across.first[0], width = end_of(&plan->across) - left, rows = plan->down.count;
  ptrdiff_t between_bytes = (ptrdiff_t)width * PIXEL_BYTES, row_bytes = row_bytes_of(&plan->across);
  uint8_t *between = room(rows, between_bytes), *made = room(rows, row_bytes);
  int status = between != NULL && made != NULL ? DONE : NO_MEMORY;
  if (status == DONE) {
    pass_down(in + left * PIXEL_BYTES, in_bytes, 0, (int)between_bytes, &plan->down, plan->pairs_down, between,
              between_bytes);
    pass_across(between, between_bytes, left, rows, &plan->across, plan->pairs_across, made);
    size_t out_bytes = (size_t)plan->across.count * CHANNELS;
    for (int row = 0; row < rows; row++) memcpy(out + row * out_bytes, made + row * row_bytes, out_bytes);
  }
  free(between);
  free(made);
  return status;
}

static int lies_inside(int from, int count, int length) {
  return from >= 0 && count >= 1 && count <= length && from <= length - count;
}

EXPORTED int dat_bicubic_runs_here(void) { return __builtin_cpu_supports("avx2") != 0; }

// Resize `pixels`, RGBX of width x height in rows without gaps, as far as filled_width x filled_height, of which a last
// pixel may be a part, to resize_width x resize_height, and write of that the part of crop_width x crop_height at (left,
// top), RGB, to `out`. UNFIT where a side has fewer pixels than the filter, or the part fewer than six columns, or
// what Pillow fills with black: places outside.
EXPORTED int dat_bicubic(const uint8_t* pixels, int width, int height, double filled_width, double filled_height,
                         int resize_width, int resize_height, int left, int top, int crop_width, int crop_height,
                         uint8_t* out) {
  if (crop_width < LEAST_COLUMNS) return UNFIT;
  if (!lies_inside(left, crop_width, resize_width) || !lies_inside(top, crop_height, resize_height)) return UNFIT;
  Plan plan = {0};
  int status = make_filter(&plan.across, width, filled_width, resize_width, left, crop_width, TAPS_ACROSS);
  if (status == DONE) {
    status = make_filter(&plan.down, height, filled_height, resize_height, top, crop_height, TAPS_DOWN);
  }
  if (status == DONE) {
    plan.pairs_across = pairs_across(&plan.across);
    plan.pairs_down = pairs_down(&plan.down);
    if (plan.pairs_across == NULL || plan.pairs_down == NULL) status = NO_MEMORY;
  }
  if (status == DONE) {
    ptrdiff_t bytes = (ptrdiff_t)width * PIXEL_BYTES;
    int is_down_first = height > resize_height && height - resize_height > (width - resize_width) * 2;
    status = (is_down_first ? down_then_across : across_then_down)(pixels, bytes, &plan, out);
  }
  free_plan(&plan);
  return status;
}

#else

EXPORTED int dat_bicubic_runs_here(void) { return 0; }

#endif
