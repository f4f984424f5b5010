#include "step.h"

#include <cstring>

#include "step_state.h"
#include "vectors.h"

static int keys_wide_of(const scope_slots& slots) { return slots.kv_heads * slots.head_dim; }

scope_step::scope_step(const scope_model& model)
    : model(model), heads_wide(keys_wide_of(model.layers[0].slots) * model.layers[0].slots.group),
      keys_wide(keys_wide_of(model.layers[0].slots)), normed(model.lanes, model.hidden), attended(model.lanes, heads_wide),
      inside(model.lanes, model.layers[0].gate.weight.rows) {
    const size_t heads = model.layers[0].slots.kv_heads;
    rounds = has_codes(model.head.weight.kind);
    for (int i = 0; i < model.layer_count; i++) {
        const scope_layer& one = model.layers[i];
        for (const scope_linear* linear : {&one.query, &one.key, &one.value, &one.output, &one.gate, &one.up, &one.down})
            rounds |= has_codes(linear->weight.kind);
    }
    for (int i = 0; i < model.rotation_count; i++) turn_room = std::max(turn_room, model.rotations[i].half);
    const size_t lanes = model.lanes;
    projected.resize(lanes * (heads_wide + 2 * keys_wide));
    stream.resize(lanes * model.hidden);
    changed.resize(lanes * model.hidden);
    up.resize(lanes * inside.columns);
    turns.resize(lanes * model.rotation_count * 2 * turn_room);
    pieces_done = std::make_unique<std::atomic<int>[]>(lanes * heads);
    for (size_t i = 0; i < lanes * heads; i++) pieces_done[i] = 0;
}

// Room for what changes from step to step: threads, and slots that are read.
void scope_step::prepare(int threads) {
    size_t most = 0, query = 0, asked = 0;
    for (int i = 0; i < model.layer_count; i++) {
        const scope_slots& slots = model.layers[i].slots;
        most = std::max(most, (size_t)rows * slots.kv_heads * all_pieces(model.layers[i]) * slots.group * part_floats(slots));
        query = std::max(query, (size_t)slots.group * padded(slots.head_dim));
        if (model.layers[i].attention) asked = std::max(asked, (size_t)model.lanes * slots.kv_heads * slots.group * slots.slots);
    }
    if (told.size() < asked) told.resize(asked);
    if (parts.size() < most) parts.resize(most);
    if ((int)own.size() < threads) own.resize(threads);
    for (Own& one : own) {
        one.asked = -1;
        for (int i = 0; i < model.layer_count; i++) one.room.fit(model.layers[i].slots);
        one.query.resize(query);
        one.head.resize(padded(query));
    }
}

// A phase's number says what it is: the first one makes ready, then come the parts of each layer, then the head.
int scope_step::begin(int phase) {
    const int number = (phase - 1) / PARTS;
    if (phase == 0) return rows * (model.rotation_count + model.layer_count);
    if (number < model.layer_count) return begin_part(number, Part((phase - 1) % PARTS));
    if (phase > 1 + model.layer_count * PARTS) return 0;
    take_up(model.layers[model.layer_count - 1].after_mlp, model.last_norm);
    return head_cut().count();
}

// What has to be done before any piece of the part, and how many pieces it has.
int scope_step::begin_part(int number, Part part) {
    const scope_layer& layer = model.layers[number];
    switch (part) {
        case PROJECT:
            take_up(number ? model.layers[number - 1].after_mlp : nullptr, layer.before_attention);  // at first zeros
            return projections(layer).count();
        case ATTEND:
            attention_began = std::chrono::steady_clock::now();
            return rows * layer.slots.kv_heads * runs(layer).count;
        case OUTPUT:
            attention_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - attention_began).count();
            if (rounds) attended.round(rows);
            return cut(layer.output).count();
        case WIDEN:
            take_up(layer.after_attention, layer.before_mlp);
            return cut(layer.gate).count();
        default:
            return cut(layer.down).count();
    }
}

