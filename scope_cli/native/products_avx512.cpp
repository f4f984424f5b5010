// The products with AVX-512 and VNNI, which multiplies and adds up in one.
#include <immintrin.h>

#include <type_traits>
#include <vector>

#include "products.h"

namespace scope {
namespace {

using Whole = __m512i;
using Floats = __m512;
constexpr int ROWS = 16;

inline Whole all(int x) { return _mm512_set1_epi32(x); }
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats floats(Whole x, const void*) { return _mm512_cvtepi32_ps(x); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Whole sum(Whole a, Whole b, const void*) { return _mm512_add_epi32(a, b); }
inline Whole all_16(int x) { return _mm512_set1_epi16(x); }
inline Whole both(Whole a, Whole b) { return _mm512_and_si512(a, b); }
template <int bits>
inline Whole right(Whole x) {
    return _mm512_srli_epi16(x, bits);
}

// Of one group in the lower half, of that which lies `apart` in the upper one.
inline Whole load_codes(const uint8_t* at, int64_t apart) {
    const __m256i low = _mm256_loadu_si256((const __m256i*)at), high = _mm256_loadu_si256((const __m256i*)(at + apart));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
inline Floats halves(const uint8_t* at, int64_t apart) {
    const __m128i low = _mm_loadu_si128((const __m128i*)at), high = _mm_loadu_si128((const __m128i*)(at + apart));
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}

constexpr bool SUMS_OF_16_BITS = false;
inline Whole dot(Whole sum, Whole codes, Whole numbers, const Block*) { return _mm512_dpwssd_epi32(sum, codes, numbers); }
inline Whole dot(Whole sum, Whole codes, Whole numbers, const ByteBlock*) { return _mm512_dpbusd_epi32(sum, codes, numbers); }

inline void store_some(float* at, Floats x, int count) {
    _mm512_mask_storeu_ps(at, (__mmask16)(count >= 16 ? 0xffff : (1 << count) - 1), x);
}

}  // namespace
}  // namespace scope

#include "products.inl"

namespace scope {
const Products products_avx512 = {round_row<Block>, round_row<ByteBlock>, multiply};
}
