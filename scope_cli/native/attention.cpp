#include "attention.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu.h"
#include "team.h"
#include "vectors.h"

namespace scope {

const Attention& attention() { return SCOPE_IN_USE(attention); }

const Vectors& vectors() { return SCOPE_IN_USE(vectors); }

void Room::fit(const scope_slots& layer) {
    const size_t group = layer.group, blocks = code_blocks(layer);
    auto grow = [](auto& some, size_t count) {
        if (some.size() < count) some.resize(count);
    };
    grow(tile, (size_t)TILE * padded(layer.head_dim));
    grow(codes, TILE * 32 * blocks);
    grow(scales, 2 * blocks * TILE);
    grow(bias, TILE);
    grow(weights, group * TILE);
    grow(totals, group * blocks);
    for (auto* some : {&units, &weight_units, &least}) grow(*some, group);
    grow(asked, group * 32 * blocks);
    grow(numbers, group * TILE);
    grow(sums, group * TILE);
    grow(parts, group * part_floats(layer));
}

}  // namespace scope

using namespace scope;

void scope_attend(const scope_slots* layer, const scope_slots* exact, int lanes, const float* query, float scale,
                  float cap, const float* sinks, float* probabilities, float* out, int threads) {
    const int wide = padded(layer->head_dim), group = layer->group, packed = pieces_of(*layer);
    const int pieces = packed + (exact ? pieces_of(*exact) : 0);
    const Runs runs(pieces, lanes * layer->kv_heads, threads);
    const size_t heads = (size_t)lanes * layer->kv_heads, part = (size_t)part_floats(*layer) * group;
    std::vector<float> rows(heads * group * wide), parts(heads * pieces * part);
    for (size_t row = 0; row < heads * group; row++)
        for (int i = 0; i < layer->head_dim; i++) rows[row * wide + i] = query[row * layer->head_dim + i] * scale;
    std::vector<Room> rooms(threads);
    for (Room& room : rooms) room.fit(*layer);
    auto logits_of = [&](size_t head) { return probabilities ? probabilities + head * group * layer->slots : nullptr; };
    Turn turn(threads);
    turn.team.share((int)heads * runs.count, [&](int at, int thread) {
        const size_t head = at / runs.count;
        const int from = runs.begin(at % runs.count), to = runs.end(at % runs.count);
        const float* asked = &rows[head * group * wide];
        float* out = &parts[head * pieces * part];
        if (from < packed)
            attention().pieces(*layer, head, from, std::min(to, packed), {asked, cap, logits_of(head)}, out + from * part,
                               rooms[thread]);
        if (const int first = std::max(from, packed); first < to)
            attention().pieces(*exact, head, first - packed, to - packed, {asked, cap, nullptr}, out + first * part,
                               rooms[thread]);
    });
    turn.team.share((int)heads, [&](int head, int) {
        attention().merge(*layer, &parts[head * pieces * part], pieces, sinks ? sinks + head % layer->kv_heads * group : nullptr,
                          out + (size_t)head * group * layer->head_dim, logits_of(head));
    });
}
