// The products in vector instructions, over registers that the file which includes this one defines: `Whole` holds some
// columns of codes for ROWS rows of the weight, two of 16 bits each or four of 8, `Floats` a number for each of them.
//
// TILE rows of activations meet the codes as they are loaded; what the next call reads is fetched meanwhile.
#include <immintrin.h>

#include <algorithm>

#include "products_kinds.h"
#include "rounding_avx2.h"

namespace scope {
namespace {

constexpr int TILE = 8;

// What meets a register of codes: two activations, or four.
inline int numbers_of(const Block& x, int step) {
    int some;
    memcpy(&some, x.numbers + 2 * step, sizeof some);
    return some;
}
inline int numbers_of(const ByteBlock& x, int step) {
    int some;
    memcpy(&some, x.numbers + 4 * step, sizeof some);
    return some;
}

// use(pair, codes) for the 16 pairs of columns of a block, of as many groups as a register holds, which lie `apart`: two
// codes of 16 bits for each of their rows.
template <int kind, class Use>
inline void all_pairs(const uint8_t* block, int64_t apart, const Use& use) {
    if constexpr (kind == INT4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const Whole codes = load_codes(block + 32 * i, apart);
            use(4 * i, both(codes, all_16(15)));
            use(4 * i + 1, both(right<8>(codes), all_16(15)));
            use(4 * i + 2, both(right<4>(codes), all_16(15)));
            use(4 * i + 3, right<12>(codes));
        }
    } else {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const Whole codes = load_codes(block + 32 * i, apart);
            use(i % 4 * 4 + i / 4 * 2, both(codes, all_16(255)));
            use(i % 4 * 4 + i / 4 * 2 + 1, right<8>(codes));
        }
    }
}

// The same in codes of 8 bits, four columns a register.
template <int kind, class Use>
inline void all_fours(const uint8_t* block, int64_t apart, const Use& use) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        if constexpr (kind == INT8) {
            use(i, load_codes(block + 32 * i, apart));
        } else {
            const Whole codes = load_codes(block + 32 * (i % 4), apart);
            use(i, both(i < 4 ? codes : right<4>(codes), all_16(0x0f0f)));
        }
    }
}

// The groups that a register holds, `apart`, times `tile` rows. With one or two rows memory is what takes the time, and so
// much is on its way that it had better not pass through the first cache.
template <int tile, int kind, class Any>
void multiply_groups(const uint8_t* block, int64_t apart, const Any* x, int blocks, Floats sums[tile]) {
    constexpr bool few = tile <= 2;
    constexpr int CHAINS = few ? 2 : 1;  // sums that do not wait for each other
    constexpr size_t read = block_bytes(kind) * ROWS / GROUP;
    const char* next = (const char*)block + blocks * read;
    for (int n = 0; n < tile; n++) sums[n] = all(0.0f);
    for (int b = 0; b < blocks; b++, block += block_bytes(kind), next += read, x++) {
        for (size_t i = 0; i < read; i += 64) _mm_prefetch(next + i, few ? _MM_HINT_T1 : _MM_HINT_T0);
        Whole products[tile][CHAINS];
        for (int n = 0; n < tile; n++)
            for (int c = 0; c < CHAINS; c++) products[n][c] = all(kind == INT8 && c == 0 ? x[n * blocks].less_128 : 0);
        const auto add_up = [&](int step, Whole codes) {
#pragma GCC unroll 8
            for (int n = 0; n < tile; n++) {
                Whole& own = products[n][step % CHAINS];
                own = dot(own, codes, all(numbers_of(x[n * blocks], step)), x);
            }
        };
        if constexpr (std::is_same_v<Any, Block>)
            all_pairs<kind>(block, apart, add_up);
        else
            all_fours<kind>(block, apart, add_up);
        const Floats scales = halves(block + code_bytes(kind), apart);
#pragma GCC unroll 8
        for (int n = 0; n < tile; n++) {
            const Any& own = x[n * blocks];
            const Whole whole = few ? sum(products[n][0], products[n][1 % CHAINS], x) : products[n][0];
            sums[n] = fma(floats(whole, x), mul(scales, all(own.scale)), sums[n]);
            if (kind == INT4) sums[n] = fma(halves(block + code_bytes(kind) + 16, apart), all(own.total), sums[n]);
        }
    }
}

// work(n, number) for `count` rows: `most` of them at once, then those that are left.
template <int most, class Work>
inline void in_tiles(int count, const Work& work, int n = 0) {
    for (; count - n >= most; n += most) work(n, std::integral_constant<int, most>());
    if constexpr (most > 1) in_tiles<most - 1>(count, work, n);
}

template <int kind, class Any>
void multiply_rows(const Weight& weight, const Any* x, int count, float* out, int64_t out_stride, int first, int last) {
    const int64_t blocks = blocks_of(weight.columns), group_bytes = blocks * block_bytes(kind);
    for (int g = first; g < last; g += ROWS / GROUP) {
        const int rows = std::min(weight.rows, last * GROUP) - g * GROUP;
        const int64_t apart = g + 1 < last ? group_bytes : 0;  // what is behind the last group is not stored: any will do
        in_tiles<TILE>(count, [&](int n, auto tile) {
            Floats sums[tile.value];
            multiply_groups<tile.value, kind>(weight.data + g * group_bytes, apart, x + n * blocks, blocks, sums);
            for (int i = 0; i < tile.value; i++) store_some(out + (n + i) * out_stride + g * GROUP, sums[i], rows);
        });
    }
}

// Codes of 8 bits times bytes may be more than sums of 16 bits hold.
inline const Block* wider(const ByteBlock* bytes, int64_t count) {
    thread_local std::vector<Block> blocks;
    blocks.resize(count);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i swapped = _mm256_set_epi64x(0x0f0d0e0c0b090a08, 0x0705060403010200, 0x0f0d0e0c0b090a08, 0x0705060403010200);
    for (int64_t b = 0; b < count; b++) {
        const __m256i numbers = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)bytes[b].numbers), order);
        const __m256i placed = _mm256_shuffle_epi8(numbers, swapped);
        __m256i* at = (__m256i*)blocks[b].numbers;
        _mm256_storeu_si256(at, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(placed)));
        _mm256_storeu_si256(at + 1, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(placed, 1)));
        blocks[b].scale = bytes[b].scale, blocks[b].total = bytes[b].total, blocks[b].less_128 = bytes[b].less_128;
    }
    return blocks.data();
}

template <int kind>
void multiply_kind(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    const auto by = [&](const auto* blocks) { multiply_rows<kind>(weight, blocks, x.rows, out, out_stride, first, last); };
    if (!x.bytes)
        by(x.blocks);
    else if constexpr (kind == INT8 && SUMS_OF_16_BITS)
        by(wider(x.bytes, (int64_t)x.rows * blocks_of(weight.columns)));
    else
        by(x.bytes);
}

void multiply(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    (weight.kind == INT4 ? multiply_kind<INT4> : multiply_kind<INT8>)(weight, x, out, out_stride, first, last);
}

}  // namespace
}  // namespace scope
