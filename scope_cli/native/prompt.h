// A chunk of a prompt through a decoder whose layers' weights are all packed: all layers in one call where their slots hold
// a token where its position says; else two calls a layer, and between them the caller stores keys and values and attends
// (reading.h), as its cache wants it.
//
// Activations are rounded to 8 bits, but those that keys and values are made of to 16, as a step's are: what is kept
// of a prompt is where rounding is felt (docs/results/performance.md). A thread takes some tokens through all that
// happens between two attentions. A token gets the same bits beside any
// others, from any number of threads, with any instructions.
#pragma once
#include "reading.h"
#include "step.h"

extern "C" {

// Made for a model, of whose slots only the sizes are read.
struct scope_prompt;
scope_prompt* scope_prompt_new(const scope_model* model);
void scope_prompt_free(scope_prompt* prompt);

// The chunk's tokens. embedded: [tokens, hidden], as in scope_step_run; positions: [tokens]
void scope_prompt_begin(scope_prompt* prompt, const float* embedded, const int64_t* positions, int32_t tokens,
                        int32_t threads);

// Into attention: each token's queries, keys and values, normed and turned; out: [tokens, heads + 2 * kv_heads, head_dim]
void scope_prompt_project(scope_prompt* prompt, int32_t layer, float* out, int32_t threads);

// Out of attention, and through the rest of the layer: the last `asked` tokens; behind the last layer nothing is wanted
// of the others. attended: [asked, heads, head_dim]
void scope_prompt_mix(scope_prompt* prompt, int32_t layer, const float* attended, int32_t asked, int32_t threads);

// A layer's slots of the lane that is read, and room for queries as they were projected.
struct scope_lane_layer {
    scope_held keys, values;
    float* queries;  // [heads, kept, head_dim]
};

// All layers, whose chunk begins at position `start`; of each the last `kept` queries are kept. tiles: as in scope_chunk
void scope_prompt_read(scope_prompt* prompt, const scope_lane_layer* layers, int32_t start, int32_t kept, float* tiles,
                       int32_t threads);

// Of the last token. logits: [vocabulary]
void scope_prompt_logits(scope_prompt* prompt, float* logits, int32_t threads);
}
