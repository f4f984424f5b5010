// One layer's slots, by address, as the cache's tensors lie in memory.
#pragma once
#include <cstdint>

extern "C" {

// How keys or values are stored.
enum scope_kind {
    SCOPE_FLOAT32 = 0,
    SCOPE_BFLOAT16 = 1,
    SCOPE_INT8 = 2,  // with a scale a token and KV head
    SCOPE_INT4 = 3,  // values alone: groups of 32 with scale and minimum; byte j has values j and j + head_dim / 2
};

struct scope_slots {
    void *keys, *values;                    // [lanes, kv_heads, slots, head_dim], half of it in 4 bits
    uint16_t *key_scales, *value_scales;    // float16 [lanes, kv_heads, slots], of 8 bits
    uint16_t* value_groups;                 // float16 [lanes, kv_heads, slots, 2, head_dim / 32], of 4 bits
    int32_t* positions;                     // [lanes, kv_heads, slots], negative where a slot is free
    int32_t key_kind, value_kind;           // scope_kind
    int32_t kv_heads, group, head_dim;      // query heads: kv_heads * group
    int32_t slots, used;                    // there are; may hold something: a prefix
};
}
