// A chunk's attention over lanes.h and whole.h: included once for each width of register.
#include <algorithm>
#include <cmath>
#include <vector>

#include "codes.h"
#include "reading.h"
#include "whole.h"

namespace scope {
namespace SCOPE_LANES {
namespace {

constexpr int ROWS_AT_ONCE = 6;
#if defined(SCOPE_AVX512)
constexpr int SIDE_BY_SIDE = 4;  // vectors of a product's columns, as many as the registers hold
#else
constexpr int SIDE_BY_SIDE = 1;
#endif
#if defined(SCOPE_AVX512) || defined(SCOPE_AVX2)
constexpr int UNROLLED = ROWS_AT_ONCE * SIDE_BY_SIDE;
#else
constexpr int UNROLLED = 1;  // nothing would stay in registers, and with sanitizers a compiler would take minutes
#endif
constexpr float MOST_QUERY = 4095, MOST_VALUE = 127, MOST_WEIGHT = 255;
inline float most_key(int wide) { return (float)std::min(8191, 0x7fffffff / (int)MOST_QUERY / wide); }  // 32 bits hold the sum
constexpr float UNSEEN = -1e30f;  // a logit

// 2 to the x, within 3e-6 of it, for x from -126 to 126; below that 2^-126.
inline V power(V x) {
    const V bounded = most(all(-126.0f), x), n = whole(bounded), r = sub(bounded, n);
    V p = fma(all(9.58285e-3f), r, all(5.590642e-2f));
    p = fma(p, r, all(0.24024099f));
    p = fma(p, r, all(0.69312419f));
    p = fma(p, r, all(1.0f));
    return mul(p, power_of_2(n));
}

// Rows of a head, rounded, with zeros behind them.
struct Rounder {
    const int count;
    std::vector<float> padded;
    std::vector<int16_t> numbers;  // [wide]

    Rounder(int count, int wide) : count(count), padded(wide), numbers(wide) {}

    float operator()(const float* row, float most) {  // returns the scale
        std::copy(row, row + count, padded.begin());
        return round_row(padded.data(), (int)padded.size(), most, numbers.data());
    }
};

// Values that are added up at once are those of tokens 16 apart, as weights are joined.
void round_tile(const scope_chunk& chunk, int head, int number) {
    const Tile tile = Tiles{chunk}.at(head, number);
    constexpr int EACH = TOGETHER<Signed>;
    const int begin = number * KEYS;
    const int wide = wide_of(chunk), count = std::min(KEYS, chunk.seen - begin);
    Signed* values = (Signed*)tile.values;
    Rounder round(chunk.head_dim, wide);
    memset(tile.values, 0, (size_t)wide * KEYS * sizeof(Signed));
    std::fill(tile.key_scales, tile.key_scales + KEYS, 0.0f);
    std::fill(tile.value_scales, tile.value_scales + KEYS, 0.0f);
    *tile.one = 1;
    for (int k = 0; k < count; k++) {
        tile.key_scales[k] = round(chunk.keys + head * chunk.key_head + (begin + k) * chunk.key_token, most_key(wide));
        for (int i = 0; i < wide; i++) tile.keys[(i / 2 * KEYS + k) * 2 + i % 2] = round.numbers[i];
        tile.value_scales[k] = round(chunk.values + head * chunk.value_head + (begin + k) * chunk.value_token, MOST_VALUE);
        Signed* value = values + (k / (EACH * WIDTH) * WIDTH + k % WIDTH) * wide * EACH + k / WIDTH % EACH;
        for (int i = 0; i < wide; i++) value[i * EACH] = (Signed)round.numbers[i];
        if (tile.value_scales[k] != tile.value_scales[k]) *tile.one = tile.value_scales[k];
    }
}

// use(r, column, sums) for R rows of `a` and C vectors of columns of `b`. Unrolled, the sums stay in registers.
template <int R, int C, class A, class B, class Use>
inline void multiply_tile(const A* a, long a_stride, const B* b, long b_stride, int count, const Use& use) {
    constexpr int EACH = TOGETHER<A>;
    W sums[R * C];
#pragma GCC unroll UNROLLED
    for (int i = 0; i < R * C; i++) sums[i] = all_of(0);
    for (int k = 0; k < count / EACH; k++) {
        W row[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) row[c] = load_whole(b + (k * b_stride + c * WIDTH) * EACH);
#pragma GCC unroll UNROLLED
        for (int i = 0; i < R * C; i++) sums[i] = dot<A>(sums[i], all_at(a + i / C * a_stride + k * EACH), row[i % C]);
    }
#pragma GCC unroll UNROLLED
    for (int i = 0; i < R * C; i++) use(i / C, i % C * WIDTH, floats(sums[i]));
}

// The same for `wide` columns, whole vectors.
template <int R, class A, class B, class Use>
inline void multiply_tiles(const A* a, long a_stride, const B* b, int wide, int count, const Use& use) {
    int at = 0;
    const auto own = [&](int r, int column, V sums) { use(r, at + column, sums); };
    for (; at + SIDE_BY_SIDE * WIDTH <= wide; at += SIDE_BY_SIDE * WIDTH)
        multiply_tile<R, SIDE_BY_SIDE>(a, a_stride, b + at * TOGETHER<A>, wide, count, own);
    for (; at < wide; at += WIDTH) multiply_tile<R, 1>(a, a_stride, b + at * TOGETHER<A>, wide, count, own);
}

// The queries of some tokens and one KV head, and what they have gathered so far.
struct Gathered {
    const scope_chunk& chunk;
    const int first, tokens, rows, wide;  // row: (token - first) * group + query
    std::vector<int16_t> queries;         // [rows, wide]
    std::vector<float> scales;            // [rows], of logits: binary ones
    std::vector<float> values, total;     // [rows, wide]; [rows, WIDTH], of the weights
    std::vector<float> largest;           // [rows], of the logits

