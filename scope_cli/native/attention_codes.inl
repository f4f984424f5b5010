// Attention over slots of 8 and 4 bits: their codes times queries and weights of 16 bits, in whole numbers.
//
// A query, and a tile's weights times their scales, are rounded so that the largest becomes 32,767; what a code of 4
// bits stands for has a minimum beside its scale, which is added for each block of 32 columns.
#pragma once
#include "attention.h"
#include "codes.h"

namespace scope {
namespace SCOPE_LANES {
namespace {

// The largest number whose products with `columns` codes of 127 still add up to 32 bits.
inline float most_number(int columns) {
    const int most = std::numeric_limits<int32_t>::max() / (127 * columns);
    return most < (int)MOST ? (float)most : MOST;
}

inline void round_queries(const scope_slots& layer, const float* rows, Room& room) {
    const int wide = padded(layer.head_dim), blocks = code_blocks(layer), columns = blocks * COLUMNS;
    for (int q = 0; q < layer.group; q++) {
        int16_t* asked = &room.asked[q * columns];
        memset(asked, 0, (size_t)columns * sizeof(int16_t));
        room.units[q] = round_row(rows + q * wide, wide, most_number(columns), asked);
        if (layer.key_format != SCOPE_INT4) continue;
        for (int b = 0; b < blocks; b++) {
            int32_t total = 0;
            for (int i = 0; i < COLUMNS; i++) total += asked[b * COLUMNS + i];
            room.totals[q * blocks + b] = (float)total * room.units[q];
        }
    }
}

// `count` rows of codes from slot `at` on: [TILE, 32 * blocks], where they lie or in the room.
inline const int8_t* codes_of(const scope_slots& layer, const void* stored, int format, size_t at, int count, Room& room) {
    const int head_dim = layer.head_dim, wide = code_blocks(layer) * COLUMNS, half = head_dim / 2;
    const int8_t* rows = (const int8_t*)stored + at * (format == SCOPE_INT4 ? half : head_dim);
    if (format == SCOPE_INT8 && count == TILE && wide == head_dim) return rows;
    int8_t* codes = room.codes.data();
    memset(codes, 0, (size_t)TILE * wide);
    for (int s = 0; s < count; s++) {
        if (format == SCOPE_INT4)
            unpack_halves((const uint8_t*)rows + s * half, half, codes + s * wide);
        else
            memcpy(codes + s * wide, rows + s * head_dim, head_dim);
    }
    return codes;
}

// Scales, and minima behind them, as floats: [2 * blocks, TILE], in 8 bits [1, TILE].
inline const float* scales_of(const scope_slots& layer, const uint16_t* stored, int format, size_t at, int count, Room& room) {
    float* scales = room.scales.data();
    const int each = format == SCOPE_INT4 ? 2 * code_blocks(layer) : 1;
    const uint16_t* from = stored + at * each;
    if (each == 1 && count == TILE) {
        for (int s = 0; s < TILE; s += WIDTH) store(scales + s, load_halfs(from + s));
        return scales;
    }
    memset(scales, 0, (size_t)each * TILE * sizeof(float));
    for (int s = 0; s < count; s++)
        for (int i = 0; i < each; i++) scales[i * TILE + s] = float_of_half(from[s * each + i]);
    return scales;
}

// Queries times the keys of a tile: [group, TILE], in the room's weights.
inline void multiply_keys(const scope_slots& layer, size_t at, int count, Room& room) {
    const int blocks = code_blocks(layer), columns = blocks * COLUMNS, format = layer.key_format;
    const int8_t* codes = codes_of(layer, layer.keys, format, at, count, room);
    const float* scales = scales_of(layer, layer.key_scales, format, at, count, room);
    const char* next = (const char*)layer.values + at * layer.head_dim / (layer.value_format == SCOPE_INT4 ? 2 : 1);
    const int some_blocks = format == SCOPE_INT4 ? 1 : blocks;
    for (int b = 0; b < blocks; b += some_blocks) {
        some_queries<ASKED>(layer.group, [&](auto some, int q) {
            multiply_codes<some()>(codes + b * COLUMNS, columns, some_blocks * COLUMNS,
                                   &room.asked[q * columns + b * COLUMNS], columns, next, &room.sums[q * TILE]);
        });
        next += TILE * COLUMNS;
        for (int q = 0; q < layer.group; q++)
            for (int s = 0; s < TILE; s += WIDTH) {
                float* logits = &room.weights[q * TILE + s];
                const V product = mul(mul(load(&room.sums[q * TILE + s]), all(room.units[q])), load(scales + b * TILE + s));
                if (format == SCOPE_INT8) {
                    store(logits, product);
                } else {
                    const V least = mul(all(room.totals[q * blocks + b]), load(scales + (blocks + b) * TILE + s));
                    const V both = add(product, least);
                    store(logits, b ? add(load(logits), both) : both);
                }
            }
    }
}

// Adds the values of a tile, weighted with the room's weights, to the parts of the queries.
inline void add_values(const scope_slots& layer, size_t at, int count, float* parts, Room& room) {
    const int blocks = code_blocks(layer), wide = padded(layer.head_dim), stride = part_floats(layer);
    const int format = layer.value_format, group = layer.group;
    const int8_t* codes = codes_of(layer, layer.values, format, at, count, room);
    const float* scales = scales_of(layer, layer.value_scales, format, at, count, room);
    const char* next = (const char*)layer.keys + (at + TILE) * layer.head_dim / (layer.key_format == SCOPE_INT4 ? 2 : 1);
    float weighted[TILE];
    for (int b = 0; b < blocks; b++) {
        for (int q = 0; q < group && (format == SCOPE_INT4 || b == 0); q++) {
            V minima = zero();
            for (int s = 0; s < TILE; s += WIDTH) {
                const V weight = load(&room.weights[q * TILE + s]);
                store(weighted + s, mul(weight, load(scales + b * TILE + s)));
                if (format == SCOPE_INT4) minima = fma(weight, load(scales + (blocks + b) * TILE + s), minima);
            }
            room.weight_units[q] = round_row(weighted, TILE, MOST, &room.numbers[q * TILE]);
            room.least[q] = format == SCOPE_INT4 ? sum(minima) : 0;
        }
        some_queries<ASKED>(group, [&](auto some, int q) {
            add_codes<some()>(codes + b * COLUMNS, blocks * COLUMNS, &room.numbers[q * TILE], next, &room.sums[q * COLUMNS]);
        });
        next += TILE * COLUMNS;
        for (int q = 0; q < group; q++)
            for (int i = 0; i < COLUMNS && b * COLUMNS + i < wide; i += WIDTH) {
                float* part = parts + q * stride + 2 + b * COLUMNS + i;
                const V product = fma(load(&room.sums[q * COLUMNS + i]), all(room.weight_units[q]), load(part));
                store(part, format == SCOPE_INT4 ? add(product, all(room.least[q])) : product);
            }
    }
}

}  // namespace
}  // namespace SCOPE_LANES
}  // namespace scope
