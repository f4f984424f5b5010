// A decoder's step: one token of each lane that runs, through all layers, in one call.
//
// The tables below say how a decoder is put together and where everything lies. They point to the weights and to the
// cache's own tensors, which the caller keeps; a step writes slots, positions and remembered queries as the cache's
// own step does, and knows nothing of policies. A layer is
//
//   x += m * after_attention(output(attention(query, key, value of before_attention(x))))
//   x += m * after_mlp(down(activation(gate) * up of before_mlp(x)))
//
// where each norm may be missing. All layers have the same heads and widths; what they hold may differ.
#pragma once
#include "products.h"
#include "slots.h"

extern "C" {

// The kind of a weight that is not packed: [rows, columns] as the model has it, plus its scope_format.
enum { SCOPE_PLAIN = 16 };

struct scope_linear {
    scope::Weight weight;
    const float* bias;  // [rows] or null
};

// Angles of the rotation of queries and keys: position * frequencies; cosines and sines times `factor`.
struct scope_rotation {
    const float* frequencies;  // [half]
    int32_t half;              // 2 * half of a head's numbers are turned, number i with i + half
    float factor;
};

struct scope_layer {
    const float *before_attention, *after_attention, *before_mlp, *after_mlp;  // norms' weights, [hidden], or null
    const float *query_norm, *key_norm;  // [head_dim] for each head, [heads * head_dim] for all together, or null
    scope_linear query, key, value, output, gate, up, down;
    scope_slots slots;
    scope_slots exact;        // the newest tokens as they are, position mod `slots`; slots 0: there are none
    int32_t norms_all_heads;  // as one row
    int32_t rotation;         // which of the model's; negative: none
    int32_t activation;       // scope::Activation
    float scale, cap;         // of logits; cap 0: none
    const float* sinks;       // [heads] or null
    // What is written beside keys and values.
    int32_t* positions;           // [lanes, kv_heads, slots]
    int32_t* exact_slots;         // [lanes, kv_heads, exact], where the packed selves of exact tokens lie
    void* queries;                // [lanes, heads, ring, head_dim]; null: not remembered
    const int32_t* vacant;        // [lanes, kv_heads, evictable], free slots from `held` on; null: position mod window
    float* const* memos;          // [lanes, kv_heads, slots] each
    float* attention;             // [lanes, kv_heads, slots], this step's, a mean over the group; null: nobody asks
    int32_t plain_format;         // scope_format of queries
    int32_t ring, evictable, window, memo_count;
};

struct scope_model {
    scope_layer* layers;
    const scope_rotation* rotations;
    scope_linear head;
    const float* last_norm;
    int32_t layer_count, rotation_count, lanes, hidden;
    float epsilon;       // of all norms
    float residual;      // what a layer's outputs are multiplied by
    float logit_factor;  // what logits are multiplied by, before
    float logit_cap;     // they are capped; 0: not
};

// What a step needs beside the tables: made for a model, whose tables it reads at every step.
struct scope_step;
scope_step* scope_step_new(const scope_model* model);
void scope_step_free(scope_step* step);

// Seconds of all its runs in which tokens were written and attention was computed.
double scope_step_attention_s(const scope_step* step);

// embedded: [lanes, hidden], the tokens' rows of the embedding, times whatever the model multiplies them by
// running, positions, held: [lanes]; lanes that do not run are left alone
// logits: [lanes that run, vocabulary], in the order of their lanes
void scope_step_run(scope_step* step, const float* embedded, const int64_t* running, const int64_t* positions,
                    const int64_t* held, float* logits, int32_t threads);
}
