// The plain definition of the products: what every other one has to equal, bit by bit.
#include <cmath>

#include "numbers.h"
#include "products_kinds.h"
#include "rounding.h"

namespace scope {

// Where a block's activation `column` lies in `numbers`.
static inline int place_of(const Block&, int column) {
    const int swapped = (column & 1) << 1 | (column >> 1 & 1);
    return column % 16 / 4 * 8 + column / 16 * 4 + swapped;
}
static inline int place_of(const ByteBlock&, int column) { return column; }

template <class Any>
static void round_block(const float* values, int count, Any& block) {
    uint32_t most = 0;
    for (int i = 0; i < count; i++) {
        const uint32_t bits = to_bits(values[i]) & 0x7fffffff;
        if (bits > most) most = bits;
    }
    const Rounding rounding(most, most_of(&block));
    int32_t sum = 0;
    for (int i = 0; i < BLOCK; i++) {
        const int32_t number = rounding.some && i < count ? (int32_t)nearbyintf(values[i] * rounding.steps) : 0;
        block.numbers[place_of(block, i)] = number;
        sum += number;
    }
    rounding.finish(block, sum);
}

template <class Any>
static void round_row(const float* values, int columns, Any* blocks) {
    for (int b = 0; b < blocks_of(columns); b++) {
        const int left = columns - b * BLOCK;
        round_block(values + b * BLOCK, left < BLOCK ? left : BLOCK, blocks[b]);
    }
}

template <class Any>
static inline float add_block(float sum, int kind, const uint8_t* block, int row, const Any& x) {
    int32_t products = kind == INT8 ? x.less_128 : 0;
    for (int i = 0; i < BLOCK; i++) products += code(block, kind, row, i) * x.numbers[place_of(x, i)];
    const uint8_t* scales = block + code_bytes(kind) + 2 * row;
    sum = fmaf((float)products, from_float16(two_bytes(scales)) * x.scale, sum);
    return kind == INT4 ? fmaf(from_float16(two_bytes(scales + 16)), x.total, sum) : sum;
}

// One number of the result: row `row` of a group, times one row of activations.
template <class Any>
static float product(const Weight& weight, const uint8_t* group, int row, const Any* x) {
    float sum = 0;
    for (int b = 0; b < blocks_of(weight.columns); b++)
        sum = add_block(sum, weight.kind, group + b * block_bytes(weight.kind), row, x[b]);
    return sum;
}

static void multiply(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    const int64_t blocks = blocks_of(weight.columns);
    for (int g = first; g < last; g++) {
        const uint8_t* group = weight.data + g * blocks * block_bytes(weight.kind);
        for (int row = 0; row < GROUP && g * GROUP + row < weight.rows; row++)
            for (int n = 0; n < x.rows; n++)
                out[n * out_stride + g * GROUP + row] = x.bytes ? product(weight, group, row, x.bytes + n * blocks)
                                                                : product(weight, group, row, x.blocks + n * blocks);
    }
}

const Products products_plain = {round_row<Block>, round_row<ByteBlock>, multiply};

}  // namespace scope
