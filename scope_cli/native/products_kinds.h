// The three definitions of the products, one for each set of instructions. All give the same bits.
#pragma once
#include "products.h"

namespace scope {

struct Products {
    void (*round)(const float* values, int columns, Block* blocks);  // one row
    void (*round_to_bytes)(const float* values, int columns, ByteBlock* blocks);
    void (*multiply)(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last);
};

// A block's code, as it lies there.
inline int code(const uint8_t* block, int kind, int row, int column) {
    if (kind == INT8) return block[column / 4 * 32 + 4 * row + column % 4];
    const uint8_t pair = block[column % 16 / 4 * 32 + 4 * row + column % 4];
    return column < 16 ? pair & 15 : pair >> 4;
}

extern const Products products_plain, products_avx2, products_avx512;

}  // namespace scope
