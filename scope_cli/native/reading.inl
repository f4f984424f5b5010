// A chunk's attention over lanes.h and whole.h: included once for each width of register.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "codes.h"
#include "reading.h"
#include "vectors.inl"
#include "whole.h"

namespace scope {
namespace SCOPE_LANES {
namespace {

constexpr int ROWS_AT_ONCE = 6;  // of a product
constexpr int BATCH = 48;        // that go through a tile together
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
constexpr float MOST_QUERY = 4095, MOST_CODE = 127, MOST_WEIGHT = 255;
inline float most_key(int wide) { return (float)std::min(8191, 0x7fffffff / (int)MOST_QUERY / wide); }  // 32 bits hold the sum
constexpr float UNSEEN = -1e30f;  // a logit

// Zeros that begin where a line of the cache does.
struct Aligned {
    std::vector<float> room;
    float* at;

    explicit Aligned(size_t count) : room(count + WIDTH), at((float*)(((uintptr_t)room.data() + 63) & ~(uintptr_t)63)) {}
};

// work(n, number) for `count` rows: `most` of them at once, then half as many, then the half of those.
template <int most, class Work>
inline void in_tiles(int count, const Work& work, int n = 0) {
    for (; count - n >= most; n += most) work(n, std::integral_constant<int, most>());
    if constexpr (most > 1) in_tiles<most / 2>(count, work, n);
}

// 2 to the x, within 3e-6 of it, for x from -126 to 126; below that 2^-126.
inline V power(V x) {
    const V bounded = most(all(-126.0f), x), n = whole(bounded), r = sub(bounded, n);
    V p = fma(all(9.58285e-3f), r, all(5.590642e-2f));
    p = fma(p, r, all(0.24024099f));
    p = fma(p, r, all(0.69312419f));
    p = fma(p, r, all(1.0f));
    return mul(p, power_of_2(n));
}

inline bool coded(const scope_chunk& chunk) { return chunk.keys.format == SCOPE_INT8 && chunk.keys.turned; }

// Some tokens of a head out of their slots, in whole numbers up to `most`, [KEYS, wide], with zeros behind them: codes of 8
// bits are such numbers. Returns the scales, 0 where there is no token.
inline void take(const scope_held& held, long at, int count, int head_dim, int wide, float most, int16_t* out, float* scales) {
    std::vector<float> row(wide);
    std::fill(scales, scales + KEYS, 0.0f);
    for (int k = 0; k < count; k++, at++, out += wide) {
        if (held.format == SCOPE_INT8 && most == MOST_CODE) {
            std::copy_n((const int8_t*)held.numbers + at * head_dim, head_dim, out);
            const float scale = float_of_half(held.scales[at]);
            scales[k] = scale - scale == 0 ? scale : std::numeric_limits<float>::quiet_NaN();
        } else {
            load_slot(held.numbers, held.format, held.scales, at, head_dim, row.data());
            scales[k] = round_row(row.data(), wide, most, out);
        }
    }
}

// Values that are added up at once are those of tokens 16 apart, as weights are joined.
void round_tile(const scope_chunk& chunk, int head, int number) {
    const Tile tile = Tiles{chunk}.at(head, number);
    constexpr int EACH = TOGETHER<Signed>;
    const int begin = number * KEYS, wide = wide_of(chunk), count = std::min(KEYS, chunk.seen - begin);
    std::vector<int16_t> rounded((size_t)KEYS * wide);
    const float most = coded(chunk) ? MOST_CODE : most_key(wide);
    take(chunk.keys, head * chunk.keys.head + begin, count, chunk.head_dim, wide, most, rounded.data(), tile.key_scales);
    const auto place_keys = [&](auto* keys) {
        constexpr int SOME = TOGETHER<std::remove_pointer_t<decltype(keys)>>;
        for (int i = 0; i < wide; i += SOME)
            for (int k = 0; k < KEYS; k++)
                for (int e = 0; e < SOME; e++) *keys++ = rounded[(size_t)k * wide + i + e];
    };
    if (coded(chunk)) {
        place_keys((Signed*)tile.keys);
        for (int k = 0; k < KEYS; k++)
            tile.less_128[k] = -128 * std::accumulate(&rounded[(size_t)k * wide], &rounded[(size_t)k * wide] + wide, 0);
    } else {
        place_keys(tile.keys);
    }
    take(chunk.values, head * chunk.values.head + begin, count, chunk.head_dim, wide, MOST_CODE, rounded.data(),
         tile.value_scales);
    *tile.none = 0;
    for (int k = 0; k < count; k++)
        if (tile.value_scales[k] != tile.value_scales[k]) {
            tile.value_scales[k] = 0;
            *tile.none |= (uint64_t)1 << k;
        }
    for (int row = 0; row < KEYS / EACH; row++) {
        const int16_t* from = &rounded[(size_t)(row / WIDTH * WIDTH * EACH + row % WIDTH) * wide];
        Signed* to = (Signed*)tile.values + (size_t)row * wide * EACH;
        for (int i = 0; i < wide; i++)
            for (int e = 0; e < EACH; e++) to[i * EACH + e] = (Signed)from[e * WIDTH * wide + i];
    }
}

// use(r, column, sums) for R rows of `a` and C vectors of columns of `b`, with what is there of each column. Unrolled, the
// sums stay in registers.
template <int R, int C, class A, class B, class Use>
inline void multiply_tile(const A* a, long a_stride, const B* b, long b_stride, int count, const int32_t* there, const Use& use) {
    constexpr int EACH = TOGETHER<A>;
    W sums[R * C];
#pragma GCC unroll UNROLLED
    for (int i = 0; i < R * C; i++) sums[i] = there ? load_whole(there + i % C * WIDTH) : all_of(0);
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
inline void multiply_tiles(const A* a, long a_stride, const B* b, int wide, int count, const int32_t* there, const Use& use) {
    int at = 0;
    const auto from = [&] { return there ? there + at : nullptr; };
    const auto own = [&](int r, int column, V sums) { use(r, at + column, sums); };
    for (; at + SIDE_BY_SIDE * WIDTH <= wide; at += SIDE_BY_SIDE * WIDTH)
        multiply_tile<R, SIDE_BY_SIDE>(a, a_stride, b + at * TOGETHER<A>, wide, count, from(), own);
    for (; at < wide; at += WIDTH) multiply_tile<R, 1>(a, a_stride, b + at * TOGETHER<A>, wide, count, from(), own);
}

// The queries of some tokens and one KV head, and what they have gathered so far.
struct Gathered {
    const scope_chunk& chunk;
    const int first, tokens, rows, wide;  // row: (token - first) * group + query
    std::vector<int16_t> queries;         // [rows, wide]
    std::vector<Unsigned> codes;          // the same plus 128, where keys are codes
    std::vector<float> scales;            // [rows], of logits: binary ones
    Aligned values, total;                // [rows, wide]; [rows, WIDTH], of the weights
    std::vector<float> largest;           // [rows], of the logits

    Gathered(const scope_chunk& chunk, int head, int first, int last)
        : chunk(chunk), first(first), tokens(last - first), rows(tokens * chunk.group), wide(wide_of(chunk)),
          queries((size_t)rows * wide), codes(coded(chunk) ? queries.size() : 0), scales(rows), values((size_t)rows * wide), total((size_t)rows * WIDTH),
          largest(rows + BATCH, UNSEEN) {
        constexpr float LOG2_E = 1.44269504f;
        const float most = coded(chunk) ? MOST_CODE : MOST_QUERY;
        std::vector<float> query(wide);
        for (int row = 0; row < rows; row++) {
            std::copy_n(chunk.query + (head * chunk.group + row % chunk.group) * chunk.query_head +
                            (first + row / chunk.group) * chunk.query_token, chunk.head_dim, query.begin());
            if (chunk.keys.turned) turn(query.data(), chunk.head_dim);
            scales[row] = chunk.scale * LOG2_E * round_row(query.data(), wide, most, &queries[(size_t)row * wide]);
        }
        for (size_t i = 0; i < codes.size(); i++) codes[i] = (Unsigned)(queries[i] + 128);
    }

    int newest_of(int row) const { return chunk.seen - chunk.tokens + first + row / chunk.group; }

    // The tokens of a tile that a row sees: bits.
    uint64_t seen_of(int row, int begin) const {
        const auto up_to = [](int last) { return last < 0 ? 0 : ~(uint64_t)0 >> std::max(0, KEYS - 1 - last); };
        const int newest = newest_of(row) - begin;
        return up_to(newest) & ~up_to(newest - chunk.window);
    }

    // A tile by `count` rows, of which some may see nothing of it. What they have gathered shrinks to the new largest
    // logit; weights of the tile are 1 for its own largest, and are rounded after they have met the values' scales. Each
    // thing is done for all rows: while one waits for the last of its sums, another goes on.
    void gather(int row, int count, int begin, const Tile& tile) {
        alignas(64) float logits[BATCH][KEYS], here[BATCH] = {}, heaviest[BATCH] = {};
        alignas(64) float shrink[BATCH], share[BATCH], steps[BATCH];
        alignas(64) Unsigned weights[BATCH][KEYS];
        in_tiles<ROWS_AT_ONCE>(count, [&](int from, auto some) {
            const auto use = [&](int r, int k, V sums) {
                store(&logits[from + r][k], mul(mul(sums, all(scales[row + from + r])), load(tile.key_scales + k)));
            };
            const size_t asked = (size_t)(row + from) * wide;
            if (codes.empty())
                multiply_tiles<some.value>(&queries[asked], wide, tile.keys, KEYS, wide, nullptr, use);
            else
                multiply_tiles<some.value>(&codes[asked], wide, (const Signed*)tile.keys, KEYS, wide, tile.less_128, use);
        });
        for (int r = 0; r < count; r++) here[r] = hide_and_find_largest(row + r, begin, logits[r]);
        for (int r = 0; r < count; r += WIDTH) {
            const V before = load(&largest[row + r]), now = load(here + r), both = most(before, now);
            store(&largest[row + r], both);
            store(shrink + r, power_or_none(sub(before, both)));
            store(share + r, power_or_none(sub(now, both)));
        }
        for (int r = 0; r < count; r++) {
            const V sum = weigh(logits[r], here[r], tile.value_scales, heaviest[r]);
            float* at = &total.at[(size_t)(row + r) * WIDTH];
            store(at, fma(sum, all(share[r]), mul(load(at), all(shrink[r]))));
        }
        for (int r = 0; r < count; r += WIDTH) {
            const V heavy = load(heaviest + r);
            store(steps + r, zero_below(heavy, TINY, divide(all(MOST_WEIGHT), heavy)));
            store(share + r, mul(mul(load(share + r), heavy), all(1 / MOST_WEIGHT)));
        }
        if (*tile.none)
            for (int r = 0; r < count; r++)
                if (*tile.none & seen_of(row + r, begin)) share[r] = std::numeric_limits<float>::quiet_NaN();
        for (int r = 0; r < count; r++) round_weights(logits[r], steps[r], weights[r]);
        in_tiles<ROWS_AT_ONCE>(count, [&](int from, auto some) {
            const Signed* given = (const Signed*)tile.values;
            multiply_tiles<some.value>(weights[from], KEYS, given, wide, KEYS, nullptr, [&](int r, int i, V sums) {
                float* at = &values.at[(size_t)(row + from + r) * wide + i];
                store(at, fma(sums, all(share[from + r]), mul(load(at), all(shrink[from + r]))));
            });
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
};

void attend(const scope_chunk& chunk, int head, int first, int last) {
    Gathered some(chunk, head, first, last);
    const int oldest = some.newest_of(0) - chunk.window + 1, newest = some.newest_of(some.rows - 1);
    for (int begin = std::max(0, oldest) / KEYS * KEYS; begin <= newest; begin += KEYS)
        for (int row = 0; row < some.rows; row += BATCH) {
            const int count = std::min(BATCH, some.rows - row);
            if (some.newest_of(row + count - 1) < begin) continue;
            some.gather(row, count, begin, Tiles{chunk}.at(head, begin / KEYS));
        }
    for (int row = 0; row < some.rows; row++) {
        float* out = chunk.out + ((first + row / chunk.group) * (long)chunk.kv_heads * chunk.group +
                                  head * chunk.group + row % chunk.group) * chunk.head_dim;
        const V share = all(1.0f / sum(load(&some.total.at[(size_t)row * WIDTH])));
        for (int i = 0; i < chunk.head_dim; i += WIDTH)
            store_some(out + i, mul(load(&some.values.at[(size_t)row * some.wide + i]), share), chunk.head_dim - i);
        if (chunk.values.turned) turn(out, chunk.head_dim);
    }
}

}  // namespace
}  // namespace SCOPE_LANES
}  // namespace scope
