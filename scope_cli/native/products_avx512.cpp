// The products with AVX-512 and VNNI, which multiplies and adds up in one.
#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>
#include <vector>

#include "products.h"

namespace scope {
namespace {

using Whole = __m512i;
using Floats = __m512;
constexpr int ROWS = 16, TILE = 8;  // as many as the registers hold

inline Whole all(int x) { return _mm512_set1_epi32(x); }
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Whole load(const uint8_t* at) { return _mm512_load_si512((const __m512i*)at); }
inline Floats load(const float* at) { return _mm512_load_ps(at); }
inline Floats floats(Whole x, const void*) { return _mm512_cvtepi32_ps(x); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512i dot(__m512i sum, __m512i a, __m512i b) { return _mm512_dpwssd_epi32(sum, a, b); }
inline __m256i dot(__m256i sum, __m256i a, __m256i b) { return _mm256_dpwssd_epi32(sum, a, b); }

constexpr bool SUMS_OF_16_BITS = false;
inline Whole dot(Whole sum, Whole codes, Whole numbers, const Block*) { return dot(sum, codes, numbers); }
inline Whole dot(Whole sum, Whole codes, Whole numbers, const ByteBlock*) { return _mm512_dpbusd_epi32(sum, codes, numbers); }

inline __mmask16 places(int count) { return (__mmask16)(count >= 16 ? 0xffff : count > 0 ? (1 << count) - 1 : 0); }
inline Floats load_some(const float* at, int count) { return _mm512_maskz_loadu_ps(places(count), at); }
inline void store_some(float* at, Floats x, int count) { _mm512_mask_storeu_ps(at, places(count), x); }

}  // namespace
}  // namespace scope

#include "products.inl"

namespace scope {
const Products avx512_products = {round_row<Block>, round_row<ByteBlock>, multiply};
}
#endif
