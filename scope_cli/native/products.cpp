// The products' C interface: it chooses the instructions, and unpacks rows.
#include "products.h"

#include "cpu.h"
#include "numbers.h"
#include "products_kinds.h"

using namespace scope;

static const Products& products() { return SCOPE_IN_USE(products); }

void scope_round(const float* values, int64_t stride, int32_t rows, int32_t columns, Block* blocks) {
    for (int64_t n = 0; n < rows; n++)
        products().round(values + n * stride, columns, blocks + n * blocks_of(columns));
}

void scope_round_to_bytes(const float* values, int64_t stride, int32_t rows, int32_t columns, ByteBlock* blocks) {
    for (int64_t n = 0; n < rows; n++)
        products().round_to_bytes(values + n * stride, columns, blocks + n * blocks_of(columns));
}

void scope_multiply(const Weight* weight, const Rows* x, float* out, int64_t out_stride, int32_t first, int32_t last) {
    products().multiply(*weight, *x, out, out_stride, first, last);
}

static float value(const uint8_t* block, int kind, int row, int column) {
    const uint8_t* scales = block + code_bytes(kind) + 2 * row;
    const float scale = from_float16(two_bytes(scales)), number = (float)code(block, kind, row, column);
    return kind == INT4 ? scale * number + from_float16(two_bytes(scales + 16)) : scale * (number - 128);
}

void scope_unpack(const Weight* weight, const int64_t* ids, int64_t count, float* out) {
    const size_t bytes = block_bytes(weight->kind), group_bytes = blocks_of(weight->columns) * bytes;
    for (int64_t n = 0; n < count; n++) {
        const uint8_t* group = weight->data + ids[n] / GROUP * group_bytes;
        for (int i = 0; i < weight->columns; i++)
            out[n * weight->columns + i] = value(group + i / BLOCK * bytes, weight->kind, ids[n] % GROUP, i % BLOCK);
    }
}
