// Sixteen floats as one value, in three widths of register: an array, two AVX2 registers, one of AVX-512.
//
// Everything that attention, norms and activations compute is written once over this type. Each operation rounds
// as IEEE 754 says, a multiply-add is fused where it is called so and nowhere else, and sums over lanes halve:
// 16, 8, 4, 2. So the three give the same bits. A file that includes this one says by its compiler's flags which
// it gets; SCOPE_LANES is the namespace that keeps them apart.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "numbers.h"

#if defined(SCOPE_AVX512) || defined(SCOPE_AVX2)
#include <immintrin.h>
#else
#include <cmath>
#endif

#if defined(SCOPE_AVX512)
#define SCOPE_LANES avx512
#elif defined(SCOPE_AVX2)
#define SCOPE_LANES avx2
#else
#define SCOPE_LANES plain
#endif

namespace scope {
namespace SCOPE_LANES {
namespace {

constexpr int WIDTH = 16;

#if defined(SCOPE_AVX512)

using V = __m512;
constexpr int SUMS = 8;    // sums that `sums` takes at once
constexpr int QUERIES = 3;  // that share what was loaded; as many as the registers hold
constexpr int CHUNKS = 4;   // of 16 numbers that are added up side by side

inline V all(float x) { return _mm512_set1_ps(x); }
inline V load(const float* at) { return _mm512_loadu_ps(at); }
inline void store(float* at, V x) { _mm512_storeu_ps(at, x); }
inline V load(const uint16_t* bfloats) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)bfloats));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V divide(V a, V b) { return _mm512_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V most(V a, V b) { return _mm512_max_ps(a, b); }
inline V least(V a, V b) { return _mm512_min_ps(a, b); }
inline V zero_below(V x, float limit, V otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(x, all(limit), _CMP_LT_OQ), _mm512_setzero_ps());
}
inline V power_of_2(V whole) {
    __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(whole), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}
