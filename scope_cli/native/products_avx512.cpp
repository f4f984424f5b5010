// The products with AVX-512 and VNNI: a register holds 4 columns of codes, or one column of numbers, of two groups.
#if defined(__x86_64__)
#include <immintrin.h>

#include "products_kinds.h"
#include "rounding_avx2.h"
#include "tiles.h"

namespace scope {
namespace {

struct Pair {  // a block of one group, and of the next one; the last of an odd number of groups is its own next
    const uint8_t *first, *second;
};

inline __m512i load(Pair at, int offset) {
    const __m256i first = _mm256_loadu_si256((const __m256i*)(at.first + offset));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), _mm256_loadu_si256((const __m256i*)(at.second + offset)),
                              1);
}

inline __m256i load_half(Pair at, int offset) {
    const __m128i first = _mm_loadu_si128((const __m128i*)(at.first + offset));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first),
                                   _mm_loadu_si128((const __m128i*)(at.second + offset)), 1);
}

inline __m512 halves(Pair at, int offset) { return _mm512_cvtph_ps(load_half(at, offset)); }

// Four activations in each of 16 places.
inline __m512i four(const int8_t* at) { return _mm512_set1_epi32(*(const int32_t*)at); }

inline void fetch_ahead(Pair at, int bytes) {
    for (int i = 0; i < bytes; i += 64) {
        _mm_prefetch((const char*)at.first + 1024 + i, _MM_HINT_T0);
        _mm_prefetch((const char*)at.second + 1024 + i, _MM_HINT_T0);
    }
}

// One block's codes times its activations, added to `whole`.
template <int planes>
inline __m512i products(const __m512i codes[8], const Block& x, __m512i whole) {
    __m512i high = _mm512_setzero_si512();
    for (int i = 0; i < 8; i++) high = _mm512_dpbusd_epi32(high, codes[i], four(x.high + 4 * i));
    whole = _mm512_add_epi32(whole, _mm512_slli_epi32(high, 8));
    if (planes == 2)
        for (int i = 0; i < 8; i++) whole = _mm512_dpbusd_epi32(whole, codes[i], four(x.low + 4 * i));
    return whole;
}

template <int tile, int planes>
void int4(Pair at, const Block* x, int blocks, __m512 sums[tile]) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int b = 0; b < blocks; b++, at.first += block_bytes(INT4), at.second += block_bytes(INT4)) {
        fetch_ahead(at, block_bytes(INT4));
        __m512i codes[8];
        for (int i = 0; i < 4; i++) {
            const __m512i pairs = load(at, 32 * i);
            codes[i] = _mm512_and_si512(pairs, low);
            codes[4 + i] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low);
        }
        const __m512 scales = halves(at, 128), minima = halves(at, 144);
        for (int n = 0; n < tile; n++) {
            const Block& own = x[n * blocks + b];
            const __m512i whole = products<planes>(codes, own, _mm512_setzero_si512());
            const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(own.scale));
            sums[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, sums[n]);
            sums[n] = _mm512_fmadd_ps(minima, _mm512_set1_ps(own.total), sums[n]);
        }
    }
}

template <int tile, int planes>
void int8(Pair at, const Block* x, int blocks, __m512 sums[tile]) {
    for (int b = 0; b < blocks; b++, at.first += block_bytes(INT8), at.second += block_bytes(INT8)) {
        fetch_ahead(at, block_bytes(INT8));
        __m512i codes[8];
        for (int i = 0; i < 8; i++) codes[i] = load(at, 32 * i);
        const __m512 scales = halves(at, 256);
        for (int n = 0; n < tile; n++) {
            const Block& own = x[n * blocks + b];
            const __m512i whole = products<planes>(codes, own, _mm512_set1_epi32(-128 * own.sum));
            const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(own.scale));
            sums[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, sums[n]);
        }
    }
}

inline __m512 column(Pair at, int kind, int i) {
    if (kind == FLOAT32) return _mm512_castsi512_ps(load(at, 4 * i * GROUP));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_half(at, 2 * i * GROUP)), 16));
}

template <int tile, int kind>
void numbers(Pair at, const float* x, int64_t stride, int columns, __m512 sums[tile]) {
    for (int i = 0; i < columns; i++) {
        const __m512 weights = column(at, kind, i);
        for (int n = 0; n < tile; n++)
            sums[n] = _mm512_fmadd_ps(weights, _mm512_set1_ps(x[n * stride + i]), sums[n]);
    }
}

// A piece of work: some groups, two at once, and all rows.
template <class Work>
void all_groups(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last,
                const Work& work) {
    const size_t group_bytes = blocks_of(weight.columns) * block_bytes(weight.kind);
    for (int start = 0; start < x.rows; start += STRETCH) {
        const int end = x.rows - start < STRETCH ? x.rows : start + STRETCH;
        for (int g = first; g < last; g += 2) {
            const uint8_t* group = weight.data + g * group_bytes;
            const Pair groups = {group, g + 1 < last ? group + group_bytes : group};
            const int there = weight.rows - g * GROUP, most = g + 1 < last ? 2 * GROUP : GROUP;
            const __mmask16 rows = (__mmask16)((1u << (there < most ? there : most)) - 1);
            in_tiles<8>(start, end, [&](int n, auto tile) {
                __m512 sums[tile.value];
                for (auto& sum : sums) sum = _mm512_setzero_ps();
                work(groups, n, tile, sums);
                for (int i = 0; i < tile.value; i++)
                    _mm512_mask_storeu_ps(out + (n + i) * out_stride + g * GROUP, rows, sums[i]);
            });
        }
    }
}

template <int kind>
void numbers_product(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    all_groups(weight, x, out, out_stride, first, last, [&](Pair groups, int n, auto tile, __m512* sums) {
        numbers<tile.value, kind>(groups, x.values + n * x.stride, x.stride, weight.columns, sums);
    });
}

template <int kind, int planes>
void codes_product(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    const int blocks = blocks_of(weight.columns);
    all_groups(weight, x, out, out_stride, first, last, [&](Pair groups, int n, auto tile, __m512* sums) {
        const Block* own = x.blocks + (int64_t)n * blocks;
        if (kind == INT4)
            int4<tile.value, planes>(groups, own, blocks, sums);
        else
            int8<tile.value, planes>(groups, own, blocks, sums);
    });
}

void multiply(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    const bool two = x.planes == 2;
    const auto product = weight.kind == BFLOAT16  ? numbers_product<BFLOAT16>
                         : weight.kind == FLOAT32 ? numbers_product<FLOAT32>
                         : weight.kind == INT4    ? (two ? codes_product<INT4, 2> : codes_product<INT4, 1>)
                                                  : (two ? codes_product<INT8, 2> : codes_product<INT8, 1>);
    product(weight, x, out, out_stride, first, last);
}

}  // namespace

const Products avx512_products = {round_row, multiply};

}  // namespace scope
#endif