    Gathered(const scope_chunk& chunk, int head, int first, int last)
        : chunk(chunk), first(first), tokens(last - first), rows(tokens * chunk.group), wide(wide_of(chunk)),
          queries((size_t)rows * wide), scales(rows), values((size_t)rows * wide),
          total((size_t)rows * WIDTH), largest(rows, UNSEEN) {
        constexpr float LOG2_E = 1.44269504f;
        Rounder round(chunk.head_dim, wide);
        for (int row = 0; row < rows; row++) {
            const float* query = chunk.query + (head * chunk.group + row % chunk.group) * chunk.query_head +
                                 (first + row / chunk.group) * chunk.query_token;
            scales[row] = chunk.scale * LOG2_E * round(query, MOST_QUERY);
            std::copy(round.numbers.begin(), round.numbers.end(), &queries[(size_t)row * wide]);
        }
    }

    int newest_of(int row) const { return chunk.seen - chunk.tokens + first + row / chunk.group; }

    // A tile by R rows. What they have gathered shrinks to the new largest logit; weights of the tile are 1 for its own
    // largest, and are rounded after they have met the values' scales.
    template <int R>
    void gather(int row, int begin, const Tile& tile) {
        float logits[R][KEYS], here[WIDTH] = {}, heaviest[WIDTH] = {}, shrink[WIDTH], share[WIDTH], steps[WIDTH];
        Unsigned weights[R][KEYS];
        multiply_tiles<R>(&queries[(size_t)row * wide], wide, tile.keys, KEYS, wide, [&](int r, int k, V sums) {
            store(&logits[r][k], mul(mul(sums, all(scales[row + r])), load(tile.key_scales + k)));
        });
        for (int r = 0; r < R; r++) here[r] = hide_and_find_largest(row + r, begin, logits[r]);
        const V before = load_some(&largest[row], R), now = load(here), both = most(before, now);
        const V part = power_or_none(sub(now, both));
        store_some(&largest[row], both, R);
        store(shrink, power_or_none(sub(before, both)));
        store(share, part);
        for (int r = 0; r < R; r++) {
            const V sum = weigh(logits[r], here[r], tile.value_scales, heaviest[r]);
            float* at = &total[(size_t)(row + r) * WIDTH];
            store(at, fma(sum, all(share[r]), mul(load(at), all(shrink[r]))));
        }
        const V heavy = load(heaviest);
        store(steps, zero_below(heavy, TINY, divide(all(MOST_WEIGHT), heavy)));
        store(share, mul(mul(part, heavy), all(*tile.one / MOST_WEIGHT)));
        for (int r = 0; r < R; r++) round_weights(logits[r], steps[r], weights[r]);
        multiply_tiles<R>(weights[0], KEYS, (const Signed*)tile.values, wide, KEYS, [&](int r, int i, V sums) {
            float* at = &values[(size_t)(row + r) * wide + i];
            store(at, fma(sums, all(share[r]), mul(load(at), all(shrink[r]))));
        });
    }