inline V swapped(V a, int apart) {
    if (apart == 1) return _mm512_permute_ps(a, 0xB1);
    if (apart == 2) return _mm512_permute_ps(a, 0x4E);
    return apart == 4 ? _mm512_shuffle_f32x4(a, a, 0xB1) : _mm512_shuffle_f32x4(a, a, 0x4E);
}
inline float first(V a) { return _mm512_cvtss_f32(a); }
inline float sum(V a) {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float top(V a) { return _mm512_reduce_max_ps(a); }
inline void sums(const V* v, float* out) {
    __m512 pair[4], four[2];
    for (int i = 0; i < 4; i++) {  // 8 + 8 lanes: of v[2i], of v[2i + 1]
        V a = v[2 * i], b = v[2 * i + 1];
        pair[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    }
    for (int i = 0; i < 2; i++) {  // 4 lanes of each of four
        V a = pair[2 * i], b = pair[2 * i + 1];
        four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
    }
    // 2 lanes of each of eight, then one; a quarter of the register holds sums i and i + 4
    V two = _mm512_add_ps(_mm512_shuffle_ps(four[0], four[1], 0x44), _mm512_shuffle_ps(four[0], four[1], 0xEE));
    V one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xB1));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, one)));
}
inline float float_of_half(uint16_t half) { return _cvtsh_ss(half); }
inline uint16_t half_of_float(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

#elif defined(SCOPE_AVX2)

struct V {
    __m256 low, high;
};
constexpr int SUMS = 4, QUERIES = 1, CHUNKS = 4;

inline V all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline V load(const float* at) { return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
inline void store(float* at, V x) {
    _mm256_storeu_ps(at, x.low);
    _mm256_storeu_ps(at + 8, x.high);
}
inline __m256 eight(const uint16_t* bfloats) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)bfloats));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline V load(const uint16_t* bfloats) { return {eight(bfloats), eight(bfloats + 8)}; }
inline V add(V a, V b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline V sub(V a, V b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline V mul(V a, V b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline V divide(V a, V b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline V fma(V a, V b, V c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline V most(V a, V b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline V least(V a, V b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline V zero_below(V x, float limit, V otherwise) {
    const __m256 bound = _mm256_set1_ps(limit);
    return {_mm256_andnot_ps(_mm256_cmp_ps(x.low, bound, _CMP_LT_OQ), otherwise.low),
            _mm256_andnot_ps(_mm256_cmp_ps(x.high, bound, _CMP_LT_OQ), otherwise.high)};
}
inline __m256 power_of_2(__m256 whole) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline V power_of_2(V whole) { return {power_of_2(whole.low), power_of_2(whole.high)}; }
inline V swapped(V a, int apart) {
    if (apart == 1) return {_mm256_permute_ps(a.low, 0xB1), _mm256_permute_ps(a.high, 0xB1)};
    if (apart == 2) return {_mm256_permute_ps(a.low, 0x4E), _mm256_permute_ps(a.high, 0x4E)};
    if (apart == 4) return {_mm256_permute2f128_ps(a.low, a.low, 1), _mm256_permute2f128_ps(a.high, a.high, 1)};
    return {a.high, a.low};
}
inline float first(V a) { return _mm256_cvtss_f32(a.low); }
inline float sum(V a) {
    __m256 h = _mm256_add_ps(a.low, a.high);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float top(V a) {
    __m256 h = _mm256_max_ps(a.low, a.high);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
inline void sums(const V* v, float* out) {
    __m256 a = _mm256_add_ps(v[0].low, v[0].high), b = _mm256_add_ps(v[1].low, v[1].high);
    __m256 c = _mm256_add_ps(v[2].low, v[2].high), d = _mm256_add_ps(v[3].low, v[3].high);
    a = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    c = _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
    a = _mm256_add_ps(_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xEE));
    a = _mm256_add_ps(a, _mm256_permute_ps(a, 0xB1));  // sums 0, 0, 2, 2, 1, 1, 3, 3
    __m128 even = _mm256_castps256_ps128(a), odd = _mm256_extractf128_ps(a, 1);
    _mm_storeu_ps(out, _mm_blend_ps(even, odd, 0xA));
}
inline float float_of_half(uint16_t half) { return _cvtsh_ss(half); }
inline uint16_t half_of_float(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

#else

struct V {
    float x[WIDTH];
};
constexpr int SUMS = 4, QUERIES = 1, CHUNKS = 1;

template <class F>
inline V each(F f) {
    V out;
    for (int i = 0; i < WIDTH; i++) out.x[i] = f(i);
    return out;
}
inline V all(float x) {
    return each([&](int) { return x; });
}
inline V load(const float* at) {
    return each([&](int i) { return at[i]; });
}
inline void store(float* at, V a) { memcpy(at, a.x, sizeof a.x); }
inline V load(const uint16_t* bfloats) {
    return each([&](int i) { return from_bfloat16(bfloats[i]); });
}
inline V add(V a, V b) {
    return each([&](int i) { return a.x[i] + b.x[i]; });
}
inline V sub(V a, V b) {
    return each([&](int i) { return a.x[i] - b.x[i]; });
}
inline V mul(V a, V b) {
    return each([&](int i) { return a.x[i] * b.x[i]; });
}
inline V divide(V a, V b) {
    return each([&](int i) { return a.x[i] / b.x[i]; });
}
inline V fma(V a, V b, V c) {
    return each([&](int i) { return std::fma(a.x[i], b.x[i], c.x[i]); });
}
inline V most(V a, V b) {  // b where either is no number
    return each([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
}
inline V least(V a, V b) {
    return each([&](int i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
}
inline V zero_below(V x, float limit, V otherwise) {
    return each([&](int i) { return x.x[i] < limit ? 0.0f : otherwise.x[i]; });
}
inline V power_of_2(V whole) {  // no number in, anything out: whoever calls multiplies by one that is none
    return each([&](int i) {
        float n = whole.x[i];
        return from_bits((uint32_t)((n == n ? (int)n : 0) + 127) << 23);
    });
}
inline V swapped(V a, int apart) {  // number i and number i ^ apart: 1, 2, 4 or 8
    return each([&](int i) { return a.x[i ^ apart]; });
}
inline float first(V a) { return a.x[0]; }
template <class F>
inline float halved(V a, F f) {
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a.x[i] = f(a.x[i], a.x[i + half]);
    return a.x[0];
}
inline float sum(V a) {
    return halved(a, [](float x, float y) { return x + y; });
}
inline float top(V a) {
    return halved(a, [](float x, float y) { return x > y ? x : y; });
}
inline void sums(const V* v, float* out) {
    for (int i = 0; i < SUMS; i++) out[i] = sum(v[i]);
}
inline float float_of_half(uint16_t half) { return from_float16(half); }
inline uint16_t half_of_float(float x) {  // to the nearest, ties to even
    uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
    if (size > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (size >> 13 & 0x3FF));
    if (size >= 0x477FF000) return (uint16_t)(sign | 0x7C00);
    if (size < 0x38800000) {  // below the least normal half: a multiple of 2^-24
        float spaced = (from_bits(size) + 0.5f) - 0.5f;
        return (uint16_t)(sign | (uint32_t)(spaced * 0x1p24f));
    }
    uint32_t odd = size >> 13 & 1;
    return (uint16_t)(sign | ((size + 0xFFF + odd - 0x38000000) >> 13));
}

#endif

// The rest is written over the above.

inline V zero() { return all(0.0f); }

// To the nearest whole number, ties to even; below 2^22 in size.
inline V whole(V x) { return sub(add(x, all(0x1.8p23f)), all(0x1.8p23f)); }

// e to the x (Cephes' polynomial; 2 units in the last place); 0 below -87, no more than e^88; NaN stays one.
inline V exp(V x) {
    V bounded = least(all(88.0f), most(all(-87.0f), x));
    V n = whole(mul(bounded, all(1.44269504f)));
    V r = fma(n, all(-0.693359375f), bounded);
    r = fma(n, all(2.12194440e-4f), r);
    V p = all(1.9875691500e-4f);
    p = fma(p, r, all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    p = fma(mul(p, r), r, add(r, all(1.0f)));
    return zero_below(x, -87.0f, mul(p, power_of_2(n)));
}

inline V tanh(V x) {
    return sub(all(1.0f), divide(all(2.0f), add(exp(add(x, x)), all(1.0f))));
}

// f(how many, the first) until all queries of a group have had their turn: Q of them at a time, then the rest.
template <int Q, class F>
inline void some_queries(int group, const F& f, int q = 0) {
    for (; q + Q <= group; q += Q) f(std::integral_constant<int, Q>(), q);
    if constexpr (Q > 1)
        if (q < group) some_queries<Q - 1>(group, f, q);
}

// `count` numbers from `at` on, at most 16, and zeros behind them.
inline V load_some(const float* at, int count) {
    if (count >= WIDTH) return load(at);
    float padded[WIDTH] = {};
    memcpy(padded, at, (size_t)count * sizeof(float));
    return load(padded);
}

inline void store_some(float* at, V x, int count) {
    if (count >= WIDTH) return store(at, x);
    float padded[WIDTH];
    store(padded, x);
    memcpy(at, padded, (size_t)count * sizeof(float));
}

// To bfloat16, the nearest, ties to even.
inline uint16_t bfloat_of_float(float x) {
    const uint32_t bits = to_bits(x);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace
}  // namespace SCOPE_LANES
}  // namespace scope
