// The three definitions of the products, one for each set of instructions. All give the same bits.
#pragma once
#include "products.h"

namespace scope {

struct Products {
    void (*round)(const float* values, int columns, int planes, Block* blocks);  // one row
    void (*multiply)(const Weight& weight, const Rows& x, float* out, int64_t out_stride, int first, int last);
};

extern const Products plain_products;
#if defined(__x86_64__)
extern const Products avx2_products, avx512_products;
#endif

}  // namespace scope
