#include "step.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

#include "attention.h"
#include "layers.h"
#include "team.h"
#include "vectors.h"

using namespace scope;

namespace {

constexpr int PIECES_PER_THREAD = 4;
constexpr int HEAD_PIECE = 64;  // groups of rows, at most: who was interrupted holds up no more
constexpr int WHOLE_BLOCK = BLOCK / GROUP;  // groups of rows that are a block of the next product's columns, or a panel

int up_to(int number, int multiple) { return (number + multiple - 1) / multiple * multiple; }

// Of one lane and KV head: those of the slots, then those of exact tokens.
int all_pieces(const scope_layer& layer) { return pieces_of(layer.slots) + pieces_of(layer.exact); }

// `at` is counted over lanes and heads.
void show(const scope_slots& slots, size_t at, bool visible) {
    const bool wide = slots.bias_format == SCOPE_FLOAT32;
    const uint32_t bits = visible ? 0 : wide ? 0xff800000 : 0xff80;  // 0 or -inf
    memcpy((char*)slots.bias + at * (wide ? 4 : 2), &bits, wide ? 4 : 2);
}

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
    std::vector<float> stream, scratch, query, head;
    Input normed;
    std::vector<Block> attended;

    Own(int lanes, int hidden, int heads_wide)
        : stream((size_t)lanes * hidden), normed(lanes, hidden), attended((size_t)lanes * blocks_of(heads_wide)) {}
};

}  // namespace

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
    void attend_piece(const scope_layer& layer, int row, int head, int piece, Own& mine);
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

scope_step::scope_step(const scope_model& model) : model(model), inside(model.lanes, model.layers[0].gate.weight.rows) {
    const scope_slots& slots = model.layers[0].slots;
    const size_t heads = slots.kv_heads;
    keys_wide = slots.kv_heads * slots.head_dim;
    heads_wide = keys_wide * slots.group;
    rounds = has_codes(model.head.weight.kind);
    for (int i = 0; i < model.layer_count; i++) {
        const scope_layer& one = model.layers[i];
        for (const scope_linear* linear : {&one.query, &one.key, &one.value, &one.output, &one.gate, &one.up, &one.down})
            rounds |= has_codes(linear->weight.kind);
    }
    for (int i = 0; i < model.rotation_count; i++) turn_room = std::max(turn_room, model.rotations[i].half);
    const size_t lanes = model.lanes;
    projected.resize(lanes * (heads_wide + 2 * keys_wide));
    attended.resize(lanes * heads_wide);
    changed.resize(lanes * model.hidden);
    up.resize(lanes * inside.columns);
    turns.resize(lanes * model.rotation_count * 2 * turn_room);
    pieces_done = std::make_unique<std::atomic<int>[]>(lanes * heads);
    for (size_t i = 0; i < lanes * heads; i++) pieces_done[i] = 0;
}

// Room for what changes from step to step: threads, and slots that are read.
void scope_step::prepare(int threads) {
    size_t most = 0, scratch = 0, query = 0, asked = 0;
    for (int i = 0; i < model.layer_count; i++) {
        const scope_slots& slots = model.layers[i].slots;
        most = std::max(most, (size_t)rows * slots.kv_heads * all_pieces(model.layers[i]) * slots.group * part_floats(slots));
        scratch = std::max(scratch, (size_t)scratch_floats(slots));
        query = std::max(query, (size_t)slots.group * padded(slots.head_dim));
        if (model.layers[i].attention) asked = std::max(asked, (size_t)model.lanes * slots.kv_heads * slots.group * slots.slots);
    }
    if (told.size() < asked) told.resize(asked);
    if (parts.size() < most) parts.resize(most);
    while ((int)own.size() < threads) own.emplace_back(model.lanes, model.hidden, heads_wide);
    for (Own& one : own) {
        one.scratch.resize(scratch);
        one.query.resize(query);
        one.head.resize(padded(query));
    }
}

void scope_step::run(int thread, const float* embedded, float* logits) {
    Own& mine = own[thread];
    for (int n = 0; n < rows; n++)
        memcpy(&mine.stream[(size_t)n * model.hidden], embedded + (size_t)lane_of[n] * model.hidden, model.hidden * sizeof(float));
    find_turns();
    take_slots();
    for (int i = 0; i < model.layer_count; i++) layer(i, mine);
    take_up(mine, model.layers[model.layer_count - 1].after_mlp, model.last_norm);
    head(mine, logits);
}

