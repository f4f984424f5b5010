// Slots' codes times numbers of 16 bits. Sums of whole numbers are exact: their order changes no bit.
//
// A code is a number of 8 bits, from -127 to 127. What it is multiplied with lies in `Numbers`: rounded so that the
// largest magnitude becomes the largest number. Tiles hold a multiple of 4 slots, rows a multiple of 32 codes.
#pragma once
#include "attention.h"
#include "lanes.h"
#include "rounding.h"

namespace scope {
namespace SCOPE_LANES {
namespace {

constexpr int COLUMNS = 32;  // of a slot, whose sums are made together

// Into the second cache: the first one can wait for too few at once.
inline void fetch(const void* at) { __builtin_prefetch(at, 0, 2); }

#if defined(SCOPE_AVX512) || defined(SCOPE_AVX2)

#if defined(SCOPE_AVX512)
constexpr int ASKED = 4;  // rows of numbers that share the codes that were loaded; as many as the registers hold

inline V load(const int32_t* at) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(at)); }
inline V load_halfs(const uint16_t* at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at)); }
inline V larger(V a, V b) {  // by magnitude; what is no number is the largest
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(a), magnitude),
                                                _mm512_and_si512(_mm512_castps_si512(b), magnitude)));
}
inline uint32_t largest_bits(V magnitudes) { return _mm512_reduce_max_epu32(_mm512_castps_si512(magnitudes)); }
inline void store_whole(int16_t* at, V x) {
    _mm256_storeu_si256((__m256i*)at, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
}
inline __m256i dot(__m256i sum, __m256i a, __m256i b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));  // of the intrinsic g++ 12 copies the sum
    return sum;
}
#else
constexpr int ASKED = 3;

inline V load(const int32_t* at) {
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i*)at)),
            _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i*)(at + 8)))};
}
inline V load_halfs(const uint16_t* at) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(at + 8)))};
}
inline __m256 larger(__m256 a, __m256 b) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_and_si256(_mm256_castps_si256(a), magnitude),
                                                _mm256_and_si256(_mm256_castps_si256(b), magnitude)));
}
inline V larger(V a, V b) { return {larger(a.low, b.low), larger(a.high, b.high)}; }
inline uint32_t largest_bits(V magnitudes) {
    const __m256i both = _mm256_castps_si256(larger(magnitudes.low, magnitudes.high));
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(most);
}
inline void store_whole(int16_t* at, V x) {
    const __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
    _mm256_storeu_si256((__m256i*)at, _mm256_permute4x64_epi64(both, 0xd8));
}
inline __m256i dot(__m256i sum, __m256i a, __m256i b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
#endif

inline void store_sums(const __m256i* of, int32_t* out) {  // of four registers
    const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(of[0], of[1]), _mm256_hadd_epi32(of[2], of[3]));
    _mm_storeu_si128((__m128i*)out, _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
}

// out[q][slot] = sum over columns of codes[slot] * numbers[q], for Q rows of numbers; `next` is read soon after.
template <int Q>
inline void multiply_codes(const int8_t* codes, int stride, int columns, const int16_t* numbers, int wide,
                           const char* next, int32_t* out) {
    for (int s = 0; s < TILE; s += 4, codes += 4 * stride) {
        __m256i total[Q * 4];
#pragma GCC unroll 16
        for (int i = 0; i < Q * 4; i++) total[i] = _mm256_setzero_si256();
        for (int i = 0; i < columns; i += COLUMNS) {
#pragma GCC unroll 2
            for (int j = i; j < i + COLUMNS; j += 16) {
                __m256i asked[Q];
#pragma GCC unroll 4
                for (int q = 0; q < Q; q++) asked[q] = _mm256_loadu_si256((const __m256i*)(numbers + q * wide + j));
#pragma GCC unroll 4
                for (int b = 0; b < 4; b++) {
                    const __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(codes + b * stride + j)));
#pragma GCC unroll 4
                    for (int q = 0; q < Q; q++) total[q * 4 + b] = dot(total[q * 4 + b], code, asked[q]);
                }
            }
            for (int j = 0; j < 4 * COLUMNS; j += 64, next += 64) fetch(next);
        }
#pragma GCC unroll 4
        for (int q = 0; q < Q; q++) store_sums(total + q * 4, out + q * TILE + s);
    }
}