void scope_step::piece(int phase, int at, int thread) {
    const int number = (phase - 1) / PARTS;
    if (phase == 0) return make_ready(at);
    if (number >= model.layer_count) {
        const Cut head = head_cut();
        return multiply_head(model, normed.rows(rows), logits, head.first(at), head.last(at));
    }
    const scope_layer& layer = model.layers[number];
    switch ((phase - 1) % PARTS) {
        case PROJECT: return project(layer, at);
        case ATTEND: return attend(layer, at, own[thread]);
        case OUTPUT: return change(cut(layer.output), attended, at);
        case WIDEN: return widen(layer, at);
        case NARROW: return change(cut(layer.down), inside, at);
    }
}

// The weights of the next product; attention, which reads none, comes before its output.
Stretch scope_step::ahead(int phase, int thread) {
    const auto first = [&](const Cut& cut) { return cut.from(team->first_of(thread, cut.count())); };
    const int number = phase / PARTS;
    if (number > model.layer_count || (number == model.layer_count && phase % PARTS)) return {};
    if (number == model.layer_count) return first(head_cut());
    const scope_layer& layer = model.layers[number];
    switch (phase % PARTS) {
        case PROJECT: {
            const Projections all = projections(layer);
            return all.with(team->first_of(thread, all.count()), [](const Cut& cut, int piece) { return cut.from(piece); });
        }
        case ATTEND:
        case OUTPUT: return first(cut(layer.output));
        case WIDEN: return first(cut(layer.gate));
        default: return first(cut(layer.down));
    }
}

// Cosines and sines of every row's position, then the slots of every layer.
void scope_step::make_ready(int at) {
    const int turned = rows * model.rotation_count;
    if (at >= turned) return take_slots(at - turned);
    const int row = at / model.rotation_count, which = at % model.rotation_count;
    float* cosines = turns_of(row, which);
    find_turns(model.rotations[which], positions[lane_of[row]], cosines, cosines + turn_room);
}

// The stream takes up what changed; its norm is the next product's input.
void scope_step::take_up(const float* after, const float* before) {
    const int hidden = model.hidden;
    for (int n = 0; n < rows; n++) {
        float *x = &stream[(size_t)n * hidden], *out = normed.row(n);
        memcpy(out, &changed[(size_t)n * hidden], hidden * sizeof(float));
        scope::take_up(model, after, out, x);
        norm(model, before, x, out);
    }
    if (rounds) normed.round(rows);
}

// Queries, keys and values of all rows.
void scope_step::project(const scope_layer& layer, int at) {
    projections(layer).with(at, [&](const Cut& cut, int piece) {
        float* out = projected.data();
        if (&cut.linear != &layer.query) out += heads_wide;
        if (&cut.linear == &layer.value) out += keys_wide;
        multiply(cut.linear, normed.rows(rows), out, heads_wide + 2 * keys_wide, cut.first(piece), cut.last(piece));
    });
}

// The first half of the MLP. A piece is whole blocks of the second half's columns, which it rounds.
void scope_step::widen(const scope_layer& layer, int at) {
    const Rows x = normed.rows(rows);
    const Cut gate = cut(layer.gate);
    const int wide = inside.columns, first = gate.first(at), last = gate.last(at);
    const int begin = first * GROUP, count = std::min(last * GROUP, wide) - begin;
    multiply(layer.gate, x, inside.values.data(), wide, first, last);
    multiply(layer.up, x, up.data(), wide, first, last);
    for (int n = 0; n < rows; n++) {
        vectors().activate(layer.activation, inside.row(n) + begin, &up[(size_t)n * wide + begin], count);
        if (rounds) scope_round(inside.row(n) + begin, wide, 1, count, &inside.blocks[(size_t)n * blocks_of(wide) + begin / BLOCK]);
    }
}

// What the stream will take up.
void scope_step::change(const Cut& cut, const Input& x, int at) {
    multiply(cut.linear, x.rows(rows), changed.data(), model.hidden, cut.first(at), cut.last(at));
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
    step->logits = logits;
    const size_t hidden = step->model.hidden;
    for (int n = 0; n < step->rows; n++)
        memcpy(&step->stream[n * hidden], embedded + step->lane_of[n] * hidden, hidden * sizeof(float));
    std::fill(step->changed.begin(), step->changed.end(), 0.0f);
    step->prepare(threads);
    Turn turn(threads);
    step->team = &turn.team;
    turn.team.run(*step);
}
