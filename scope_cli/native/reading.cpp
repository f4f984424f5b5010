#include "reading.h"

#include <algorithm>
#include <vector>

#include "cpu.h"
#include "team.h"
#include "vectors.h"

using namespace scope;

static const Reading& reading() { return SCOPE_IN_USE(reading); }

void scope_store(const scope_stored* stored, int32_t threads) {
    const int pieces = (stored->tokens + KEYS - 1) / KEYS, head_dim = stored->head_dim;
    Turn turn(threads);
    turn.team.share(pieces * stored->kv_heads, [&](int at, int) {
        const int head = at % stored->kv_heads, first = at / stored->kv_heads * KEYS;
        std::vector<float> row(head_dim);
        const auto put = [&](const float* rows, const scope_held& into) {
            for (int token = first; token < std::min(first + KEYS, stored->tokens); token++) {
                const float* given = rows + head * stored->new_head + token * stored->new_token;
                std::copy(given, given + head_dim, row.begin());
                if (into.turned) vectors().turn(row.data(), head_dim);
                vectors().store(row.data(), into.format, into.numbers, into.scales, head * into.head + stored->start + token, head_dim);
            }
        };
        put(stored->new_keys, stored->keys);
        put(stored->new_values, stored->values);
    });
}

int64_t scope_read_tiles(const scope_chunk* chunk) {
    const Tiles tiles = {*chunk};
    return chunk->kv_heads * tiles.count() * (int64_t)tiles.floats();
}

void scope_read(const scope_chunk* chunk, int32_t threads) {
    const int each = std::max(1, ROWS / chunk->group), pieces = (chunk->tokens + each - 1) / each;
    const int oldest = std::max(0, chunk->seen - chunk->tokens - chunk->window + 1) / KEYS;
    Turn turn(threads);
    turn.team.share((Tiles{*chunk}.count() - oldest) * chunk->kv_heads, [&](int at, int) {
        reading().round(*chunk, at % chunk->kv_heads, oldest + at / chunk->kv_heads);
    });
    turn.team.share(pieces * chunk->kv_heads, [&](int at, int) {
        const int first = (pieces - 1 - at / chunk->kv_heads) * each;  // the last ones see most
        reading().attend(*chunk, at % chunk->kv_heads, first, std::min(first + each, chunk->tokens));
    });
}
