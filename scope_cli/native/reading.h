// Attention of a prompt's chunk: each of its tokens over all tokens up to its own, or a window of them.
//
// Everything is multiplied in whole numbers, in less than half of the time that floats take: queries and keys of 13 and 14 bits,
// since some models' keys have a few very large channels, values of 8, each row with a scale of its own, and 8 bits of the weights
// that a query gives the 64 tokens of a tile, times the values' scales, with one scale for them all. What is added up over
// tiles are floats. Keys that lie in their slots in 8 bits, turned, so that no channel is large, meet queries of 8 bits,
// turned as well.
//
// Tiles are counted from a KV head's first key on. So a token gets the same bits beside any others, from any number of
// threads, and in any chunk, if the keys begin with the prompt.
#pragma once
#include <cstddef>

#include "slots.h"

extern "C" {

// Keys or values of one lane as they lie in their slots, which `layer` of slots.h has for all lanes.
struct scope_held {
    void* numbers;     // [kv_heads, tokens, head_dim], in 4 bits half of it
    uint16_t* scales;  // [kv_heads, tokens], in 4 bits [..., 2, head_dim / 32]
    int64_t head;      // tokens from one head to the next
    int32_t format;    // scope_format
    int32_t turned;    // multiplied by a Hadamard matrix over the head
};

// A chunk's keys and values, as they were projected, and where they go.
struct scope_stored {
    const float *new_keys, *new_values;  // [kv_heads, tokens, head_dim]; from head to head, from token to token, in floats:
    int64_t new_head, new_token;
    scope_held keys, values;
    int32_t kv_heads, head_dim, tokens;
    int32_t start;  // the place of the first one
};

void scope_store(const scope_stored* stored, int32_t threads);

struct scope_chunk {
    const float* query;  // [kv_heads * group, tokens, head_dim]; from head to head, from token to token, in floats:
    int64_t query_head, query_token;
    float* out;          // [tokens, kv_heads * group, head_dim], without gaps
    scope_held keys, values;  // of `seen` tokens
    int32_t kv_heads, group, head_dim;
    int32_t tokens, seen;  // the chunk's are the last of those that are seen
    int32_t window;        // tokens that a query sees, its own included
    float scale;           // of logits
    float* tiles;          // scope_read_tiles floats, which nobody else uses meanwhile
};

int64_t scope_read_tiles(const scope_chunk* chunk);
void scope_read(const scope_chunk* chunk, int32_t threads);
}

namespace scope {

constexpr int KEYS = 64;   // of a tile: as many as a uint64_t has bits
constexpr int ROWS = 192;  // queries of a KV head that share a tile, about

inline int wide_of(const scope_chunk& chunk) { return (chunk.head_dim + 15) / 16 * 16; }  // filled up with zeros

// Some tokens' keys and values in whole numbers, as the instructions take them (whole.h).
struct Tile {
    float *key_scales, *value_scales;  // [KEYS]
    int32_t* less_128;                 // [KEYS]: -128 * sum of a key's codes
    uint64_t* none;                    // a bit for each token: whether its value is no number
    int16_t* keys;                     // [wide / 2, KEYS, 2], of codes [wide / TOGETHER, KEYS, TOGETHER]
    uint8_t* values;                   // [KEYS / TOGETHER, wide, TOGETHER]
};

// All tiles of a chunk.
struct Tiles {
    const scope_chunk& chunk;

    int count() const { return (chunk.seen + KEYS - 1) / KEYS; }  // of a KV head
    size_t numbers() const { return (size_t)wide_of(chunk) * KEYS; }
    size_t floats() const { return 3 * KEYS + 16 + numbers(); }  // of a tile; a number has two bytes at most
    Tile at(int kv_head, int tile) const {
        float* own = chunk.tiles + ((size_t)kv_head * count() + tile) * floats();
        int16_t* keys = (int16_t*)(own + 3 * KEYS + 16);
        return {own, own + KEYS, (int32_t*)(own + 2 * KEYS), (uint64_t*)(own + 3 * KEYS), keys, (uint8_t*)(keys + numbers())};
    }
};

struct Reading {
    void (*round)(const scope_chunk& chunk, int kv_head, int tile);
    // Tokens `first` to before `last` of a chunk, for one KV head.
    void (*attend)(const scope_chunk& chunk, int kv_head, int first, int last);
};

extern const Reading reading_plain, reading_avx2, reading_avx512;

}  // namespace scope
