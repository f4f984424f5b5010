#include "prompt.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "layers.h"
#include "team.h"
#include "vectors.h"

using namespace scope;

namespace {

constexpr int TOKENS = 64;   // of a piece: its activations stay in the second cache
constexpr int STRIPE = 128;  // columns between the MLP's halves that are computed at once: whole blocks
constexpr int HEAD_PIECE = 64;  // groups of rows

// What a thread has to itself: a piece's tokens on their way.
struct Own {
    std::vector<Block> kept;                       // [TOKENS, blocks]: what keys and values are made of
    std::vector<ByteBlock> into, inside;           // the same of attention's output or a norm's; of the MLP's half
    std::vector<float> normed, changed, gate, up;  // [hidden], [TOKENS, hidden], [TOKENS, STRIPE] twice
};

// Some groups of a linear layer's rows.
scope_linear part_of(const scope_linear& linear, int first, int last) {
    scope_linear part = linear;
    part.weight.data += (size_t)first * blocks_of(linear.weight.columns) * block_bytes(linear.weight.kind);
    part.weight.rows = std::min(last * GROUP, linear.weight.rows) - first * GROUP;
    if (part.bias) part.bias += first * GROUP;
    return part;
}

void multiply_all(const scope_linear& linear, const Rows& x, float* out, int64_t stride) {
    multiply(linear, x, out, stride, 0, groups_of(linear.weight.rows));
}

}  // namespace

struct scope_prompt {
    const scope_model& model;
    const scope_slots& sizes;
    const int heads_wide, keys_wide, inner;  // heads * head_dim, kv_heads * head_dim, columns between the MLP's halves
    int tokens = 0, turn_room = 0;
    std::vector<float> stream;  // [tokens, hidden]
    std::vector<float> turns;   // [tokens, rotations, 2, turn_room]
    std::vector<float> projected, attended;  // [tokens, heads + 2 * kv_heads, head_dim], [tokens, heads, head_dim]
    std::vector<Own> own;       // by thread

    explicit scope_prompt(const scope_model& model)
        : model(model), sizes(model.layers[0].slots), heads_wide(sizes.kv_heads * sizes.group * sizes.head_dim),
          keys_wide(sizes.kv_heads * sizes.head_dim), inner(model.layers[0].gate.weight.rows) {
        for (int i = 0; i < model.rotation_count; i++) turn_room = std::max(turn_room, model.rotations[i].half);
    }

    float* turns_of(int token, int rotation) {
        return &turns[((size_t)token * model.rotation_count + rotation) * 2 * turn_room];
    }

    // piece(first token, how many, what the thread has to itself), for the last `asked` tokens
    template <class Piece>
    void share(int asked, int threads, const Piece& piece) {
        while ((int)own.size() < threads) own.push_back(new_own());
        Turn turn(threads);
        const int rounds = (asked + TOKENS * threads - 1) / (TOKENS * threads), pieces = rounds * threads;
        const int each = (asked + pieces - 1) / pieces;  // as many for every thread
        turn.team.share((asked + each - 1) / each, [&](int at, int thread) {
            piece(tokens - asked + at * each, std::min(each, asked - at * each), own[thread]);
        });
    }

    Own new_own() const {
        Own made;
        made.kept.resize((size_t)TOKENS * blocks_of(model.hidden));
        made.into.resize((size_t)TOKENS * blocks_of(std::max(model.hidden, heads_wide)));
        made.inside.resize((size_t)TOKENS * blocks_of(inner));
        made.normed.resize(model.hidden);
        made.changed.resize((size_t)TOKENS * model.hidden);
        made.gate.resize(TOKENS * STRIPE);
        made.up.resize(TOKENS * STRIPE);
        return made;
    }

    const float* norm_and_round(const float* before, int token, int n, Own& mine) {
        float* row = mine.normed.data();
        norm(model, before, &stream[(size_t)token * model.hidden], row);
        scope_round_to_bytes(row, model.hidden, 1, model.hidden, &mine.into[(size_t)n * blocks_of(model.hidden)]);
        return row;
    }

