// Attention of a prompt's chunk: each of its tokens over all tokens up to its own, or a window of them.
//
// A KV head's keys are taken in tiles of 64, from the first one on. So a token gets the same bits beside any others, from
// any number of threads, and in any chunk, if the keys begin with the prompt.
#pragma once
#include <cstdint>

extern "C" {

// Rows of head_dim floats, which lie without gaps; how far apart they are, in floats, from head to head and from token
// to token.
struct scope_chunk {
    const float *query, *keys, *values;  // [kv_heads * group, tokens], [kv_heads, seen], [kv_heads, seen]
    float* out;                          // [tokens, kv_heads * group, head_dim], without gaps
    int64_t query_head, query_token, key_head, key_token, value_head, value_token;
    int32_t kv_heads, group, head_dim;
    int32_t tokens, seen;  // the chunk's are the last of those that are seen
    int32_t window;        // tokens that a query sees, its own included
    float scale;           // of logits
};

void scope_read(const scope_chunk* chunk, int32_t threads);
}

namespace scope {

constexpr int KEYS = 64;   // of a tile
constexpr int ROWS = 192;  // queries of a KV head that share a tile, about

struct Reading {
    // Tokens `first` to before `last` of a chunk, for one KV head.
    void (*attend)(const scope_chunk& chunk, int kv_head, int first, int last);
};

extern const Reading reading_plain, reading_avx2, reading_avx512;

}  // namespace scope