    static V power_or_none(V x) { return zero_below(x, -126.0f, power(x)); }

    float hide_and_find_largest(int row, int begin, float* logits) {
        const int newest = newest_of(row) - begin, oldest = newest - chunk.window + 1;  // within the tile
        for (int k = std::max(0, newest + 1); k < KEYS; k++) logits[k] = UNSEEN;
        for (int k = 0; k < std::min(oldest, KEYS); k++) logits[k] = UNSEEN;
        V most_of = load(logits);
        for (int k = WIDTH; k < KEYS; k += WIDTH) most_of = most(most_of, load(logits + k));
        return top(most_of);
    }

    // Logits to weights times the values' scales; returns the sum of the weights.
    static V weigh(float* logits, float largest, const float* value_scales, float& heaviest) {
        V sum = zero(), heavy = zero();
        for (int k = 0; k < KEYS; k += WIDTH) {
            const V weight = power(sub(load(logits + k), all(largest))), scaled = mul(weight, load(value_scales + k));
            sum = add(sum, weight);
            heavy = most(heavy, scaled);
            store(logits + k, scaled);
        }
        heaviest = top(heavy);
        return sum;
    }

    static void round_weights(const float* weights, float steps, Unsigned* rounded) {
        constexpr int EACH = TOGETHER<Unsigned>;
        for (int k = 0; k < KEYS; k += EACH * WIDTH) {
            V some[EACH];
#pragma GCC unroll 4
            for (int i = 0; i < EACH; i++) some[i] = mul(load(weights + k + i * WIDTH), all(steps));
            store_whole(rounded + k, join(some));
        }
    }

    template <int R>
    void gather_rows(int row, int begin, const Tile& tile) {
        for (; row + R <= rows; row += R)
            if (newest_of(row + R - 1) >= begin) gather<R>(row, begin, tile);
        if constexpr (R > 1) gather_rows<R / 2>(row, begin, tile);
    }
};

void attend(const scope_chunk& chunk, int head, int first, int last) {
    Gathered some(chunk, head, first, last);
    const int oldest = some.newest_of(0) - chunk.window + 1, newest = some.newest_of(some.rows - 1);
    for (int begin = std::max(0, oldest) / KEYS * KEYS; begin <= newest; begin += KEYS)
        some.gather_rows<ROWS_AT_ONCE>(0, begin, Tiles{chunk}.at(head, begin / KEYS));
    for (int row = 0; row < some.rows; row++) {
        float* out = chunk.out + ((first + row / chunk.group) * (long)chunk.kv_heads * chunk.group +
                                  head * chunk.group + row % chunk.group) * chunk.head_dim;
        const V share = all(1.0f / sum(load(&some.total[(size_t)row * WIDTH])));
        for (int i = 0; i < chunk.head_dim; i += WIDTH)
            store_some(out + i, mul(load(&some.values[(size_t)row * some.wide + i]), share), chunk.head_dim - i);
    }
}

}  // namespace
}  // namespace SCOPE_LANES
}  // namespace scope
