// The products with AVX2.
#include <immintrin.h>

#include <type_traits>
#include <vector>

#include "products.h"

namespace scope {
namespace {

using Whole = __m256i;
using Floats = __m256;
constexpr int ROWS = 8;

inline Whole all(int x) { return _mm256_set1_epi32(x); }
inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Whole in_order(Whole sum) {  // to add up otherwise takes more registers than there are
    __asm__ volatile("" : "+x"(sum));
    return sum;
}
inline Whole all_16(int x) { return _mm256_set1_epi16(x); }
inline Whole both(Whole a, Whole b) { return _mm256_and_si256(a, b); }
template <int bits>
inline Whole right(Whole x) {
    return _mm256_srli_epi16(x, bits);
}

// Of one group: a register holds no more.
inline Whole load_codes(const uint8_t* at, int64_t) { return _mm256_loadu_si256((const __m256i*)at); }
inline Floats halves(const uint8_t* at, int64_t) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at)); }

constexpr bool SUMS_OF_16_BITS = true;
inline Whole dot(Whole sum, Whole codes, Whole numbers, const Block*) {
    return in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(codes, numbers)));
}
inline Whole dot(Whole sum, Whole codes, Whole numbers, const ByteBlock*) {  // at most 8 * 2 * 15 * 127: 16 bits hold it
    return in_order(_mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, numbers)));
}
inline Whole sum(Whole a, Whole b, const Block*) { return _mm256_add_epi32(a, b); }
inline Whole sum(Whole a, Whole b, const ByteBlock*) { return _mm256_add_epi16(a, b); }
inline Floats floats(Whole x, const Block*) { return _mm256_cvtepi32_ps(x); }
inline Floats floats(Whole x, const ByteBlock*) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(x, _mm256_set1_epi16(1))); }

inline void store_some(float* at, Floats x, int count) {
    const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(at, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), places), x);
}

}  // namespace
}  // namespace scope

#include "products.inl"

namespace scope {
const Products products_avx2 = {round_row<Block>, round_row<ByteBlock>, multiply};
}
