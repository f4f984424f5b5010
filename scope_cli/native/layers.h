// What a decoder's layer does with a token: of a step, or of a prompt.
#pragma once
#include "step.h"

namespace scope {

// Cosines and sines of a position, of the first `half` of a head's numbers; half 0: nothing is turned.
struct Turns {
    const float *cosines, *sines;
    int half;
};

// In double precision, so that they are the same everywhere.
void find_turns(const scope_rotation& rotation, int64_t position, float* cosines, float* sines);

// A head's query or key out of its product: normed (norm null: not), turned by its position. `out` may be `projected`.
void place_head(const float* projected, const float* norm, float root, const Turns& turns, int head_dim, float* out);

// Rows of the groups from `first` to before `last`, bias included, as scope_multiply.
void multiply(const scope_linear& linear, const Rows& x, float* out, int64_t stride, int first, int last);

// The same of the model's head: logits, [rows, vocabulary].
void multiply_head(const scope_model& model, const Rows& x, float* logits, int first, int last);

// x += m * after(changed), which it may write over.
void take_up(const scope_model& model, const float* after, float* changed, float* x);

// What a product of the layer multiplies: before(x).
void norm(const scope_model& model, const float* before, const float* x, float* out);

}  // namespace scope
