// The products with AVX2: a register holds 4 columns of codes, or one column of numbers, of the 8 rows of a group.
#if defined(__x86_64__)
#include <immintrin.h>

#include "products_kinds.h"
#include "rounding_avx2.h"
#include "tiles.h"

namespace scope {
namespace {

inline __m256i load(const uint8_t* at) { return _mm256_loadu_si256((const __m256i*)at); }
inline __m256 halves(const uint8_t* at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at)); }

// Four activations in each of 8 places.
inline __m256i four(const int8_t* at) { return _mm256_set1_epi32(*(const int32_t*)at); }

inline void fetch_ahead(const uint8_t* at, int bytes) {
    for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char*)at + 1024 + i, _MM_HINT_T0);
}

inline void store(float* out, __m256 sums, int rows) {
    if (rows >= GROUP) return _mm256_storeu_ps(out, sums);
    const __m256i in = _mm256_cmpgt_epi32(_mm256_set1_epi32(rows), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    _mm256_maskstore_ps(out, in, sums);
}

// One block's codes times 32 numbers of 8 bits, summed up. Codes of 4 bits times 8 bits fit 16 bits 16 times.
inline __m256i products(const __m256i codes[8], const int8_t* numbers) {
    __m256i sums = _mm256_maddubs_epi16(codes[0], four(numbers));
    for (int i = 1; i < 8; i++)
        sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes[i], four(numbers + 4 * i)));
    return sums;
}

template <int tile, int planes>
void int4(const uint8_t* block, const Block* x, int blocks, __m256 sums[tile]) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), many = _mm256_set1_epi16(256);
    for (int b = 0; b < blocks; b++, block += block_bytes(INT4)) {
        fetch_ahead(block, block_bytes(INT4));
        __m256i codes[8];
        for (int i = 0; i < 4; i++) {
            const __m256i pairs = load(block + 32 * i);
            codes[i] = _mm256_and_si256(pairs, low);
            codes[4 + i] = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
        }
        const __m256 scales = halves(block + 128), minima = halves(block + 144);
        for (int n = 0; n < tile; n++) {
            const Block& own = x[n * blocks + b];
            __m256i whole = _mm256_madd_epi16(products(codes, own.high), many);
            if (planes == 2) whole = _mm256_add_epi32(whole, _mm256_madd_epi16(products(codes, own.low), ones));
            const __m256 scale = _mm256_mul_ps(scales, _mm256_set1_ps(own.scale));
            sums[n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, sums[n]);
            sums[n] = _mm256_fmadd_ps(minima, _mm256_set1_ps(own.total), sums[n]);
        }
    }
}

// Codes of 8 bits are widened to 16: two registers of four rows, and pairs of products that are added up at the end.
template <int tile>
void int8(const uint8_t* block, const Block* x, int blocks, __m256 sums[tile]) {
    const __m256i in_order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
    for (int b = 0; b < blocks; b++, block += block_bytes(INT8)) {
        fetch_ahead(block, block_bytes(INT8));
        __m256i above[tile], below[tile];  // rows 0 to 3, and 4 to 7
        for (int n = 0; n < tile; n++) above[n] = below[n] = _mm256_setzero_si256();
        for (int i = 0; i < 8; i++) {
            const __m256i codes = _mm256_xor_si256(load(block + 32 * i), _mm256_set1_epi8((char)128));
            const __m256i first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(codes));
            const __m256i second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(codes, 1));
            for (int n = 0; n < tile; n++) {
                const __m256i numbers = _mm256_set1_epi64x(*(const int64_t*)(x[n * blocks + b].whole + 4 * i));
                above[n] = _mm256_add_epi32(above[n], _mm256_madd_epi16(first, numbers));
                below[n] = _mm256_add_epi32(below[n], _mm256_madd_epi16(second, numbers));
            }
        }
        const __m256 scales = halves(block + 256);
        for (int n = 0; n < tile; n++) {
            const __m256i whole = _mm256_permutevar8x32_epi32(_mm256_hadd_epi32(above[n], below[n]), in_order);
            const __m256 scale = _mm256_mul_ps(scales, _mm256_set1_ps(x[n * blocks + b].scale));
            sums[n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, sums[n]);
        }
    }
}

