#include "attention.h"

#include <cstddef>
#include <mutex>
#include <vector>

#include "cpu.h"
#include "team.h"
#include "vectors.h"

namespace scope {

const Attention& attention() {
#if defined(__x86_64__)
    if (instructions == AVX512) return attention_avx512;
    if (instructions == AVX2) return attention_avx2;
#endif
    return attention_plain;
}

const Vectors& vectors() {
#if defined(__x86_64__)
    if (instructions == AVX512) return vectors_avx512;
    if (instructions == AVX2) return vectors_avx2;
#endif
    return vectors_plain;
}

}  // namespace scope

using namespace scope;

void scope_attend(const scope_slots* layer, const scope_slots* exact, int lanes, const float* query, float scale,
                  float cap, const float* sinks, float* probabilities, float* out, int threads) {
    const int wide = padded(layer->head_dim), group = layer->group, packed = pieces_of(*layer);
    const int pieces = packed + (exact ? pieces_of(*exact) : 0);
    const size_t heads = (size_t)lanes * layer->kv_heads, part = (size_t)part_floats(*layer) * group;
    std::vector<float> rows(heads * group * wide), parts(heads * pieces * part);
    for (size_t row = 0; row < heads * group; row++)
        for (int i = 0; i < layer->head_dim; i++) rows[row * wide + i] = query[row * layer->head_dim + i] * scale;
    std::vector<std::vector<float>> scratch(threads, std::vector<float>(scratch_floats(*layer)));
    auto logits_of = [&](size_t head) { return probabilities ? probabilities + head * group * layer->slots : nullptr; };
    Turn turn(threads);
    Team& team = turn.team;
    team.run([&](int thread) {
        team.share((int)heads * pieces, [&](int at) {
            const size_t head = at / pieces;
            const int piece = at % pieces;
            const bool is_exact = piece >= packed;
            attention().piece(is_exact ? *exact : *layer, head, is_exact ? piece - packed : piece,
                              {&rows[head * group * wide], cap, is_exact ? nullptr : logits_of(head)}, &parts[at * part],
                              scratch[thread].data());
        });
        team.share((int)heads, [&](int head) {
            attention().merge(*layer, &parts[head * pieces * part], pieces, sinks ? sinks + head % layer->kv_heads * group : nullptr,
                              out + (size_t)head * group * layer->head_dim, logits_of(head));
        });
    });
}