    void begin(const float* embedded, const int64_t* positions, int threads) {
        stream.assign(embedded, embedded + (size_t)tokens * model.hidden);
        turns.resize((size_t)tokens * model.rotation_count * 2 * turn_room);
        share(tokens, threads, [&](int first, int count, Own&) {
            for (int token = first; token < first + count; token++)
                for (int i = 0; i < model.rotation_count; i++)
                    find_turns(model.rotations[i], positions[token], turns_of(token, i), turns_of(token, i) + turn_room);
        });
    }

    void project(const scope_layer& layer, float* out, int threads) {
        const int stride = heads_wide + 2 * keys_wide;
        share(tokens, threads, [&](int first, int count, Own& mine) {
            for (int n = 0; n < count; n++) {
                const float* row = norm_and_round(layer.before_attention, first + n, n, mine);
                scope_round(row, model.hidden, 1, model.hidden, &mine.kept[(size_t)n * blocks_of(model.hidden)]);
            }
            const Rows asked = {count, nullptr, nullptr, 0, mine.into.data()}, x = {count, mine.kept.data(), nullptr, 0};
            float* rows = out + (size_t)first * stride;
            multiply_all(layer.query, asked, rows, stride);
            multiply_all(layer.key, x, rows + heads_wide, stride);
            multiply_all(layer.value, x, rows + heads_wide + keys_wide, stride);
            for (int n = 0; n < count; n++) {
                place_heads(layer, layer.query_norm, first + n, rows + n * stride, sizes.kv_heads * sizes.group);
                place_heads(layer, layer.key_norm, first + n, rows + n * stride + heads_wide, sizes.kv_heads);
            }
        });
    }

    void place_heads(const scope_layer& layer, const float* norm, int token, float* all, int heads) {
        const int head_dim = sizes.head_dim;
        const float root_of_all = norm && layer.norms_all_heads ? vectors().root(all, heads * head_dim, model.epsilon) : 0;
        Turns by = {};
        if (layer.rotation >= 0) {
            by.cosines = turns_of(token, layer.rotation);
            by.sines = by.cosines + turn_room;
            by.half = model.rotations[layer.rotation].half;
        }
        for (int h = 0; h < heads; h++) {
            float* head = all + h * head_dim;
            if (norm && layer.norms_all_heads)
                place_head(head, norm + h * head_dim, root_of_all, by, head_dim, head);
            else
                place_head(head, norm, norm ? vectors().root(head, head_dim, model.epsilon) : 0, by, head_dim, head);
        }
    }

    void mix(const scope_layer& layer, const float* attended, int asked, int threads) {
        const int hidden = model.hidden;
        share(asked, threads, [&](int first, int count, Own& mine) {
            const auto take = [&](const float* after) {
                for (int n = 0; n < count; n++)
                    take_up(model, after, &mine.changed[(size_t)n * hidden], &stream[(size_t)(first + n) * hidden]);
            };
            const float* rows = attended + (size_t)(first - tokens + asked) * heads_wide;
            scope_round_to_bytes(rows, heads_wide, count, heads_wide, mine.into.data());
            const Rows x = {count, nullptr, nullptr, 0, mine.into.data()};
            const Rows inside = {count, nullptr, nullptr, 0, mine.inside.data()};
            multiply_all(layer.output, x, mine.changed.data(), hidden);
            take(layer.after_attention);
            for (int n = 0; n < count; n++) norm_and_round(layer.before_mlp, first + n, n, mine);
            for (int begin = 0; begin < inner; begin += STRIPE) halve(layer, x, begin, mine);
            multiply_all(layer.down, inside, mine.changed.data(), hidden);
            take(layer.after_mlp);
        });
    }

