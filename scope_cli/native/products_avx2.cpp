// The products with AVX2.
#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>
#include <vector>

#include "products.h"

namespace scope {
namespace {

using Whole = __m256i;
using Floats = __m256;
constexpr int ROWS = 8, TILE = 4;  // as many as the registers hold

inline Whole all(int x) { return _mm256_set1_epi32(x); }
inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Whole load(const uint8_t* at) { return _mm256_load_si256((const __m256i*)at); }
inline Floats load(const float* at) { return _mm256_load_ps(at); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Whole in_order(Whole sum) {  // to add up otherwise takes more registers than there are
    __asm__ volatile("" : "+x"(sum));
    return sum;
}
inline __m256i dot(__m256i sum, __m256i a, __m256i b) { return in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(a, b))); }

constexpr bool SUMS_OF_16_BITS = true;
inline Whole dot(Whole sum, Whole codes, Whole numbers, const Block*) { return dot(sum, codes, numbers); }
inline Whole dot(Whole sum, Whole codes, Whole numbers, const ByteBlock*) {  // at most 8 * 2 * 15 * 127: 16 bits hold it
    return in_order(_mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, numbers)));
}
inline Floats floats(Whole x, const Block*) { return _mm256_cvtepi32_ps(x); }
inline Floats floats(Whole x, const ByteBlock*) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(x, _mm256_set1_epi16(1))); }

inline __m256i places(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Floats load_some(const float* at, int count) { return _mm256_maskload_ps(at, places(count)); }
inline void store_some(float* at, Floats x, int count) { _mm256_maskstore_ps(at, places(count), x); }

}  // namespace
}  // namespace scope

#include "products.inl"

namespace scope {
const Products avx2_products = {round_row<Block>, round_row<ByteBlock>, multiply};
}
#endif
