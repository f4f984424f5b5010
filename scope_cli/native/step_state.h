// What a step has at hand, and who does what: step.cpp the layers and products, step_attention.cpp what concerns slots.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "attention.h"
#include "layers.h"
#include "step.h"
#include "team.h"

namespace scope {

constexpr int PIECES_PER_THREAD = 4;
constexpr int HEAD_PIECE = 64;  // groups of rows, at most: who was interrupted holds up no more
constexpr size_t AHEAD = 16 << 10;  // bytes of what comes next that a thread fetches while it waits
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

// What a thread has to itself.
struct Own {
    std::vector<float> query, head;
    long asked = -1;  // whose queries are in `query`: counted over this step's layers, rows and KV heads
    Room room;
};

inline size_t group_bytes(const Weight& weight) {
    if (has_codes(weight.kind)) return blocks_of(weight.columns) * block_bytes(weight.kind);
    return (size_t)GROUP * weight.columns * (weight.kind - SCOPE_PLAIN == SCOPE_FLOAT32 ? 4 : 2);
}

// How the rows of a weight are cut into pieces.
struct Cut {
    const scope_linear& linear;
    int groups, each;

    Cut(const scope_linear& linear, int each) : linear(linear), groups(groups_of(linear.weight.rows)), each(each) {}
    int count() const { return (groups + each - 1) / each; }
    int first(int piece) const { return piece * each; }
    int last(int piece) const { return std::min((piece + 1) * each, groups); }
    Stretch from(int piece) const {
        const Weight& weight = linear.weight;
        const size_t bytes = group_bytes(weight);
        return {weight.data + first(piece) * bytes, std::min((groups - first(piece)) * bytes, AHEAD)};
    }
};

// Of queries, keys and values.
struct Projections {
    Cut cuts[3];

    int count() const { return cuts[0].count() + cuts[1].count() + cuts[2].count(); }
    // use(cut, piece) of one of all pieces.
    template <class Use>
    auto with(int at, const Use& use) const {
        int i = 0;
        while (at >= cuts[i].count()) at -= cuts[i++].count();
        return use(cuts[i], at);
    }
};

}  // namespace scope

using namespace scope;  // the two files that this is for

struct scope_step final : Work {
    const scope_model& model;
    int rows = 0;                // lanes that run
    std::vector<int> lane_of;    // by row
    const int64_t *positions = nullptr, *held = nullptr;
    int heads_wide, keys_wide;  // of all layers: heads * head_dim, kv_heads * head_dim
    bool rounds;                // some weights have codes, and take rounded activations
    float* logits = nullptr;
    std::vector<float> stream;     // [lanes, hidden], the residuals
    Input normed;                  // [lanes, hidden]
    std::vector<float> projected;  // [lanes, queries + keys + values]
    Input attended;                // [lanes, heads * head_dim]
    std::vector<float> changed;    // [lanes, hidden], what the residual stream gets
    std::vector<float> up;         // [lanes, inner]
    Input inside;                  // [lanes, inner]
    std::vector<float> parts, turns;
    std::vector<float> told;  // [lanes, heads, slots], a layer's logits, then probabilities, where somebody asks
    std::unique_ptr<std::atomic<int>[]> pieces_done;  // of each lane and KV head
    std::vector<Own> own;
    Team* team = nullptr;
    double attention_s = 0;  // spent so far
    std::chrono::steady_clock::time_point attention_began;

    explicit scope_step(const scope_model& model);
    void prepare(int threads);
    int begin(int phase) override;
    void piece(int phase, int at, int thread) override;
    Stretch ahead(int phase, int thread) override;

   private:
    // After the first phase, which makes ready: those of each layer, then the head.
    enum Part { PROJECT, ATTEND, OUTPUT, WIDEN, NARROW, PARTS };

    void make_ready(int at);
    void take_slots(int at);
    void project(const scope_layer& layer, int at);
    void attend(const scope_layer& layer, int at, Own& mine);
    void attend_pieces(const scope_layer& layer, int row, int head, int from, int to, Own& mine);
    void ask(const scope_layer& layer, int row, int head, bool remember, Own& mine);
    void write_token(const scope_layer& layer, const scope_slots& slots, int row, int head, long slot, Own& mine);
    void finish_head(const scope_layer& layer, int row, int head);
    void widen(const scope_layer& layer, int at);
    void change(const Cut& cut, const Input& x, int at);
    void take_up(const float* after, const float* before);
    int begin_part(int number, Part part);
    Cut cut(const scope_linear& linear) const { return {linear, at_once(groups_of(linear.weight.rows))}; }
    Projections projections(const scope_layer& layer) const {
        const int all = groups_of(heads_wide) + 2 * groups_of(keys_wide), each = at_once(all);
        return {{{layer.query, each}, {layer.key, each}, {layer.value, each}}};
    }
    Cut head_cut() const { return {model.head, std::min(at_once(groups_of(model.head.weight.rows)), HEAD_PIECE)}; }
    Runs runs(const scope_layer& layer) const { return Runs(all_pieces(layer), rows * layer.slots.kv_heads, team->threads); }
    Turns turns_by(const scope_layer& layer, int row);
    long slot_of(const scope_layer& layer, int row, int head) const;
    // Groups of rows that are a piece, of so many in a phase.
    int at_once(int groups) const {
        return up_to((groups + team->threads * PIECES_PER_THREAD - 1) / (team->threads * PIECES_PER_THREAD), WHOLE_BLOCK);
    }
    float* turns_of(int row, int rotation) { return &turns[((size_t)row * model.rotation_count + rotation) * 2 * turn_room]; }
    int turn_room = 0;
};
