#include "step.h"

#include <cstring>

#include "step_state.h"
#include "vectors.h"

constexpr int HEAD_PIECE = 64;  // groups of rows, at most: who was interrupted holds up no more

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
    size_t most = 0, query = 0, asked = 0;
    for (int i = 0; i < model.layer_count; i++) {
        const scope_slots& slots = model.layers[i].slots;
        most = std::max(most, (size_t)rows * slots.kv_heads * all_pieces(model.layers[i]) * slots.group * part_floats(slots));
        query = std::max(query, (size_t)slots.group * padded(slots.head_dim));
        if (model.layers[i].attention) asked = std::max(asked, (size_t)model.lanes * slots.kv_heads * slots.group * slots.slots);
    }
    if (told.size() < asked) told.resize(asked);
    if (parts.size() < most) parts.resize(most);
    while ((int)own.size() < threads) own.emplace_back(model.lanes, model.hidden, heads_wide);
    for (Own& one : own) {
        for (int i = 0; i < model.layer_count; i++) one.room.fit(model.layers[i].slots);
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
