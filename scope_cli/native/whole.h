// Sums of products of small whole numbers, sixteen sums at a time, beside lanes.h: exact, so the same everywhere.
//
// As many numbers lie together as are multiplied and added up by one instruction: two of 16 bits, or four bytes. Bytes, which
// AVX-512 alone multiplies, have a side that is never negative, 0 to 255, and one from -127 to 127.
#pragma once
#include "lanes.h"

namespace scope {
namespace SCOPE_LANES {
namespace {

#if defined(SCOPE_AVX512)

using W = __m512i;
using Unsigned = uint8_t;
using Signed = int8_t;
inline W all_of(int32_t x) { return _mm512_set1_epi32(x); }
inline W load_whole(const void* at) { return _mm512_loadu_si512(at); }
inline void store_whole(void* at, W x) { _mm512_storeu_si512(at, x); }
template <class Number>  // of a
inline W dot(W sum, W a, W b) {  // g++ 12 moves the intrinsics' sums to memory
    if constexpr (sizeof(Number) == 1)
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    else
        __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
inline V floats(W sum) { return _mm512_cvtepi32_ps(sum); }
inline W nearest(V x) { return _mm512_cvtps_epi32(x); }
template <int BITS>
inline W above(W low, W x) {
    return _mm512_or_si512(low, _mm512_slli_epi32(x, BITS));
}

#elif defined(SCOPE_AVX2)

struct W {
    __m256i low, high;
};
using Unsigned = int16_t;
using Signed = int16_t;
inline W all_of(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline W load_whole(const void* at) {
    return {_mm256_loadu_si256((const __m256i*)at), _mm256_loadu_si256((const __m256i*)at + 1)};
}
inline void store_whole(void* at, W x) {
    _mm256_storeu_si256((__m256i*)at, x.low);
    _mm256_storeu_si256((__m256i*)at + 1, x.high);
}
template <class Number>
inline W dot(W sum, W a, W b) {
    sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, b.low));
    __asm__ volatile("" : "+x"(sum.low));  // in this order: see products_avx2.cpp
    sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, b.high));
    __asm__ volatile("" : "+x"(sum.high));
    return sum;
}
inline V floats(W sum) { return {_mm256_cvtepi32_ps(sum.low), _mm256_cvtepi32_ps(sum.high)}; }
inline W nearest(V x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
template <int BITS>
inline W above(W low, W x) {
    return {_mm256_or_si256(low.low, _mm256_slli_epi32(x.low, BITS)),
            _mm256_or_si256(low.high, _mm256_slli_epi32(x.high, BITS))};
}

#else

struct W {
    int32_t x[WIDTH];
};
using Unsigned = int16_t;
using Signed = int16_t;
template <class F>
inline W each_whole(F f) {
    W out;
    for (int i = 0; i < WIDTH; i++) out.x[i] = f(i);
    return out;
}
inline W all_of(int32_t x) {
    return each_whole([&](int) { return x; });
}
inline W load_whole(const void* at) {
    W out;
    memcpy(out.x, at, sizeof out.x);
    return out;
}
inline void store_whole(void* at, W x) { memcpy(at, x.x, sizeof x.x); }
template <class Number>
inline W dot(W sum, W a, W b) {
    return each_whole([&](int i) {
        return sum.x[i] + (int16_t)a.x[i] * (int16_t)b.x[i] + (a.x[i] >> 16) * (b.x[i] >> 16);
    });
}
inline V floats(W sum) {
    return each([&](int i) { return (float)sum.x[i]; });
}
inline W nearest(V x) {  // no number: any
    return each_whole([&](int i) { return x.x[i] == x.x[i] ? (int32_t)nearbyintf(x.x[i]) : 0; });
}
template <int BITS>
inline W above(W low, W x) {
    return each_whole([&](int i) { return low.x[i] | x.x[i] << BITS; });
}

#endif

template <class Number>
constexpr int TOGETHER = 4 / sizeof(Number);

// Unsigned numbers, 16 of each vector, of which those of one lane lie together.
inline W join(const V* x) {
    W out = nearest(x[0]);
    if constexpr (TOGETHER<Unsigned> == 2) return above<16>(out, nearest(x[1]));
    return above<24>(above<16>(above<8>(out, nearest(x[1])), nearest(x[2])), nearest(x[3]));
}

inline W all_at(const void* at) {
    int32_t together;
    memcpy(&together, at, sizeof together);
    return all_of(together);
}

}  // namespace
}  // namespace SCOPE_LANES
}  // namespace scope
