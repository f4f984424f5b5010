#include "reading.h"

#include <algorithm>

#include "cpu.h"
#include "team.h"

using namespace scope;

static const Reading& reading() {
#if defined(__x86_64__)
    if (instructions == AVX512) return reading_avx512;
    if (instructions == AVX2) return reading_avx2;
#endif
    return reading_plain;
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