// Cosines and sines of every row's position.
void scope_step::find_turns() {
    team->share(rows * model.rotation_count, [&](int at) {
        const int row = at / model.rotation_count, which = at % model.rotation_count;
        float* cosines = turns_of(row, which);
        scope::find_turns(model.rotations[which], positions[lane_of[row]], cosines, cosines + turn_room);
    });
}

// All that is written beside keys and values, before anything is read: who attends to one piece of a head's slots
// finds in the others what stays there. A token's packed self is not seen as long as it is among the exact ones.
void scope_step::take_slots() {
    team->share(rows * model.layer_count, [&](int at) {
        const int row = at / model.layer_count, lane = lane_of[row];
        const scope_layer& layer = model.layers[at % model.layer_count];
        const scope_slots &slots = layer.slots, &exact = layer.exact;
        for (int head = 0; head < slots.kv_heads; head++) {
            const size_t held_head = (size_t)lane * slots.kv_heads + head, first = held_head * slots.slots;
            const size_t taken = first + slot_of(layer, row, head);
            layer.positions[taken] = (int32_t)positions[lane];
            for (int i = 0; i < layer.memo_count; i++) layer.memos[i][taken] = 0;
            if (exact.slots) {
                const size_t place = held_head * exact.slots + positions[lane] % exact.slots;
                if (seen(exact, place)) show(slots, first + layer.exact_slots[place], true);
                show(exact, place, true);
                layer.exact_slots[place] = (int32_t)(taken - first);
            }
            show(slots, taken, !exact.slots);
        }
    });
}

void scope_step::layer(int number, Own& mine) {
    const scope_layer& layer = model.layers[number];
    take_up(mine, number ? model.layers[number - 1].after_mlp : nullptr, layer.before_attention);  // at first zeros
    project(layer, mine);
    attend(layer, mine);
    take_up(mine, layer.after_attention, layer.before_mlp);
    mix(layer, mine);
}

// The stream takes up what changed; its norm is the next product's input.
void scope_step::take_up(Own& mine, const float* after, const float* before) {
    const int hidden = model.hidden;
    for (int n = 0; n < rows; n++) {
        float *x = &mine.stream[(size_t)n * hidden], *out = mine.normed.row(n);
        memcpy(out, &changed[(size_t)n * hidden], hidden * sizeof(float));
        scope::take_up(model, after, out, x);
        norm(model, before, x, out);
    }
    if (rounds) mine.normed.round(rows);
}

// Queries, keys and values of all rows.
void scope_step::project(const scope_layer& layer, Own& mine) {
    const scope_linear* linears[] = {&layer.query, &layer.key, &layer.value};
    int groups[3], all = 0, from[3] = {};
    for (int i = 0; i < 3; i++) all += groups[i] = groups_of(linears[i]->weight.rows);
    from[1] = linears[0]->weight.rows;
    from[2] = from[1] + linears[1]->weight.rows;
    const int stride = heads_wide + 2 * keys_wide, each = at_once(all);
    int pieces[3], count = 0;
    for (int i = 0; i < 3; i++) count += pieces[i] = (groups[i] + each - 1) / each;
    const Rows x = mine.normed.rows(rows);
    team->share(count, [&](int at) {
        int i = 0;
        while (at >= pieces[i]) at -= pieces[i++];
        multiply(*linears[i], x, projected.data() + from[i], stride, at * each, std::min((at + 1) * each, groups[i]));
    });
}

long scope_step::slot_of(const scope_layer& layer, int row, int head) const {
    const int lane = lane_of[row];
    if (!layer.vacant) return positions[lane] % layer.window;
    return layer.vacant[((size_t)lane * layer.slots.kv_heads + head) * layer.evictable + held[lane]];
}

