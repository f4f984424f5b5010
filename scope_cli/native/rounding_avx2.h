// Activations to whole numbers in planes of 8 bits, with AVX2; included by what is compiled for it or for more.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "numbers.h"
#include "products_kinds.h"
#include "rounding.h"

namespace scope {
namespace {

// The largest of 8 bit patterns.
inline uint32_t largest_of(__m256i bits) {
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(most);
}

inline int32_t sum_of(__m256i numbers) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_cvtsi128_si32(sum);
}

// 32 whole numbers, each in 8 bits.
inline void store_bytes(int8_t* at, const __m256i numbers[4]) {
    const __m256i front = _mm256_packs_epi32(numbers[0], numbers[1]), back = _mm256_packs_epi32(numbers[2], numbers[3]);
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i*)at, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(front, back), in_order));
}

inline void store_halves(int16_t* at, const __m256i numbers[4]) {
    for (int i = 0; i < 2; i++) {
        const __m256i both = _mm256_packs_epi32(numbers[2 * i], numbers[2 * i + 1]);
        _mm256_storeu_si256((__m256i*)(at + 16 * i), _mm256_permute4x64_epi64(both, 0xd8));
    }
}

inline void round_whole(const float* values, int planes, Block& block) {
    __m256 numbers[4];
    __m256i most = _mm256_setzero_si256(), sum = most, whole[4], high[4], low[4];
    for (int i = 0; i < 4; i++) {
        numbers[i] = _mm256_loadu_ps(values + 8 * i);
        const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(numbers[i]), _mm256_set1_epi32(0x7fffffff));
        most = _mm256_max_epu32(most, magnitude);
    }
    const Rounding rounding(largest_of(most), planes);
    for (int i = 0; i < 4; i++) {
        const __m256 steps = _mm256_mul_ps(numbers[i], _mm256_set1_ps(rounding.steps));
        whole[i] = rounding.some ? _mm256_cvtps_epi32(steps) : _mm256_setzero_si256();
        if (planes == 1) whole[i] = _mm256_slli_epi32(whole[i], 8);
        high[i] = _mm256_srai_epi32(_mm256_add_epi32(whole[i], _mm256_set1_epi32(128)), 8);
        low[i] = _mm256_sub_epi32(whole[i], _mm256_slli_epi32(high[i], 8));
        sum = _mm256_add_epi32(sum, whole[i]);
    }
    store_halves(block.whole, whole);
    store_bytes(block.high, high);
    store_bytes(block.low, low);
    rounding.finish(block, sum_of(sum));
}

void round_row(const float* values, int columns, int planes, Block* blocks) {
    for (; columns >= BLOCK; columns -= BLOCK, values += BLOCK) round_whole(values, planes, *blocks++);
    if (columns == 0) return;
    float filled[BLOCK] = {};
    memcpy(filled, values, columns * sizeof(float));
    round_whole(filled, planes, *blocks);
}

}  // namespace
}  // namespace scope
