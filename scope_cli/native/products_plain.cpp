// The plain definition of the products: what every other one has to equal, bit by bit.
#include <cmath>

#include "numbers.h"
#include "products_kinds.h"
#include "rounding.h"

namespace scope {

static void round_block(const float* values, int count, int planes, Block& block) {
    uint32_t most = 0;
    for (int i = 0; i < count; i++) {
        const uint32_t bits = to_bits(values[i]) & 0x7fffffff;
        if (bits > most) most = bits;
    }
    const Rounding rounding(most, planes);
    int32_t sum = 0;
    for (int i = 0; i < BLOCK; i++) {
        const int32_t number = rounding.some && i < count ? (int32_t)nearbyintf(values[i] * rounding.steps) : 0;
        const int32_t high = planes == 2 ? (number + 128) >> 8 : number;
        const int32_t low = planes == 2 ? number - high * 256 : 0;
        block.high[i] = (int8_t)high;
        block.low[i] = (int8_t)low;
        block.whole[i] = (int16_t)(256 * high + low);
        sum += block.whole[i];
    }
    rounding.finish(block, sum);
}

static void round_row(const float* values, int columns, int planes, Block* blocks) {
    for (int b = 0; b < blocks_of(columns); b++) {
        const int left = columns - b * BLOCK;
        round_block(values + b * BLOCK, left < BLOCK ? left : BLOCK, planes, blocks[b]);
    }
}

static inline float add_int4(float sum, const uint8_t* block, int row, const Block& x) {
    int32_t products = 0;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const uint8_t pair = block[32 * i + 4 * row + j];
            products += (pair & 15) * x.whole[4 * i + j] + (pair >> 4) * x.whole[16 + 4 * i + j];
        }
    const float scale = from_float16(two_bytes(block + 128 + 2 * row));
    const float minimum = from_float16(two_bytes(block + 144 + 2 * row));
    return fmaf(minimum, x.total, fmaf((float)products, scale * x.scale, sum));
}

static inline float add_int8(float sum, const uint8_t* block, int row, const Block& x) {
    int32_t products = 0;
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) products += (block[32 * i + 4 * row + j] - 128) * x.whole[4 * i + j];
    const float scale = from_float16(two_bytes(block + 256 + 2 * row));
    return fmaf((float)products, scale * x.scale, sum);
}

static inline float plain_value(const uint8_t* block, int kind, int row, int column) {
    const int at = column * GROUP + row;
    return kind == BFLOAT16 ? from_bfloat16(two_bytes(block + 2 * at)) : four_bytes(block + 4 * at);
}

// One number of the result: row `row` of a group, times one row of activations.
static float product(const Weight& weight, const uint8_t* group, int row, const Rows& x, int n) {
    const int blocks = blocks_of(weight.columns);
    const size_t bytes = block_bytes(weight.kind);
    float sum = 0;
    for (int b = 0; b < blocks; b++) {
        const uint8_t* block = group + b * bytes;
        if (weight.kind == INT4)
            sum = add_int4(sum, block, row, x.blocks[(size_t)n * blocks + b]);
        else if (weight.kind == INT8)
            sum = add_int8(sum, block, row, x.blocks[(size_t)n * blocks + b]);
        else
            for (int i = 0; i < BLOCK && b * BLOCK + i < weight.columns; i++)
                sum = fmaf(plain_value(block, weight.kind, row, i), x.values[n * x.stride + b * BLOCK + i], sum);
    }
    return sum;
}

static void multiply(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last) {
    const size_t group_bytes = blocks_of(weight.columns) * block_bytes(weight.kind);
    for (int g = first; g < last; g++)
        for (int row = 0; row < GROUP && g * GROUP + row < weight.rows; row++)
            for (int n = 0; n < x.rows; n++)
                out[n * out_stride + g * GROUP + row] = product(weight, weight.data + g * group_bytes, row, x, n);
}

const Products plain_products = {round_row, multiply};

}  // namespace scope