// out[q][column] = sum over slots of codes[slot][column] * numbers[q][slot], for 32 columns and Q rows of numbers.
template <int Q>
inline void add_codes(const int8_t* codes, int stride, const int16_t* numbers, const char* next, int32_t* out) {
    __m256i total[Q][4];
    for (int q = 0; q < Q; q++)
        for (int b = 0; b < 4; b++) total[q][b] = _mm256_setzero_si256();
    for (int s = 0; s < TILE; s += 4, codes += 4 * stride) {
        __m256i row[4], both[4];  // the four codes of a column side by side: of slots 0, 2, 1, 3
        for (int b = 0; b < 4; b++) row[b] = _mm256_loadu_si256((const __m256i*)(codes + b * stride));
        const __m256i a = _mm256_unpacklo_epi8(row[0], row[2]), b = _mm256_unpacklo_epi8(row[1], row[3]);
        const __m256i c = _mm256_unpackhi_epi8(row[0], row[2]), d = _mm256_unpackhi_epi8(row[1], row[3]);
        both[0] = _mm256_unpacklo_epi16(a, b), both[1] = _mm256_unpackhi_epi16(a, b);
        both[2] = _mm256_unpacklo_epi16(c, d), both[3] = _mm256_unpackhi_epi16(c, d);
        for (int i = 0; i < 4; i++) {
            const __m256i front = _mm256_srai_epi16(_mm256_slli_epi16(both[i], 8), 8), back = _mm256_srai_epi16(both[i], 8);
            for (int q = 0; q < Q; q++) {
                int32_t pairs[2];
                memcpy(pairs, numbers + q * TILE + s, sizeof pairs);
                total[q][i] = dot(dot(total[q][i], front, _mm256_set1_epi32(pairs[0])), back, _mm256_set1_epi32(pairs[1]));
            }
        }
        for (int i = 0; i < 4 * COLUMNS; i += 64, next += 64) fetch(next);
    }
    for (int q = 0; q < Q; q++)
        for (int i = 0; i < 4; i++) {
            int32_t* at = out + q * COLUMNS + 4 * i;
            _mm_storeu_si128((__m128i*)at, _mm256_castsi256_si128(total[q][i]));
            _mm_storeu_si128((__m128i*)(at + 16), _mm256_extracti128_si256(total[q][i], 1));
        }
}

// The codes of 4 bits of a row, low ones first.
inline void unpack_halves(const uint8_t* row, int half, int8_t* out) {
    for (int i = 0; i < half; i += 16) {
        const __m128i both = _mm_loadu_si128((const __m128i*)(row + i)), low = _mm_set1_epi8(15);
        _mm_storeu_si128((__m128i*)(out + i), _mm_and_si128(both, low));
        _mm_storeu_si128((__m128i*)(out + half + i), _mm_and_si128(_mm_srli_epi16(both, 4), low));
    }
}

#else

constexpr int ASKED = 1;

inline V load(const int32_t* at) {
    return each([&](int i) { return (float)at[i]; });
}
inline V load_halfs(const uint16_t* at) {
    return each([&](int i) { return from_float16(at[i]); });
}
inline V larger(V a, V b) {
    return each([&](int i) {
        const uint32_t x = to_bits(a.x[i]) & 0x7fffffff, y = to_bits(b.x[i]) & 0x7fffffff;
        return from_bits(x > y ? x : y);
    });
}
inline uint32_t largest_bits(V magnitudes) { return to_bits(halved(magnitudes, [](float x, float y) { return to_bits(x) > to_bits(y) ? x : y; })); }
inline void store_whole(int16_t* at, V x) {
    for (int i = 0; i < WIDTH; i++) at[i] = (int16_t)(x.x[i] == x.x[i] ? std::nearbyint(x.x[i]) : 0);
}

template <int Q>
inline void multiply_codes(const int8_t* codes, int stride, int columns, const int16_t* numbers, int wide, const char*,
                           int32_t* out) {
    for (int q = 0; q < Q; q++)
        for (int s = 0; s < TILE; s++) {
            int32_t sum = 0;
            for (int i = 0; i < columns; i++) sum += codes[s * stride + i] * numbers[q * wide + i];
            out[q * TILE + s] = sum;
        }
}

template <int Q>
inline void add_codes(const int8_t* codes, int stride, const int16_t* numbers, const char*, int32_t* out) {
    for (int q = 0; q < Q; q++)
        for (int i = 0; i < COLUMNS; i++) {
            int32_t sum = 0;
            for (int s = 0; s < TILE; s++) sum += codes[s * stride + i] * numbers[q * TILE + s];
            out[q * COLUMNS + i] = sum;
        }
}

inline void unpack_halves(const uint8_t* row, int half, int8_t* out) {
    for (int i = 0; i < half; i++) {
        out[i] = (int8_t)(row[i] & 15);
        out[half + i] = (int8_t)(row[i] >> 4);
    }
}

#endif

// A row of whole vectors to numbers; returns what one of them stands for, no number where the row has one.
inline float round_row(const float* row, int count, float most, int16_t* out) {
    V largest = zero();
    for (int i = 0; i < count; i += WIDTH) largest = larger(largest, load(row + i));
    const Rounding rounding(largest_bits(largest), most);
    for (int i = 0; i < count; i += WIDTH) store_whole(out + i, mul(load(row + i), all(rounding.steps)));
    return rounding.scale;
}

}  // namespace
}  // namespace SCOPE_LANES
}  // namespace scope
