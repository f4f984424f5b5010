// A chunk's attention over lanes.h: included once for each width of register.
#include <algorithm>
#include <vector>

#include "lanes.h"
#include "reading.h"

namespace scope {
namespace SCOPE_LANES {
namespace {

#if defined(SCOPE_AVX512)
constexpr int SIDE_BY_SIDE = 4;  // vectors of a product's columns, as many as the registers hold
#else
constexpr int SIDE_BY_SIDE = 1;
#endif
constexpr int ROWS_AT_ONCE = 6;

// out[r] (+)= sum over k of a[r][k] * b[k], for R rows and C vectors of columns. Unrolled, the sums stay in registers.
template <int R, int C>
inline void multiply_tile(const float* a, long a_stride, const float* b, long b_stride, int count, float* out,
                          long out_stride, bool adds) {
    V sums[R * C];
#pragma GCC unroll 24
    for (int i = 0; i < R * C; i++) sums[i] = adds ? load(out + i / C * out_stride + i % C * WIDTH) : zero();
    for (int k = 0; k < count; k++) {
        V row[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) row[c] = load(b + k * b_stride + c * WIDTH);
#pragma GCC unroll 24
        for (int i = 0; i < R * C; i++) sums[i] = fma(row[i % C], all(a[i / C * a_stride + k]), sums[i]);
    }
#pragma GCC unroll 24
    for (int i = 0; i < R * C; i++) store(out + i / C * out_stride + i % C * WIDTH, sums[i]);
}

// The same for `wide` columns, whole vectors.
template <int R>
inline void multiply_tiles(const float* a, long a_stride, const float* b, long b_stride, int count, float* out,
                           long out_stride, int wide, bool adds) {
    int i = 0;
    for (; i + SIDE_BY_SIDE * WIDTH <= wide; i += SIDE_BY_SIDE * WIDTH)
        multiply_tile<R, SIDE_BY_SIDE>(a, a_stride, b + i, b_stride, count, out + i, out_stride, adds);
    for (; i < wide; i += WIDTH) multiply_tile<R, 1>(a, a_stride, b + i, b_stride, count, out + i, out_stride, adds);
}

// The queries of some tokens and one KV head, and what they have gathered so far.
struct Gathered {
    const scope_chunk& chunk;
    const int first, tokens, rows, wide;  // row: (token - first) * group + query
    std::vector<float> queries, values;   // [rows, wide]
    std::vector<float> largest, total;    // [rows]: of the logits; of the weights
    std::vector<float> keys, seen;        // a tile: [wide, KEYS], transposed; [KEYS, wide]

    Gathered(const scope_chunk& chunk, int head, int first, int last)
        : chunk(chunk), first(first), tokens(last - first), rows(tokens * chunk.group),
          wide((chunk.head_dim + WIDTH - 1) / WIDTH * WIDTH), queries((size_t)rows * wide), values((size_t)rows * wide),
          largest(rows, -std::numeric_limits<float>::infinity()), total(rows), keys((size_t)wide * KEYS),
          seen((size_t)wide * KEYS) {
        for (int row = 0; row < rows; row++) {
            const float* query = chunk.query + (head * chunk.group + row % chunk.group) * chunk.query_head +
                                 (first + row / chunk.group) * chunk.query_token;
            for (int i = 0; i < chunk.head_dim; i++) queries[(size_t)row * wide + i] = query[i] * chunk.scale;
        }
    }

    int newest_of(int row) const { return chunk.seen - chunk.tokens + first + row / chunk.group; }

    // Tokens from `begin` on, `count` of them.
    void load_tile(int head, int begin, int count) {
        std::fill(keys.begin(), keys.end(), 0.0f);
        for (int k = 0; k < count; k++) {
            const float* key = chunk.keys + head * chunk.key_head + (begin + k) * chunk.key_token;
            for (int i = 0; i < chunk.head_dim; i++) keys[(size_t)i * KEYS + k] = key[i];
            const float* value = chunk.values + head * chunk.value_head + (begin + k) * chunk.value_token;
            std::copy(value, value + chunk.head_dim, &seen[(size_t)k * wide]);
        }
    }

    template <int R>
    void gather(int row, int begin, int count) {
        float logits[R][KEYS];
        float* own = &values[(size_t)row * wide];
        multiply_tiles<R>(&queries[(size_t)row * wide], wide, keys.data(), KEYS, wide, logits[0], KEYS, KEYS, false);
        for (int r = 0; r < R; r++) soften(row + r, begin, logits[r], own + (size_t)r * wide);
        multiply_tiles<R>(logits[0], KEYS, seen.data(), wide, count, own, wide, wide, true);
    }

    // Logits to weights, after what was gathered has been brought to the new largest logit.
    void soften(int row, int begin, float* logits, float* own) {
        const int newest = newest_of(row) - begin, oldest = newest - chunk.window + 1;  // within the tile
        for (int k = std::max(0, newest + 1); k < KEYS; k++) logits[k] = -std::numeric_limits<float>::infinity();
        for (int k = 0; k < std::min(oldest, KEYS); k++) logits[k] = -std::numeric_limits<float>::infinity();
        V most_of = load(logits);
        for (int k = WIDTH; k < KEYS; k += WIDTH) most_of = most(most_of, load(logits + k));
        const float now = top(most_of);
        if (!(now <= largest[row])) {
            const V shrink = exp(all(largest[row] - now));
            largest[row] = now;
            total[row] *= scope::SCOPE_LANES::first(shrink);
            for (int i = 0; i < wide; i += WIDTH) store(own + i, mul(load(own + i), shrink));
        }
        const V origin = all(largest[row] == -std::numeric_limits<float>::infinity() ? 0.0f : largest[row]);
        V sum_of = zero();
        for (int k = 0; k < KEYS; k += WIDTH) {
            const V weight = exp(sub(load(logits + k), origin));
            store(logits + k, weight);
            sum_of = add(sum_of, weight);
        }
        total[row] += sum(sum_of);
    }

    template <int R>
    void gather_rows(int row, int begin, int count) {
        for (; row + R <= rows; row += R)
            if (newest_of(row + R - 1) >= begin) gather<R>(row, begin, count);
        if constexpr (R > 1) gather_rows<R / 2>(row, begin, count);
    }
};

void attend(const scope_chunk& chunk, int head, int first, int last) {
    Gathered some(chunk, head, first, last);
    const int oldest = some.newest_of(0) - chunk.window + 1, newest = some.newest_of(some.rows - 1);
    for (int begin = std::max(0, oldest) / KEYS * KEYS; begin <= newest; begin += KEYS) {
        const int count = std::min(KEYS, newest + 1 - begin);
        some.load_tile(head, begin, count);
        some.gather_rows<ROWS_AT_ONCE>(0, begin, count);
    }
    for (int row = 0; row < some.rows; row++) {
        float* out = chunk.out + ((first + row / chunk.group) * (long)chunk.kv_heads * chunk.group +
                                  head * chunk.group + row % chunk.group) * chunk.head_dim;
        const V share = all(1.0f / some.total[row]);
        for (int i = 0; i < chunk.head_dim; i += WIDTH)
            store_some(out + i, mul(load(&some.values[(size_t)row * some.wide + i]), share), chunk.head_dim - i);
    }
}

}  // namespace
}  // namespace SCOPE_LANES
}  // namespace scope