void scope_step::attend(const scope_layer& layer, Own& mine) {
    const scope_slots& slots = layer.slots;
    const int pieces = all_pieces(layer);
    const auto began = std::chrono::steady_clock::now();
    team->share(rows * slots.kv_heads * pieces, [&](int at) {
        const int row = at / pieces / slots.kv_heads, head = at / pieces % slots.kv_heads, piece = at % pieces;
        attend_piece(layer, row, head, piece, mine);
        auto& done = pieces_done[(size_t)row * slots.kv_heads + head];
        if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == pieces) {
            done.store(0, std::memory_order_relaxed);
            finish_head(layer, row, head);
        }
    });
    if (&mine == &own[0]) attention_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    if (rounds) scope_round(attended.data(), heads_wide, rows, heads_wide, mine.attended.data());
    const Rows x = {rows, mine.attended.data(), attended.data(), heads_wide};
    const int groups = groups_of(layer.output.weight.rows), each = at_once(groups);
    team->share((groups + each - 1) / each, [&](int at) {
        multiply(layer.output, x, changed.data(), model.hidden, at * each, std::min((at + 1) * each, groups));
    });
}

Turns scope_step::turns_by(const scope_layer& layer, int row) {
    if (layer.rotation < 0) return {};
    const float* cosines = turns_of(row, layer.rotation);
    return {cosines, cosines + turn_room, model.rotations[layer.rotation].half};
}

void scope_step::attend_piece(const scope_layer& layer, int row, int head, int piece, Own& mine) {
    const scope_slots& slots = layer.slots;
    const int head_dim = slots.head_dim, group = slots.group, wide = padded(head_dim), lane = lane_of[row];
    const float* queries = &projected[(size_t)row * (heads_wide + 2 * keys_wide)];
    const int packed = pieces_of(slots);
    const bool is_exact = piece >= packed;
    const scope_slots& these = is_exact ? layer.exact : slots;
    const int nth = is_exact ? piece - packed : piece;
    const long slot = is_exact ? positions[lane] % these.slots : slot_of(layer, row, head);
    const bool writes = slot / PIECE == nth;
    if (writes) write_token(layer, these, row, head, slot, mine);
    float root = 0;
    if (layer.query_norm && layer.norms_all_heads)
        root = vectors().root(queries, slots.kv_heads * group * head_dim, model.epsilon);
    for (int q = 0; q < group; q++) {
        const int number = head * group + q;
        const float *projection = queries + number * head_dim, *norm = layer.query_norm;
        float* query = &mine.query[(size_t)q * wide];
        if (norm && layer.norms_all_heads)
            norm += number * head_dim;
        else if (norm)
            root = vectors().root(projection, head_dim, model.epsilon);
        place_head(projection, norm, root, turns_by(layer, row), head_dim, query);
        if (writes && !is_exact && layer.queries) {
            const long at = ((long)lane * slots.kv_heads * group + number) * layer.ring + positions[lane] % layer.ring;
            vectors().store(query, layer.plain_format, layer.queries, nullptr, at, head_dim);
        }
        if (slots.turns_keys) vectors().turn(query, head_dim);
        vectors().scale(query, layer.scale, nullptr, query, head_dim);
        memset(query + head_dim, 0, (size_t)(wide - head_dim) * sizeof(float));
    }
    const size_t at = ((size_t)row * slots.kv_heads + head) * all_pieces(layer) + piece;
    const long held_head = (long)lane * slots.kv_heads + head;
    float* logits = layer.attention && !is_exact ? &told[(size_t)held_head * group * slots.slots] : nullptr;
    attention().piece(these, held_head, nth, {mine.query.data(), layer.cap, logits},
                      &parts[at * group * part_floats(slots)], mine.scratch.data());
}

// The row's key and value into a slot.
void scope_step::write_token(const scope_layer& layer, const scope_slots& slots, int row, int head, long slot, Own& mine) {
    const int head_dim = slots.head_dim, keys = slots.kv_heads * head_dim, lane = lane_of[row];
    const float* all_keys = &projected[(size_t)row * (heads_wide + 2 * keys_wide)] + keys * slots.group;
    const float *projection = all_keys + head * head_dim, *norm = layer.key_norm;
    const long at = ((long)lane * slots.kv_heads + head) * slots.slots + slot;
    float *number = mine.head.data(), root = 0;
    if (norm && layer.norms_all_heads) {
        root = vectors().root(all_keys, keys, model.epsilon);
        norm += head * head_dim;
    } else if (norm) {
        root = vectors().root(projection, head_dim, model.epsilon);
    }
    place_head(projection, norm, root, turns_by(layer, row), head_dim, number);
    if (slots.turns_keys) vectors().turn(number, head_dim);
    vectors().store(number, slots.key_format, slots.keys, slots.key_scales, at, head_dim);
    memcpy(number, all_keys + keys + head * head_dim, head_dim * sizeof(float));
    if (slots.turns_values) vectors().turn(number, head_dim);
    vectors().store(number, slots.value_format, slots.values, slots.value_scales, at, head_dim);
}

