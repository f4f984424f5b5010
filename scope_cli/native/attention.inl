// Attention over lanes.h: included once for each width of register.
#include <cstddef>

#include "attention.h"
#include "attention_codes.inl"
#include "lanes.h"

namespace scope {
namespace SCOPE_LANES {
namespace {

const float FREE = -std::numeric_limits<float>::infinity();

// A row of `count` floats or bfloat16, and zeros up to a whole vector.
template <class Number>
inline void widen(const Number* row, float* out, int count) {
    int i = 0;
    for (; i + WIDTH <= count; i += WIDTH) store(out + i, load(row + i));
    if (i < count) {
        Number rest[WIDTH] = {};
        memcpy(rest, row + i, (size_t)(count - i) * sizeof(Number));
        store(out + i, load(rest));
    }
}

template <class Number>
inline void widen_rows(const Number* rows, int count, int head_dim, float* tile) {
    for (int s = 0; s < count; s++) {
        fetch(rows + (size_t)(s + TILE) * head_dim);
        widen(rows + (size_t)s * head_dim, tile + s * padded(head_dim), head_dim);
    }
}

// `count` rows from slot `at` on (counted over all lanes and heads) as floats: [TILE, padded head_dim], in `tile`, or
// where they lie already.
inline const float* rows_of(const void* stored, int format, size_t at, int count, int head_dim, float* tile) {
    const int wide = padded(head_dim);
    if (format == SCOPE_BFLOAT16) {
        widen_rows((const uint16_t*)stored + at * head_dim, count, head_dim, tile);
    } else {
        const float* rows = (const float*)stored + at * head_dim;
        if (count == TILE && wide == head_dim) return rows;
        widen_rows(rows, count, head_dim, tile);
    }
    memset(tile + count * wide, 0, (size_t)(TILE - count) * wide * sizeof(float));
    return tile;
}

// Products of Q queries with the keys of a tile: [Q, TILE].
template <int Q>
inline void multiply_keys(const float* query, const float* keys, int wide, float* out) {
    for (int s = 0; s < TILE; s += SUMS) {
        V total[Q][SUMS];
        for (int q = 0; q < Q; q++)
            for (int b = 0; b < SUMS; b++) total[q][b] = zero();
        for (int i = 0; i < wide; i += WIDTH) {
            V asked[Q];
            for (int q = 0; q < Q; q++) asked[q] = load(query + q * wide + i);
            for (int b = 0; b < SUMS; b++) {
                V key = load(keys + (s + b) * wide + i);
                for (int q = 0; q < Q; q++) total[q][b] = fma(key, asked[q], total[q][b]);
            }
        }
        for (int q = 0; q < Q; q++) sums(total[q], out + q * TILE + s);
    }
}

// Adds the values of a tile, weighted, to Q sums, `stride` floats apart: C vectors of each at a time.
template <int Q, int C>
inline void add_values(const float* weights, const float* values, int wide, float* sums, int stride) {
    V total[Q][C];
    for (int q = 0; q < Q; q++)
        for (int c = 0; c < C; c++) total[q][c] = load(sums + q * stride + c * WIDTH);
    for (int s = 0; s < TILE; s++) {
        V weight[Q];
        for (int q = 0; q < Q; q++) weight[q] = all(weights[q * TILE + s]);
        for (int c = 0; c < C; c++) {
            V value = load(values + s * wide + c * WIDTH);
            for (int q = 0; q < Q; q++) total[q][c] = fma(value, weight[q], total[q][c]);
        }
    }
    for (int q = 0; q < Q; q++)
        for (int c = 0; c < C; c++) store(sums + q * stride + c * WIDTH, total[q][c]);
}

template <int Q>
inline void add_values(const float* weights, const float* values, int wide, float* sums, int stride) {
    int i = 0;
    for (; i + CHUNKS * WIDTH <= wide; i += CHUNKS * WIDTH)
        add_values<Q, CHUNKS>(weights, values + i, wide, sums + i, stride);
    for (; i < wide; i += WIDTH) add_values<Q, 1>(weights, values + i, wide, sums + i, stride);
}

// Logits to weights, in place, after the sums so far were brought to the new largest logit. part: max, sum, values.
inline void soften(float* logits, float* part, int wide) {
    V largest = load(logits);
    for (int s = WIDTH; s < TILE; s += WIDTH) largest = most(largest, load(logits + s));
    const float now = top(largest);
    if (!(now <= part[0])) {
        const V shrink = exp(all(part[0] - now));
        part[0] = now;
        part[1] *= first(shrink);
        for (int i = 0; i < wide; i += WIDTH) store(part + 2 + i, mul(load(part + 2 + i), shrink));
    }
    V total = zero();
    for (int s = 0; s < TILE; s += WIDTH) {
        V weight = exp(sub(load(logits + s), all(part[0])));
        store(logits + s, weight);
        total = add(total, weight);
    }
    part[1] += sum(total);
}

// What attention sees of a tile: 0 where it does, else -inf. Is there anything?
inline bool load_bias(const scope_slots& layer, size_t at, int count, float* bias) {
    if (layer.bias_format == SCOPE_FLOAT32)
        widen((const float*)layer.bias + at, bias, count);
    else
        widen((const uint16_t*)layer.bias + at, bias, count);
    for (int s = count; s < TILE; s++) bias[s] = FREE;
    V seen = load(bias);
    for (int s = WIDTH; s < TILE; s += WIDTH) seen = most(seen, load(bias + s));
    return top(seen) > FREE;
}

// Logits of a tile: [group, TILE], in the room's weights.
inline void ask_tile(const scope_slots& layer, const Query& query, size_t at, int count, Room& room) {
    const int wide = padded(layer.head_dim);
    float* weights = room.weights.data();
    if (in_codes(layer.key_format)) {
        multiply_keys(layer, at, count, room);
    } else {
        const float* keys = rows_of(layer.keys, layer.key_format, at, count, layer.head_dim, room.tile.data());
        some_queries<QUERIES>(layer.group, [&](auto some, int q) {
            multiply_keys<some()>(query.rows + q * wide, keys, wide, weights + q * TILE);
        });
    }
    for (int q = 0; q < layer.group; q++)
        for (int s = 0; s < TILE; s += WIDTH) {
            V logit = load(weights + q * TILE + s);
            if (query.cap > 0) logit = mul(tanh(divide(logit, all(query.cap))), all(query.cap));
            store(weights + q * TILE + s, add(logit, load(&room.bias[s])));
        }
}

// The values of a tile, weighted.
inline void take_tile(const scope_slots& layer, size_t at, int count, float* parts, Room& room) {
    const int wide = padded(layer.head_dim), stride = part_floats(layer);
    for (int q = 0; q < layer.group; q++) soften(&room.weights[q * TILE], parts + q * stride, wide);
    if (in_codes(layer.value_format)) return add_values(layer, at, count, parts, room);
    const float* values = rows_of(layer.values, layer.value_format, at, count, layer.head_dim, room.tile.data());
    some_queries<QUERIES>(layer.group, [&](auto some, int q) {
        add_values<some()>(&room.weights[q * TILE], values, wide, parts + q * stride + 2, stride);
    });
}

// The slots of one piece; the queries are in the room already.
inline void attend_piece(const scope_slots& layer, long head, int piece, const Query& query, float* out, Room& room) {
    const int group = layer.group, stride = part_floats(layer);
    float* parts = room.parts.data();
    for (int q = 0; q < group; q++) {
        memset(parts + q * stride, 0, (size_t)stride * sizeof(float));
        parts[q * stride] = FREE;
    }
    const int begin = piece * PIECE, end = begin + PIECE < layer.used ? begin + PIECE : layer.used;
    for (int slot = begin; slot < end; slot += TILE) {
        const int count = end - slot < TILE ? end - slot : TILE;
        const size_t at = (size_t)head * layer.slots + slot;
        const bool any = load_bias(layer, at, count, room.bias.data());
        if (any) ask_tile(layer, query, at, count, room);
        if (query.logits)
            for (int q = 0; q < group; q++)
                memcpy(query.logits + (size_t)q * layer.slots + slot, any ? &room.weights[q * TILE] : room.bias.data(),
                       (size_t)count * sizeof(float));
        if (any) take_tile(layer, at, count, parts, room);
    }
    memcpy(out, parts, (size_t)group * stride * sizeof(float));
}

void pieces(const scope_slots& layer, long head, int from, int to, const Query& query, float* out, Room& room) {
    if (in_codes(layer.key_format)) round_queries(layer, query.rows, room);
    for (int piece = from; piece < to; piece++, out += (size_t)layer.group * part_floats(layer))
        attend_piece(layer, head, piece, query, out, room);
}

void merge(const scope_slots& layer, const float* parts, int pieces, const float* sinks, float* out, float* logits) {
    const int head_dim = layer.head_dim, wide = padded(head_dim);
    const size_t stride = 2 + (size_t)wide, step = stride * layer.group;
    for (int q = 0; q < layer.group; q++) {
        float largest = sinks ? sinks[q] : FREE, total = 0;
        for (int p = 0; p < pieces; p++) {
            const float one = parts[p * step + q * stride];
            largest = one > largest || one != one ? one : largest;
        }
        const float origin = largest == FREE ? 0.0f : largest;  // nothing is held: zeros come out
        if (sinks) total = first(exp(all(sinks[q] - origin)));
        float* row = out + (size_t)q * head_dim;
        memset(row, 0, (size_t)head_dim * sizeof(float));
        for (int p = 0; p < pieces; p++) {
            const float* part = parts + p * step + q * stride;
            const V weight = exp(all(part[0] - origin));
            total += part[1] * first(weight);
            for (int i = 0; i < head_dim; i += WIDTH)
                store_some(row + i, fma(load(part + 2 + i), weight, load_some(row + i, head_dim - i)), head_dim - i);
        }
        const V share = all(total == 0 ? 0.0f : 1.0f / total);
        for (int i = 0; i < head_dim; i += WIDTH)
            store_some(row + i, mul(load_some(row + i, head_dim - i), share), head_dim - i);
        if (!logits) continue;
        float* told = logits + (size_t)q * layer.slots;
        for (int s = 0; s < layer.used; s += WIDTH) {
            const V given = mul(exp(sub(load_some(told + s, layer.used - s), all(origin))), share);
            store_some(told + s, given, layer.used - s);
        }
        memset(told + layer.used, 0, (size_t)(layer.slots - layer.used) * sizeof(float));
    }
}

}  // namespace
}  // namespace SCOPE_LANES
}  // namespace scope
