// One query of each head over the slots of one layer.
//
// The slots of a KV head are cut into pieces of 256; any thread may take a run of them. A piece leaves, for each query of
// the group, the largest logit, the sum of weights and the weighted sum of values; the pieces are merged in the order
// of the slots, those of exact tokens last. So what comes out depends on no thread, on no other lane, and not on how
// many free slots are read.
#pragma once
#include <cstddef>
#include <vector>

#include "slots.h"

namespace scope {

constexpr int PIECE = 256;  // slots
constexpr int RUNS_PER_THREAD = 8;
constexpr int TILE = 64;    // of them that are looked at together; free tiles are not read

// Head dimensions are padded to whole vectors of 16 floats, with zeros.
inline int padded(int head_dim) { return (head_dim + 15) / 16 * 16; }
inline int pieces_of(const scope_slots& layer) { return (layer.used + PIECE - 1) / PIECE; }

// Whether attention sees what lies there; `at` is counted over lanes and heads. Of 0 and -inf, one has the sign bit.
inline bool seen(const scope_slots& layer, size_t at) {
    const size_t bytes = layer.bias_format == SCOPE_FLOAT32 ? 4 : 2;
    return !(((const uint8_t*)layer.bias)[(at + 1) * bytes - 1] & 0x80);
}

// What a piece leaves, in floats, for each query: largest logit, sum of weights, weighted sum of values.
inline int part_floats(const scope_slots& layer) { return 2 + padded(layer.head_dim); }

inline bool in_codes(int32_t format) { return format == SCOPE_INT8 || format == SCOPE_INT4; }

// Codes are multiplied in blocks of 32 columns; in 4 bits each has its own scale.
inline int code_blocks(const scope_slots& layer) { return (layer.head_dim + 31) / 32; }

// What a thread needs to work on a piece.
struct Room {
    std::vector<float> tile;            // [TILE, padded(head_dim)], keys or values
    std::vector<float> weights, bias;   // [group, TILE], logits before; [TILE]
    std::vector<int8_t> codes;          // [TILE, 32 * blocks]
    std::vector<float> scales;          // [2 * blocks, TILE], in 4 bits minima behind them
    std::vector<int16_t> asked;         // [group, 32 * blocks], queries as numbers
    std::vector<float> units, totals;   // [group], what one stands for; [group, blocks], what they sum up to
    std::vector<int16_t> numbers;       // [group, TILE], weights times scales as numbers
    std::vector<float> weight_units, least;  // [group], what one stands for; minima, weighted
    std::vector<int32_t> sums;          // [group, TILE]
    std::vector<float> parts;           // [group, part_floats], until the piece is done: no line of memory is shared

    void fit(const scope_slots& layer);  // one layer or another
};

struct Query {
    const float* rows;  // [group, padded(head_dim)], rotated and scaled
    float cap;          // logits are capped to it by tanh; 0: not
    float* logits;      // [group, slots], written where somebody asks for probabilities; else null
};

struct Attention {
    // Pieces of a head, `head` counted over lanes and KV heads; parts: [to - from, group, part_floats]
    void (*pieces)(const scope_slots& layer, long head, int from, int to, const Query& query, float* parts, Room& room);
    // All pieces of a head; parts: [pieces, group, part_floats]; sinks: [group] or null; out: [group, head_dim];
    // logits: [group, slots] or null, made probabilities
    void (*merge)(const scope_slots& layer, const float* parts, int pieces, const float* sinks, float* out, float* logits);
};

// Who takes a run of pieces reads memory in one stretch; there are enough runs that no thread waits long for another.
struct Runs {
    int pieces, each, count;  // of a head; of a run; runs of a head

    Runs(int pieces, int heads, int threads) : pieces(pieces) {
        const int wanted = (threads * RUNS_PER_THREAD + heads - 1) / heads;
        each = wanted < pieces ? (pieces + wanted - 1) / wanted : 1;
        count = (pieces + each - 1) / each;
    }
    int begin(int run) const { return run * each; }
    int end(int run) const { return (run + 1) * each < pieces ? (run + 1) * each : pieces; }
};

extern const Attention attention_plain, attention_avx2, attention_avx512;
const Attention& attention();  // with the instructions in use

}  // namespace scope

extern "C" {

// softmax(scale * query . keys) . values of every lane and head.
// query, out: [lanes, kv_heads, group, head_dim]; sinks: [kv_heads * group] or null;
// probabilities: [lanes, kv_heads, group, slots] or null; exact: tokens beside the slots, of the same heads, or null
void scope_attend(const scope_slots* layer, const scope_slots* exact, int lanes, const float* query, float scale, float cap, const float* sinks,
                  float* probabilities, float* out, int threads);
}