// By whoever did the last of a head's pieces.
void scope_step::finish_head(const scope_layer& layer, int row, int head) {
    const scope_slots& slots = layer.slots;
    const int group = slots.group, head_dim = slots.head_dim;
    const size_t at = (size_t)row * slots.kv_heads + head, held_head = (size_t)lane_of[row] * slots.kv_heads + head;
    float* out = &attended[(size_t)row * heads_wide + (size_t)head * group * head_dim];
    const int pieces = all_pieces(layer);
    float* rows = layer.attention ? &told[held_head * group * slots.slots] : nullptr;
    attention().merge(slots, &parts[at * pieces * group * part_floats(slots)], pieces,
                      layer.sinks ? layer.sinks + head * group : nullptr, out, rows);
    if (rows) {
        float* mean = layer.attention + held_head * slots.slots;
        for (int q = 1; q < group; q++) vectors().add(rows, rows + (size_t)q * slots.slots, nullptr, slots.slots);
        for (int slot = 0; slot < slots.slots; slot++) mean[slot] = rows[slot] / (float)group;
    }
    if (slots.turns_values)
        for (int q = 0; q < group; q++) vectors().turn(out + q * head_dim, head_dim);
}

// The layer's MLP. A piece of the first half is whole blocks of the second half's columns, which it rounds.
void scope_step::mix(const scope_layer& layer, Own& mine) {
    const Rows x = mine.normed.rows(rows);
    const int wide = inside.columns, blocks = blocks_of(wide);
    int groups = groups_of(wide), each = at_once(groups);
    team->share((groups + each - 1) / each, [&](int at) {
        const int first = at * each, last = std::min(first + each, groups);
        const int begin = first * GROUP, count = std::min(last * GROUP, wide) - begin;
        multiply(layer.gate, x, inside.values.data(), wide, first, last);
        multiply(layer.up, x, up.data(), wide, first, last);
        for (int n = 0; n < rows; n++) {
            vectors().activate(layer.activation, inside.row(n) + begin, &up[(size_t)n * wide + begin], count);
            if (rounds) scope_round(inside.row(n) + begin, wide, 1, count, &inside.blocks[(size_t)n * blocks + begin / BLOCK]);
        }
    });
    const Rows y = inside.rows(rows);
    groups = groups_of(layer.down.weight.rows);
    each = at_once(groups);
    team->share((groups + each - 1) / each, [&](int at) {
        multiply(layer.down, y, changed.data(), model.hidden, at * each, std::min((at + 1) * each, groups));
    });
}

void scope_step::head(Own& mine, float* logits) {
    const Rows x = mine.normed.rows(rows);
    const int groups = groups_of(model.head.weight.rows), each = std::min(at_once(groups), HEAD_PIECE);
    team->share((groups + each - 1) / each, [&](int at) {
        multiply_head(model, x, logits, at * each, std::min((at + 1) * each, groups));
    });
}

scope_step* scope_step_new(const scope_model* model) { return new scope_step(*model); }
void scope_step_free(scope_step* step) { delete step; }
double scope_step_attention_s(const scope_step* step) { return step->attention_s; }

void scope_step_run(scope_step* step, const float* embedded, const int64_t* running, const int64_t* positions,
                    const int64_t* held, float* logits, int32_t threads) {
    step->lane_of.clear();
    for (int lane = 0; lane < step->model.lanes; lane++)
        if (running[lane] > 0) step->lane_of.push_back(lane);
    step->rows = (int)step->lane_of.size();
    if (!step->rows) return;
    step->positions = positions;
    step->held = held;
    std::fill(step->changed.begin(), step->changed.end(), 0.0f);
    step->prepare(threads);
    Turn turn(threads);
    step->team = &turn.team;
    turn.team.run([&](int thread) { step->run(thread, embedded, logits); });
}
