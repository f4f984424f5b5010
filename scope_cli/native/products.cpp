// The products' C interface: it chooses the instructions, and unpacks rows.
#include "products.h"

#include "cpu.h"
#include "numbers.h"
#include "products_kinds.h"

using namespace scope;

static const Products& products() {
#if defined(__x86_64__)
    if (instructions == AVX512) return avx512_products;
    if (instructions == AVX2) return avx2_products;
#endif
    return plain_products;
}

void scope_round(const float* values, int64_t stride, int32_t rows, int32_t columns, int32_t planes, Block* blocks) {
    for (int64_t n = 0; n < rows; n++)
        products().round(values + n * stride, columns, planes, blocks + n * blocks_of(columns));
}

void scope_multiply(const Weight* weight, const Rows* x, float* out, int64_t out_stride, int32_t first, int32_t last) {
    products().multiply(*weight, *x, out, out_stride, first, last);
}

static float value(const uint8_t* block, int kind, int row, int column) {
    if (kind == INT4) {
        const uint8_t pair = block[32 * (column % 16 / 4) + 4 * row + column % 4];
        const float scale = from_float16(two_bytes(block + 128 + 2 * row));
        const float minimum = from_float16(two_bytes(block + 144 + 2 * row));
        return scale * (float)(column < 16 ? pair & 15 : pair >> 4) + minimum;
    }
    if (kind == INT8) {
        const int code = block[32 * (column / 4) + 4 * row + column % 4] - 128;
        return from_float16(two_bytes(block + 256 + 2 * row)) * (float)code;
    }
    const int at = column * GROUP + row;
    return kind == BFLOAT16 ? from_bfloat16(two_bytes(block + 2 * at)) : four_bytes(block + 4 * at);
}

void scope_unpack(const Weight* weight, const int64_t* ids, int64_t count, float* out) {
    const size_t bytes = block_bytes(weight->kind), group_bytes = blocks_of(weight->columns) * bytes;
    for (int64_t n = 0; n < count; n++) {
        const uint8_t* group = weight->data + ids[n] / GROUP * group_bytes;
        for (int i = 0; i < weight->columns; i++)
            out[n * weight->columns + i] = value(group + i / BLOCK * bytes, weight->kind, ids[n] % GROUP, i % BLOCK);
    }
}
