// A step's attention: the token into its slots, then the queries over all of them.
#include <cstring>

#include "step_state.h"
#include "vectors.h"

namespace {

// `at` is counted over lanes and heads.
void show(const scope_slots& slots, size_t at, bool visible) {
    const bool wide = slots.bias_format == SCOPE_FLOAT32;
    const uint32_t bits = visible ? 0 : wide ? 0xff800000 : 0xff80;  // 0 or -inf
    memcpy((char*)slots.bias + at * (wide ? 4 : 2), &bits, wide ? 4 : 2);
}

}  // namespace

// All that is written beside keys and values, before anything is read: who attends to one piece of a head's slots
// finds in the others what stays there. A token's packed self is not seen as long as it is among the exact ones.
void scope_step::take_slots(int at) {
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
}

long scope_step::slot_of(const scope_layer& layer, int row, int head) const {
    const int lane = lane_of[row];
    if (!layer.vacant) return positions[lane] % layer.window;
    return layer.vacant[((size_t)lane * layer.slots.kv_heads + head) * layer.evictable + held[lane]];
}

void scope_step::attend(const scope_layer& layer, int at, Own& mine) {
    const Runs runs = this->runs(layer);
    const int one = at / runs.count, row = one / layer.slots.kv_heads, head = one % layer.slots.kv_heads;
    const int from = runs.begin(at % runs.count), to = runs.end(at % runs.count);
    attend_pieces(layer, row, head, from, to, mine);
    auto& done = pieces_done[one];
    if (done.fetch_add(to - from, std::memory_order_acq_rel) + to - from < runs.pieces) return;
    done.store(0, std::memory_order_relaxed);
    finish_head(layer, row, head);
}

Turns scope_step::turns_by(const scope_layer& layer, int row) {
    if (layer.rotation < 0) return {};
    const float* cosines = turns_of(row, layer.rotation);
    return {cosines, cosines + turn_room, model.rotations[layer.rotation].half};
}

// A run of a head's pieces; a token is written by whoever has the piece with its slot.
void scope_step::attend_pieces(const scope_layer& layer, int row, int head, int from, int to, Own& mine) {
    const scope_slots &slots = layer.slots, &exact = layer.exact;
    const int packed = pieces_of(slots), first = std::max(from, packed), lane = lane_of[row];
    const long slot = slot_of(layer, row, head), held_head = (long)lane * slots.kv_heads + head;
    const long asked = ((&layer - model.layers) * rows + row) * slots.kv_heads + head;
    const bool writes = from <= slot / PIECE && slot / PIECE < std::min(to, packed);
    if (writes) write_token(layer, slots, row, head, slot, mine);
    if (first < to) {
        const long place = positions[lane] % exact.slots;
        if (from <= packed + place / PIECE && packed + place / PIECE < to) write_token(layer, exact, row, head, place, mine);
    }
    if (asked != mine.asked || (writes && layer.queries)) ask(layer, row, head, writes, mine);
    mine.asked = asked;
    const size_t stride = (size_t)slots.group * part_floats(slots);
    float* out = &parts[((size_t)row * slots.kv_heads + head) * all_pieces(layer) * stride];
    float* logits = layer.attention ? &told[(size_t)held_head * slots.group * slots.slots] : nullptr;
    const Query query = {mine.query.data(), layer.cap, logits}, quiet = {mine.query.data(), layer.cap, nullptr};
    if (from < packed) attention().pieces(slots, held_head, from, std::min(to, packed), query, out + from * stride, mine.room);
    if (first < to) attention().pieces(exact, held_head, first - packed, to - packed, quiet, out + first * stride, mine.room);
}

// A head's queries, normed, rotated, turned and scaled, into `mine`; remembered in the ring where that is told.
void scope_step::ask(const scope_layer& layer, int row, int head, bool remember, Own& mine) {
    const scope_slots& slots = layer.slots;
    const int head_dim = slots.head_dim, group = slots.group, wide = padded(head_dim), lane = lane_of[row];
    const float* queries = &projected[(size_t)row * (heads_wide + 2 * keys_wide)];
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
        if (remember && layer.queries) {
            const long at = ((long)lane * slots.kv_heads * group + number) * layer.ring + positions[lane] % layer.ring;
            vectors().store(query, layer.plain_format, layer.queries, nullptr, at, head_dim);
        }
        if (slots.turns_keys) vectors().turn(query, head_dim);
        vectors().scale(query, layer.scale, nullptr, query, head_dim);
        memset(query + head_dim, 0, (size_t)(wide - head_dim) * sizeof(float));
    }
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
    float* out = attended.row(row) + (size_t)head * group * head_dim;
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
