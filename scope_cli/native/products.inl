// The products in vector instructions, over registers that the file which includes this one defines: `Whole` holds some
// columns of codes for ROWS rows of the weight, two of 16 bits each or four of 8, `Floats` a number for each of them.
//
// A few rows of activations meet the codes as they are loaded, because the memory is what bounds them. For more, the codes
// of GROUPS groups are widened into a panel that stays in the nearest cache, and TILE rows at once are multiplied with it.
#include <immintrin.h>

#include "products_kinds.h"
#include "rounding_avx2.h"

namespace scope {
namespace {

constexpr int VECTORS = 2;                          // registers of codes that a tile is multiplied with at once
constexpr int GROUPS = VECTORS * ROWS / GROUP;      // of a panel
constexpr int FEW = 3;                              // rows for which a panel is not worth its making

template <class Any>
struct alignas(64) Panel {
    static constexpr int STEPS = std::is_same_v<Any, Block> ? 16 : 8;    // registers of codes in a block
    static constexpr int BLOCKS = 16384 / (STEPS * VECTORS * ROWS * 4);  // 16 KiB of codes
    uint8_t codes[BLOCKS][STEPS][VECTORS][4 * ROWS];
    float scales[BLOCKS][VECTORS][ROWS], minima[BLOCKS][VECTORS][ROWS];
};

inline __m256i load_codes(const uint8_t* at) { return _mm256_loadu_si256((const __m256i*)at); }
inline __m256 halves(const uint8_t* at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at)); }

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

// use(pair, codes) for the 16 pairs of columns of a group's block: two codes of 16 bits for each of its 8 rows.
template <int kind, class Use>
inline void all_pairs(const uint8_t* block, const Use& use) {
    const __m256i low = _mm256_set1_epi16(kind == INT4 ? 15 : 255);
    if constexpr (kind == INT4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const __m256i codes = load_codes(block + 32 * i);
            use(4 * i, _mm256_and_si256(codes, low));
            use(4 * i + 1, _mm256_and_si256(_mm256_srli_epi16(codes, 8), low));
            use(4 * i + 2, _mm256_and_si256(_mm256_srli_epi16(codes, 4), low));
            use(4 * i + 3, _mm256_srli_epi16(codes, 12));
        }
    } else {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m256i codes = load_codes(block + 32 * i);
            use(i % 4 * 4 + i / 4 * 2, _mm256_and_si256(codes, low));
            use(i % 4 * 4 + i / 4 * 2 + 1, _mm256_srli_epi16(codes, 8));
        }
    }
}

// The same in codes of 8 bits, four columns a register.
template <int kind, class Use>
inline void all_fours(const uint8_t* block, const Use& use) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int i = 0; i < 8; i++) {
        if constexpr (kind == INT8) {
            use(i, load_codes(block + 32 * i));
        } else {
            const __m256i codes = load_codes(block + 32 * (i % 4));
            use(i, _mm256_and_si256(i < 4 ? codes : _mm256_srli_epi16(codes, 4), low));
        }
    }
}

// A group times `tile` rows, `stride` blocks apart.
template <int tile, int kind>
void few(const uint8_t* block, const Block* x, int blocks, __m256 sums[tile]) {
    for (int n = 0; n < tile; n++) sums[n] = _mm256_setzero_ps();
    for (int b = 0; b < blocks; b++, block += block_bytes(kind)) {
        for (size_t i = 0; i < block_bytes(kind); i += 64) _mm_prefetch((const char*)block + 1024 + i, _MM_HINT_T0);
        __m256i products[tile][2];
        for (int n = 0; n < tile; n++) {
            products[n][0] = _mm256_set1_epi32(kind == INT8 ? x[n * blocks + b].less_128 : 0);
            products[n][1] = _mm256_setzero_si256();
        }
        all_pairs<kind>(block, [&](int pair, __m256i codes) {
            for (int n = 0; n < tile; n++) {
                const __m256i numbers = _mm256_set1_epi32(numbers_of(x[n * blocks + b], pair));
                products[n][pair % 2] = dot(products[n][pair % 2], codes, numbers);
            }
        });
        const __m256 scales = halves(block + code_bytes(kind));
        for (int n = 0; n < tile; n++) {
            const Block& own = x[n * blocks + b];
            const __m256 whole = _mm256_cvtepi32_ps(_mm256_add_epi32(products[n][0], products[n][1]));
            sums[n] = _mm256_fmadd_ps(whole, _mm256_mul_ps(scales, _mm256_set1_ps(own.scale)), sums[n]);
            if (kind == INT4) {
                const __m256 minima = halves(block + code_bytes(kind) + 16);
                sums[n] = _mm256_fmadd_ps(minima, _mm256_set1_ps(own.total), sums[n]);
            }
        }
    }
}

// `count` blocks of a panel times `tile` rows; the sums so far are in `sums`.
template <int tile, int kind, class Any>
void many(const Panel<Any>& panel, int count, const Any* x, int64_t stride, Floats sums[tile][VECTORS]) {
    for (int b = 0; b < count; b++, x++) {
        Whole products[tile][VECTORS];
        for (int n = 0; n < tile; n++)
            for (int v = 0; v < VECTORS; v++) products[n][v] = all(kind == INT8 ? x[n * stride].less_128 : 0);
#pragma GCC unroll 16
        for (int step = 0; step < panel.STEPS; step++) {
            Whole codes[VECTORS];
            for (int v = 0; v < VECTORS; v++) codes[v] = load(panel.codes[b][step][v]);
#pragma GCC unroll 8
            for (int n = 0; n < tile; n++) {
                const Whole numbers = all(numbers_of(x[n * stride], step));
                for (int v = 0; v < VECTORS; v++) products[n][v] = dot(products[n][v], codes[v], numbers, x);
            }
        }
        for (int n = 0; n < tile; n++) {
            const Floats scale = all(x[n * stride].scale), total = all(x[n * stride].total);
            for (int v = 0; v < VECTORS; v++) {
                sums[n][v] = fma(floats(products[n][v], x), mul(load(panel.scales[b][v]), scale), sums[n][v]);
                if (kind == INT4) sums[n][v] = fma(load(panel.minima[b][v]), total, sums[n][v]);
            }
        }
    }
}

