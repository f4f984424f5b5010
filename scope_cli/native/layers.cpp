#include "layers.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "vectors.h"

namespace scope {

void find_turns(const scope_rotation& rotation, int64_t position, float* cosines, float* sines) {
    for (int i = 0; i < rotation.half; i++) {
        const float angle = (float)position * rotation.frequencies[i];
        cosines[i] = (float)cos((double)angle) * rotation.factor;
        sines[i] = (float)sin((double)angle) * rotation.factor;
    }
}

void place_head(const float* projected, const float* norm, float root, const Turns& turns, int head_dim, float* out) {
    if (norm)
        vectors().scale(projected, root, norm, out, head_dim);
    else if (out != projected)
        memcpy(out, projected, head_dim * sizeof(float));
    if (turns.half) vectors().rotate(out, turns.cosines, turns.sines, turns.half);
}

void multiply(const scope_linear& linear, const Rows& x, float* out, int64_t stride, int first, int last) {
    const int end = std::min(last * GROUP, linear.weight.rows), begin = first * GROUP;
    const Weight& weight = linear.weight;
    if (weight.kind >= SCOPE_PLAIN) {
        const int format = weight.kind - SCOPE_PLAIN;
        const size_t row_bytes = (size_t)weight.columns * (format == SCOPE_FLOAT32 ? 4 : 2);
        vectors().multiply(weight.data + begin * row_bytes, format, weight.columns, end - begin, x.values, x.stride, x.rows,
                           out + begin, stride);
    } else {
        scope_multiply(&weight, &x, out, stride, first, last);
    }
    if (linear.bias)
        for (int n = 0; n < x.rows; n++) vectors().add(out + n * stride + begin, linear.bias + begin, nullptr, end - begin);
}

void multiply_head(const scope_model& model, const Rows& x, float* logits, int first, int last) {
    const int vocabulary = model.head.weight.rows, begin = first * GROUP;
    const int count = std::min(last * GROUP, vocabulary) - begin;
    multiply(model.head, x, logits, vocabulary, first, last);
    for (int n = 0; n < x.rows; n++) {
        float* row = logits + (size_t)n * vocabulary + begin;
        if (model.logit_factor != 1) vectors().scale(row, model.logit_factor, nullptr, row, count);
        if (model.logit_cap > 0) vectors().cap(row, model.logit_cap, count);
    }
}

void take_up(const scope_model& model, const float* after, float* changed, float* x) {
    if (after) vectors().scale(changed, vectors().root(changed, model.hidden, model.epsilon), after, changed, model.hidden);
    vectors().add(x, changed, model.residual == 1 ? nullptr : &model.residual, model.hidden);
}

void norm(const scope_model& model, const float* before, const float* x, float* out) {
    if (before)
        vectors().scale(x, vectors().root(x, model.hidden, model.epsilon), before, out, model.hidden);
    else
        memcpy(out, x, model.hidden * sizeof(float));
}

}  // namespace scope
