// Activations to numbers of 16 bits, with AVX2; included by what is compiled for it or for more.
#pragma once
#include <immintrin.h>

#include <cstring>

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

// Columns 0 to 7 and 16 to 23 of a block, or those 8 behind them, in the order of `Block`.
inline void store_numbers(int16_t* at, __m256i front, __m256i back) {
    const __m256i both = _mm256_packs_epi32(front, back);
    _mm256_storeu_si256((__m256i*)at, _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(both, 0xd8), 0xd8));
}

inline void store_numbers(Block& block, const __m256i numbers[4]) {
    store_numbers(block.numbers, numbers[0], numbers[2]);
    store_numbers(block.numbers + 16, numbers[1], numbers[3]);
}

inline void store_numbers(ByteBlock& block, const __m256i numbers[4]) {
    const __m256i front = _mm256_packs_epi32(numbers[0], numbers[1]), back = _mm256_packs_epi32(numbers[2], numbers[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i*)block.numbers, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(front, back), order));
}

template <class Any>
inline void round_whole(const float* values, Any& block) {
    __m256 given[4];
    __m256i most = _mm256_setzero_si256(), sum = most, numbers[4];
    for (int i = 0; i < 4; i++) {
        given[i] = _mm256_loadu_ps(values + 8 * i);
        const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(given[i]), _mm256_set1_epi32(0x7fffffff));
        most = _mm256_max_epu32(most, magnitude);
    }
    const Rounding rounding(largest_of(most), most_of(&block));
    for (int i = 0; i < 4; i++) {
        const __m256 steps = _mm256_mul_ps(given[i], _mm256_set1_ps(rounding.steps));
        numbers[i] = rounding.some ? _mm256_cvtps_epi32(steps) : _mm256_setzero_si256();
        sum = _mm256_add_epi32(sum, numbers[i]);
    }
    store_numbers(block, numbers);
    rounding.finish(block, sum_of(sum));
}

template <class Any>
void round_row(const float* values, int columns, Any* blocks) {
    for (; columns >= BLOCK; columns -= BLOCK, values += BLOCK) round_whole(values, *blocks++);
    if (columns == 0) return;
    float filled[BLOCK] = {};
    memcpy(filled, values, columns * sizeof(float));
    round_whole(filled, *blocks);
}

}  // namespace
}  // namespace scope
