// Arithmetic on one row of numbers, in the instructions in use; the same bits in all of them.
#pragma once
#include <cstdint>

namespace scope {

enum Activation : int32_t { SILU, GELU_TANH };

struct Vectors {
    // 1 / sqrt(mean of squares + epsilon)
    float (*root)(const float* x, int count, float epsilon);
    // out = x * factor * weight; weight null: 1
    void (*scale)(const float* x, float factor, const float* weight, float* out, int count);
    // x += factor * y; factor null: 1
    void (*add)(float* x, const float* y, const float* factor, int count);
    // gate = activation(gate) * up
    void (*activate)(int activation, float* gate, const float* up, int count);
    // x = cap * tanh(x / cap)
    void (*cap)(float* x, float cap, int count);
    // Turns the pairs (i, i + half) by angles whose cosines and sines are given
    void (*rotate)(float* x, const float* cosines, const float* sines, int half);
    // x @ H, Sylvester's Hadamard matrix over sqrt(n); blocks of the largest power of two that divides head_dim
    void (*turn)(float* x, int head_dim);
    // A token's key or value into slot `at` (counted over lanes and heads), in a scope_format
    void (*store)(const float* x, int format, void* rows, uint16_t* scales, long at, int head_dim);
    // out[n, i] = x[n] . weight[i] for `count` rows of a matrix as it is, [rows, columns] in float32 or bfloat16
    void (*multiply)(const void* weight, int format, int columns, int count, const float* x, long x_stride, int rows,
                     float* out, long out_stride);
};

extern const Vectors vectors_plain, vectors_avx2, vectors_avx512;
const Vectors& vectors();

}  // namespace scope
