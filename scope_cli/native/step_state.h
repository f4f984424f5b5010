// What a step has at hand, and who does what: step.cpp the layers and products, step_attention.cpp what concerns slots.
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "attention.h"
#include "layers.h"
#include "step.h"
#include "team.h"

namespace scope {

constexpr int PIECES_PER_THREAD = 4;
constexpr int WHOLE_BLOCK = BLOCK / GROUP;  // groups of rows that are a block of the next product's columns

inline int up_to(int number, int multiple) { return (number + multiple - 1) / multiple * multiple; }

// Of one lane and KV head: those of the slots, then those of exact tokens.
inline int all_pieces(const scope_layer& layer) { return pieces_of(layer.slots) + pieces_of(layer.exact); }

// Rows of activations, as a product wants them.
struct Input {
    std::vector<Block> blocks;
    std::vector<float> values;
    int columns;

    Input(int rows, int columns)
        : blocks((size_t)rows * blocks_of(columns)), values((size_t)rows * columns), columns(columns) {}
    float* row(int n) { return &values[(size_t)n * columns]; }
    void round(int rows) { scope_round(values.data(), columns, rows, columns, blocks.data()); }
    Rows rows(int count) const { return {count, blocks.data(), values.data(), columns}; }
};

// What a thread has to itself. Every thread computes norms and residuals anew: that is cheaper than to wait for one.
struct Own {
    std::vector<float> stream, query, head;
    Room room;
    Input normed;
    std::vector<Block> attended;

    Own(int lanes, int hidden, int heads_wide)
        : stream((size_t)lanes * hidden), normed(lanes, hidden), attended((size_t)lanes * blocks_of(heads_wide)) {}
};

}  // namespace scope

using namespace scope;  // the two files that this is for

struct scope_step {
    const scope_model& model;
    int rows = 0;                // lanes that run
    std::vector<int> lane_of;    // by row
    const int64_t *positions = nullptr, *held = nullptr;
    int heads_wide, keys_wide;  // of all layers: heads * head_dim, kv_heads * head_dim
    bool rounds;                // some weights have codes, and take rounded activations
    std::vector<float> projected;  // [lanes, queries + keys + values]
    std::vector<float> attended;   // [lanes, heads * head_dim]
    std::vector<float> changed;    // [lanes, hidden], what the residual stream gets
    std::vector<float> up;         // [lanes, inner]
    Input inside;                  // [lanes, inner]
    std::vector<float> parts, turns;
    std::vector<float> told;  // [lanes, heads, slots], a layer's logits, then probabilities, where somebody asks
    std::unique_ptr<std::atomic<int>[]> pieces_done;  // of each lane and KV head
    std::vector<Own> own;
    Team* team = nullptr;
    double attention_s = 0;  // spent so far, as the first thread sees it

    explicit scope_step(const scope_model& model);
    void prepare(int threads);
    void run(int thread, const float* embedded, float* logits);

   private:
    void find_turns();
    void take_slots();
    void layer(int number, Own& mine);
    void project(const scope_layer& layer, Own& mine);
    void attend(const scope_layer& layer, Own& mine);
    void attend_pieces(const scope_layer& layer, int row, int head, int from, int to, Own& mine);
    void ask(const scope_layer& layer, int row, int head, bool remember, Own& mine);
    void write_token(const scope_layer& layer, const scope_slots& slots, int row, int head, long slot, Own& mine);
    void finish_head(const scope_layer& layer, int row, int head);
    void mix(const scope_layer& layer, Own& mine);
    void take_up(Own& mine, const float* after, const float* before);
    void head(Own& mine, float* logits);
    Turns turns_by(const scope_layer& layer, int row);
    long slot_of(const scope_layer& layer, int row, int head) const;
    int at_once(int groups) const {
        return up_to((groups + team->threads * PIECES_PER_THREAD - 1) / (team->threads * PIECES_PER_THREAD), WHOLE_BLOCK);
    }
    float* turns_of(int row, int rotation) { return &turns[((size_t)row * model.rotation_count + rotation) * 2 * turn_room]; }
    int turn_room = 0;
};
