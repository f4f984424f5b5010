// Arithmetic on rows over lanes.h: included once for each width of register.
#pragma once
#include <cstddef>

#include "codes.h"
#include "lanes.h"
#include "slots.h"
#include "vectors.h"

namespace scope {
namespace SCOPE_LANES {
namespace {

constexpr float SMALLEST_SCALE = 0x1p-14f;  // float16's smallest normal number

// f(whole vectors of the rows from i on), stored where the row still has numbers.
template <class F>
inline void each_vector(float* out, int count, F f) {
    for (int i = 0; i < count; i += WIDTH) {
        if (i + WIDTH <= count)
            store(out + i, f(i, WIDTH));
        else
            store_some(out + i, f(i, count - i), count - i);
    }
}

float root(const float* x, int count, float epsilon) {
    V squares = zero();
    for (int i = 0; i < count; i += WIDTH) {
        const V some = load_some(x + i, count - i);
        squares = fma(some, some, squares);
    }
    return 1.0f / __builtin_sqrtf(sum(squares) / (float)count + epsilon);
}

void scale(const float* x, float factor, const float* weight, float* out, int count) {
    each_vector(out, count, [&](int i, int left) {
        const V scaled = mul(load_some(x + i, left), all(factor));
        return weight ? mul(scaled, load_some(weight + i, left)) : scaled;
    });
}

void add(float* x, const float* y, const float* factor, int count) {
    each_vector(x, count, [&](int i, int left) {
        const V more = load_some(y + i, left);
        return add(load_some(x + i, left), factor ? mul(more, all(*factor)) : more);
    });
}

inline V silu(V x) { return divide(x, add(all(1.0f), exp(sub(zero(), x)))); }

inline V gelu_tanh(V x) {
    const V inner = mul(fma(mul(mul(x, x), x), all(0.044715f), x), all(0.7978845608f));
    return mul(mul(all(0.5f), x), add(all(1.0f), tanh(inner)));
}

void activate(int activation, float* gate, const float* up, int count) {
    each_vector(gate, count, [&](int i, int left) {
        const V x = load_some(gate + i, left);
        return mul(activation == SILU ? silu(x) : gelu_tanh(x), load_some(up + i, left));
    });
}

void cap(float* x, float most, int count) {
    each_vector(x, count, [&](int i, int left) {
        return mul(tanh(divide(load_some(x + i, left), all(most))), all(most));
    });
}

void rotate(float* x, const float* cosines, const float* sines, int half) {
    for (int i = 0; i < half; i += WIDTH) {
        const int left = half - i < WIDTH ? half - i : WIDTH;
        const V a = load_some(x + i, left), b = load_some(x + half + i, left);
        const V c = load_some(cosines + i, left), s = load_some(sines + i, left);
        store_some(x + i, sub(mul(a, c), mul(b, s)), left);
        store_some(x + half + i, add(mul(b, c), mul(a, s)), left);
    }
}

// The sums and differences of the numbers `apart`, four times: those that are 1, 2, 4 and 8 apart.
inline V turned(V x) {
    alignas(64) static const float signs[4][WIDTH] = {{1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
                                                      {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
                                                      {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
                                                      {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1}};
    for (int i = 0; i < 4; i++) x = fma(x, load(signs[i]), swapped(x, 1 << i));
    return x;
}

void turn(float* x, int head_dim) {
    const int block = head_dim & -head_dim;
    const float factor = 1.0f / __builtin_sqrtf((float)block);
    const auto in_halves = [&](int half, int each, const auto& use) {
        for (; half < block; half *= 2)
            for (int i = 0; i < head_dim; i += 2 * half)
                for (int j = i; j < i + half; j += each) use(x + j, x + j + half);
    };
    if (block < WIDTH) {
        in_halves(1, 1, [](float* at, float* further) {
            const float a = *at, b = *further;
            *at = a + b;
            *further = a - b;
        });
        for (int i = 0; i < head_dim; i++) x[i] *= factor;
        return;
    }
    for (int i = 0; i < head_dim; i += WIDTH) store(x + i, turned(load(x + i)));
    in_halves(WIDTH, WIDTH, [](float* at, float* further) {
        const V a = load(at), b = load(further);
        store(at, add(a, b));
        store(further, sub(a, b));
    });
    for (int i = 0; i < head_dim; i += WIDTH) store(x + i, mul(load(x + i), all(factor)));
}

inline float nearest(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }
inline float between(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

void store_8(const float* x, int8_t* codes, uint16_t* scales, int head_dim) {
    V largest = zero();
    for (int i = 0; i < head_dim; i += WIDTH) largest = larger(largest, load_some(x + i, head_dim - i));
    const float wanted = from_bits(largest_bits(largest)) / 127.0f;  // no number where there is one that is none
    *scales = half_of_float(wanted < SMALLEST_SCALE ? SMALLEST_SCALE : wanted);
    const V scale = all(float_of_half(*scales)), whole = all(0x1.8p23f);  // added, it leaves no place for a fraction
    for (int i = 0; i < head_dim; i += WIDTH) {
        const V code = sub(add(divide(load_some(x + i, head_dim - i), scale), whole), whole);
        float some[WIDTH];
        int8_t own[WIDTH];
        store(some, least(most(code, all(-127)), all(127)));
        for (int j = 0; j < WIDTH; j++) own[j] = (int8_t)(int)some[j];
        if (head_dim - i >= WIDTH)
            memcpy(codes + i, own, WIDTH);
        else
            memcpy(codes + i, own, (size_t)(head_dim - i));
    }
}

void store_4(const float* x, uint8_t* codes, uint16_t* scales, int head_dim) {
    const int half = head_dim / 2, groups = head_dim / 32;
    memset(codes, 0, (size_t)half);
    for (int g = 0; g < groups; g++) {
        const float* some = x + 32 * g;
        float least = some[0], most = some[0];
        for (int i = 1; i < 32; i++) {
            least = some[i] < least ? some[i] : least;
            most = some[i] > most ? some[i] : most;
        }
        scales[groups + g] = half_of_float(least);
        const float minimum = float_of_half(scales[groups + g]), wanted = (most - minimum) / 15.0f;
        scales[g] = half_of_float(wanted < SMALLEST_SCALE ? SMALLEST_SCALE : wanted);
        const float scale = float_of_half(scales[g]);
        for (int i = 0; i < 32; i++) {
            const float code = between(nearest((some[i] - minimum) / scale), 0, 15);
            const int at = 32 * g + i;
            codes[at % half] |= (uint8_t)((code == code ? (int)code : 0) << (at < half ? 0 : 4));
        }
    }
}

void store(const float* x, int format, void* rows, uint16_t* scales, long at, int head_dim) {
    const size_t first = (size_t)at * head_dim;
    if (format == SCOPE_FLOAT32)
        memcpy((float*)rows + first, x, (size_t)head_dim * sizeof(float));
    else if (format == SCOPE_BFLOAT16)
        for (int i = 0; i < head_dim; i++) ((uint16_t*)rows)[first + i] = bfloat_of_float(x[i]);
    else if (format == SCOPE_INT8)
        store_8(x, (int8_t*)rows + first, scales + at, head_dim);
    else
        store_4(x, (uint8_t*)rows + first / 2, scales + (size_t)at * 2 * (head_dim / 32), head_dim);
}

// What was stored, head_dim floats.
inline void load_slot(const void* rows, int format, const uint16_t* scales, long at, int head_dim, float* out) {
    const size_t first = (size_t)at * head_dim;
    const int half = head_dim / 2, groups = head_dim / 32;
    if (format == SCOPE_FLOAT32) {
        memcpy(out, (const float*)rows + first, (size_t)head_dim * sizeof(float));
    } else if (format == SCOPE_BFLOAT16) {
        for (int i = 0; i < head_dim; i++) out[i] = from_bfloat16(((const uint16_t*)rows)[first + i]);
    } else if (format == SCOPE_INT8) {
        const float scale = float_of_half(scales[at]);
        for (int i = 0; i < head_dim; i++) out[i] = ((const int8_t*)rows)[first + i] * scale;
    } else {
        const uint8_t* codes = (const uint8_t*)rows + first / 2;
        for (int g = 0; g < groups; g++) {
            const uint16_t* own = scales + (size_t)at * 2 * groups + g;
            const float scale = float_of_half(*own), least = float_of_half(own[groups]);
            for (int i = 32 * g; i < 32 * g + 32; i++)
                out[i] = (float)(i < half ? codes[i] & 15 : codes[i - half] >> 4) * scale + least;
        }
    }
}

inline V load_some(const uint16_t* bfloats, int count) {
    if (count >= WIDTH) return load(bfloats);
    uint16_t rest[WIDTH] = {};
    memcpy(rest, bfloats, (size_t)count * sizeof(uint16_t));
    return load(rest);
}

// SUMS rows of a matrix times Q rows of activations.
template <int Q, class Number>
inline void multiply_some(const Number* const* weights, int columns, const float* x, long x_stride, float (*out)[SUMS]) {
    V total[Q][SUMS];
    for (int q = 0; q < Q; q++)
        for (int s = 0; s < SUMS; s++) total[q][s] = zero();
    auto add_columns = [&](int i, int left) {
        V asked[Q];
        for (int q = 0; q < Q; q++) asked[q] = load_some(x + q * x_stride + i, left);
        for (int s = 0; s < SUMS; s++) {
            const V weight = load_some(weights[s] + i, left);
            for (int q = 0; q < Q; q++) total[q][s] = fma(weight, asked[q], total[q][s]);
        }
    };
    int i = 0;
    for (; i + WIDTH <= columns; i += WIDTH) add_columns(i, WIDTH);
    if (i < columns) add_columns(i, columns - i);
    for (int q = 0; q < Q; q++) sums(total[q], out[q]);
}

template <class Number>
inline void multiply_rows(const Number* weight, int columns, int count, const float* x, long x_stride, int rows,
                          float* out, long out_stride) {
    for (int first = 0; first < count; first += SUMS) {
        const Number* weights[SUMS];
        for (int s = 0; s < SUMS; s++) {
            const int row = first + s < count ? first + s : count - 1;  // the last one again, for nothing
            weights[s] = weight + (size_t)row * columns;
        }
        some_queries<QUERIES>(rows, [&](auto some, int n) {
            float products[some()][SUMS];
            multiply_some<some()>(weights, columns, x + n * x_stride, x_stride, products);
            for (int q = 0; q < some(); q++)
                for (int s = 0; s < SUMS && first + s < count; s++) out[(n + q) * out_stride + first + s] = products[q][s];
        });
    }
}

void multiply(const void* weight, int format, int columns, int count, const float* x, long x_stride, int rows,
              float* out, long out_stride) {
    if (format == SCOPE_FLOAT32)
        multiply_rows((const float*)weight, columns, count, x, x_stride, rows, out, out_stride);
    else
        multiply_rows((const uint16_t*)weight, columns, count, x, x_stride, rows, out, out_stride);
}

}  // namespace
}  // namespace SCOPE_LANES
}  // namespace scope