inline __m256 column(const uint8_t* block, int kind, int at) {
    if (kind == FLOAT32) return _mm256_loadu_ps((const float*)block + at * GROUP);
    const __m128i bits = _mm_loadu_si128((const __m128i*)(block + 2 * at * GROUP));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// Columns of two groups at once: what is fetched of `x` serves both.
template <int tile, int kind>
void numbers(const uint8_t* first, const uint8_t* second, const float* x, int64_t stride, int columns,
             __m256 sums[2 * tile]) {
    __m256 above[tile], below[tile];  // these stay in registers
#pragma GCC unroll 8
    for (int n = 0; n < tile; n++) above[n] = below[n] = _mm256_setzero_ps();
    for (int i = 0; i < columns; i++) {
        const __m256 one = column(first, kind, i), two = column(second, kind, i);
#pragma GCC unroll 8
        for (int n = 0; n < tile; n++) {
            const __m256 number = _mm256_broadcast_ss(x + n * stride + i);
            above[n] = _mm256_fmadd_ps(one, number, above[n]);
            below[n] = _mm256_fmadd_ps(two, number, below[n]);
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < tile; n++) sums[2 * n] = above[n], sums[2 * n + 1] = below[n];
}

// A piece of work: some groups and all rows. Two groups at once where `pairs`; the last of an odd number is its own
// second, whose sums are not stored.
template <int most, bool pairs, class Work>
void all_groups(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last,
                const Work& work) {
    const size_t group_bytes = blocks_of(weight.columns) * block_bytes(weight.kind);
    constexpr int step = pairs ? 2 : 1;
    for (int start = 0; start < x.rows; start += STRETCH) {
        const int end = x.rows - start < STRETCH ? x.rows : start + STRETCH;
        for (int g = first; g < last; g += step)
            in_tiles<most>(start, end, [&](int n, auto tile) {
                const int there = g + step <= last ? step : 1;
                const uint8_t* group = weight.data + g * group_bytes;
                __m256 sums[step * tile.value];
                for (auto& sum : sums) sum = _mm256_setzero_ps();
                work(group, group + (there - 1) * group_bytes, n, tile, sums);
                for (int i = 0; i < tile.value; i++)
                    for (int j = 0; j < there; j++)
                        store(out + (n + i) * out_stride + (g + j) * GROUP, sums[step * i + j],
                              weight.rows - (g + j) * GROUP);
            });
    }
}

template <int kind>
void numbers_product(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    all_groups<4, true>(weight, x, out, out_stride, first, last,
                        [&](const uint8_t* one, const uint8_t* two, int n, auto tile, __m256* sums) {
                            numbers<tile.value, kind>(one, two, x.values + n * x.stride, x.stride, weight.columns,
                                                      sums);
                        });
}

template <int planes>
void int4_product(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    const int blocks = blocks_of(weight.columns);
    all_groups<8, false>(weight, x, out, out_stride, first, last,
                         [&](const uint8_t* group, const uint8_t*, int n, auto tile, __m256* sums) {
                             int4<tile.value, planes>(group, x.blocks + (int64_t)n * blocks, blocks, sums);
                         });
}

void int8_product(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    const int blocks = blocks_of(weight.columns);
    all_groups<4, false>(weight, x, out, out_stride, first, last,
                         [&](const uint8_t* group, const uint8_t*, int n, auto tile, __m256* sums) {
                             int8<tile.value>(group, x.blocks + (int64_t)n * blocks, blocks, sums);
                         });
}

void multiply(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    const auto product = weight.kind == BFLOAT16  ? numbers_product<BFLOAT16>
                         : weight.kind == FLOAT32 ? numbers_product<FLOAT32>
                         : weight.kind == INT8    ? int8_product
                         : x.planes == 2          ? int4_product<2>
                                                  : int4_product<1>;
    product(weight, x, out, out_stride, first, last);
}

}  // namespace

const Products avx2_products = {round_row, multiply};

}  // namespace scope
#endif