// Some blocks of a group, to its place in the panel; null: zeros.
template <int kind, class Any>
void widen(const uint8_t* block, int count, int group, Panel<Any>& panel) {
    const int vector = group * GROUP / ROWS, row = group * GROUP % ROWS;
    for (int b = 0; b < count; b++) {
        const auto put = [&](int step, __m256i codes) {
            _mm256_store_si256((__m256i*)&panel.codes[b][step][vector][4 * row], codes);
        };
        if (!block) {
            for (int step = 0; step < panel.STEPS; step++) put(step, _mm256_setzero_si256());
            continue;
        }
        const uint8_t* own = block + b * block_bytes(kind);
        if constexpr (std::is_same_v<Any, Block>)
            all_pairs<kind>(own, put);
        else
            all_fours<kind>(own, put);
        _mm256_store_ps(&panel.scales[b][vector][row], halves(own + code_bytes(kind)));
        if (kind == INT4) _mm256_store_ps(&panel.minima[b][vector][row], halves(own + code_bytes(kind) + 16));
    }
}

// work(n, number) for `count` rows: `most` of them at once, then halves of that.
template <int most, class Work>
inline void in_tiles(int count, const Work& work, int n = 0) {
    for (; count - n >= most; n += most) work(n, std::integral_constant<int, most>());
    if constexpr (most > 1) in_tiles<most / 2>(count, work, n);
}

template <int kind>
void few_rows(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    const int blocks = blocks_of(weight.columns);
    for (int g = first; g < last; g++)
        in_tiles<2>(x.rows, [&](int n, auto tile) {
            __m256 sums[tile.value];
            few<tile.value, kind>(weight.data + g * blocks * block_bytes(kind), x.blocks + (int64_t)n * blocks, blocks, sums);
            const int rows = weight.rows - g * GROUP;
            const __m256i in = _mm256_cmpgt_epi32(_mm256_set1_epi32(rows), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            for (int i = 0; i < tile.value; i++)
                _mm256_maskstore_ps(out + (n + i) * out_stride + g * GROUP, in, sums[i]);
        });
}

template <int kind, class Any>
void many_rows(const Weight& weight, const Any* x, int count_of_rows, float* out, int64_t out_stride, int first, int last) {
    const int64_t blocks = blocks_of(weight.columns);
    Panel<Any> panel;
    for (int g = first; g < last; g += GROUPS) {
        const int rows = (weight.rows < last * GROUP ? weight.rows : last * GROUP) - g * GROUP;
        for (int b = 0; b < blocks; b += panel.BLOCKS) {
            const int count = blocks - b < panel.BLOCKS ? blocks - b : panel.BLOCKS;
            for (int i = 0; i < GROUPS; i++) {
                const uint8_t* group = weight.data + ((g + i) * blocks + b) * block_bytes(kind);
                widen<kind, Any>(g + i < last ? group : nullptr, count, i, panel);
            }
            in_tiles<TILE>(count_of_rows, [&](int n, auto tile) {
                float* own = out + n * out_stride + g * GROUP;
                Floats sums[tile.value][VECTORS];
                for (int i = 0; i < tile.value; i++)
                    for (int v = 0; v < VECTORS; v++)
                        sums[i][v] = b ? load_some(own + i * out_stride + v * ROWS, rows - v * ROWS) : all(0.0f);
                many<tile.value, kind>(panel, count, x + n * blocks + b, blocks, sums);
                for (int i = 0; i < tile.value; i++)
                    for (int v = 0; v < VECTORS; v++)
                        store_some(own + i * out_stride + v * ROWS, sums[i][v], rows - v * ROWS);
            });
        }
    }
}

// Codes of 8 bits times bytes may be more than sums of 16 bits hold.
inline const Block* wider(const ByteBlock* bytes, int64_t count) {
    thread_local std::vector<Block> blocks;
    blocks.resize(count);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i swapped = _mm256_set_epi64x(0x0f0d0e0c0b090a08, 0x0705060403010200, 0x0f0d0e0c0b090a08, 0x0705060403010200);
    for (int64_t b = 0; b < count; b++) {
        const __m256i numbers = _mm256_permutevar8x32_epi32(load_codes((const uint8_t*)bytes[b].numbers), order);
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
    if (x.bytes && kind == INT8 && SUMS_OF_16_BITS)
        many_rows<kind>(weight, wider(x.bytes, (int64_t)x.rows * blocks_of(weight.columns)), x.rows, out, out_stride, first, last);
    else if (x.bytes)
        many_rows<kind>(weight, x.bytes, x.rows, out, out_stride, first, last);
    else if (x.rows > FEW)
        many_rows<kind>(weight, x.blocks, x.rows, out, out_stride, first, last);
    else
        few_rows<kind>(weight, x, out, out_stride, first, last);
}

void multiply(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    (weight.kind == INT4 ? multiply_kind<INT4> : multiply_kind<INT8>)(weight, x, out, out_stride, first, last);
}

}  // namespace
}  // namespace scope