    // A stripe of the MLP's first half, rounded for the second.
    void halve(const scope_layer& layer, const Rows& x, int begin, Own& mine) {
        const int count = std::min(STRIPE, inner - begin), first = begin / GROUP, last = first + groups_of(count);
        multiply_all(part_of(layer.gate, first, last), x, mine.gate.data(), STRIPE);
        multiply_all(part_of(layer.up, first, last), x, mine.up.data(), STRIPE);
        for (int n = 0; n < x.rows; n++) {
            float* row = &mine.gate[n * STRIPE];
            vectors().activate(layer.activation, row, &mine.up[n * STRIPE], count);
            scope_round_to_bytes(row, STRIPE, 1, count, &mine.inside[(size_t)n * blocks_of(inner) + begin / BLOCK]);
        }
    }

    void read(const scope_lane_layer* layers, int start, int kept, float* tiles, int threads) {
        const int head_dim = sizes.head_dim, stride = heads_wide + 2 * keys_wide, seen = start + tokens;
        projected.resize((size_t)tokens * stride);
        attended.resize((size_t)tokens * heads_wide);
        const auto row = [&](int token) { return &projected[(size_t)token * stride]; };
        for (int i = 0; i < model.layer_count; i++) {
            const scope_layer& layer = model.layers[i];
            const scope_lane_layer& own = layers[i];
            project(layer, row(0), threads);
            const float* keys = row(0) + heads_wide;
            const scope_stored stored = {keys, keys + keys_wide, head_dim, stride, own.keys, own.values,
                                         sizes.kv_heads, head_dim, tokens, start};
            scope_store(&stored, threads);
            const int asked = i + 1 < model.layer_count ? tokens : 1;  // the last one gives only the logits
            const scope_chunk chunk = {row(tokens - asked), head_dim, stride, attended.data(), own.keys, own.values,
                                       sizes.kv_heads, sizes.group, head_dim, asked, seen, seen, layer.scale, tiles};
            scope_read(&chunk, threads);
            mix(layer, attended.data(), asked, threads);
            for (int head = 0; head < sizes.kv_heads * sizes.group; head++)
                for (int n = 0; n < kept; n++)
                    std::copy_n(row(tokens - kept + n) + head * head_dim, head_dim, own.queries + (head * kept + n) * head_dim);
        }
    }

    void logits(float* out, int threads) {
        std::vector<float> normed(model.hidden);
        std::vector<Block> blocks(blocks_of(model.hidden));
        Turn turn(threads);
        const int groups = groups_of(model.head.weight.rows);
        turn.team.share(1, [&](int, int) {
            norm(model, model.last_norm, &stream[(size_t)(tokens - 1) * model.hidden], normed.data());
            scope_round(normed.data(), model.hidden, 1, model.hidden, blocks.data());
        });
        const Rows x = {1, blocks.data(), normed.data(), model.hidden};
        turn.team.share((groups + HEAD_PIECE - 1) / HEAD_PIECE, [&](int at, int) {
            multiply_head(model, x, out, at * HEAD_PIECE, std::min((at + 1) * HEAD_PIECE, groups));
        });
    }
};

scope_prompt* scope_prompt_new(const scope_model* model) { return new scope_prompt(*model); }
void scope_prompt_free(scope_prompt* prompt) { delete prompt; }

void scope_prompt_begin(scope_prompt* prompt, const float* embedded, const int64_t* positions, int32_t tokens,
                        int32_t threads) {
    prompt->tokens = tokens;
    prompt->begin(embedded, positions, threads);
}

void scope_prompt_project(scope_prompt* prompt, int32_t layer, float* out, int32_t threads) {
    prompt->project(prompt->model.layers[layer], out, threads);
}

void scope_prompt_mix(scope_prompt* prompt, int32_t layer, const float* attended, int32_t asked,
                      int32_t threads) {
    prompt->mix(prompt->model.layers[layer], attended, asked, threads);
}

void scope_prompt_read(scope_prompt* prompt, const scope_lane_layer* layers, int32_t start, int32_t kept, float* tiles,
                       int32_t threads) {
    prompt->read(layers, start, kept, tiles, threads);
}

void scope_prompt_logits(scope_prompt* prompt, float* logits, int32_t threads) { prompt->logits(logits, threads); }
