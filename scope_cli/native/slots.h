// One layer's slots, by address, as the cache's tensors lie in memory.
#pragma once
#include <cstdint>

extern "C" {

// How keys or values are stored.
enum scope_format {
    SCOPE_FLOAT32 = 0,
    SCOPE_BFLOAT16 = 1,
    SCOPE_INT8 = 2,  // with a scale for each token and KV head
    SCOPE_INT4 = 3,  // groups of 32 with scale and minimum; byte j has the numbers j and j + head_dim / 2
};

struct scope_slots {
    void *keys, *values;                   // [lanes, kv_heads, slots, head_dim], in 4 bits half of it
    uint16_t *key_scales, *value_scales;   // float16 [lanes, kv_heads, slots]; in 4 bits [..., 2, head_dim / 32]
    void* bias;                            // [lanes, kv_heads, slots], 0 where attention sees a token, else -inf
    int32_t key_format, value_format;      // scope_format
    int32_t bias_format;                   // SCOPE_FLOAT32 or SCOPE_BFLOAT16
    int32_t turns_keys, turns_values;      // they are multiplied by a Hadamard matrix over the head
    int32_t kv_heads, group, head_dim;     // query heads: kv_heads * group
    int32_t slots, used;                   // there are; may hold something: a prefix
};
}
