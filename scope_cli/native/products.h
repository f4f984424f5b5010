// Products of rows of activations with a packed weight matrix: what they read, and what they promise.
//
// A matrix [rows, columns] lies in groups of 8 rows, a group in blocks of 32 columns, both filled up with zeros. Each
// block stands on its own, so that a range of groups is a piece of work and a file of blocks can be mapped into memory:
//
//   int4   128 bytes of codes, 8 scales, 8 minima    weight = scale * code + minimum, code 0 to 15
//   int8   256 bytes of codes, 8 scales              weight = scale * (code - 128), code 0 to 255
//
// Scales and minima are float16, one for each row. Byte 32 i + 4 row + j of the codes holds column 4 i + j; with 4 bits
// its upper half holds column 16 + 4 i + j. Activations are rounded, with a scale for each block: to 16 bits, or to 8,
// which takes half the time of a product of many rows.
//
// The result, for all instruction sets, ranges of groups and numbers of rows, bit by bit (products_plain.cpp says it in
// code): the sum over a block's codes is an exact integer; blocks are added up from left to right, in float32, each by
// fused multiply-adds.
#pragma once
#include <cstddef>
#include <cstdint>

namespace scope {

constexpr int GROUP = 8;   // rows of a weight that lie together
constexpr int BLOCK = 32;  // columns that share a scale

enum Kind : int32_t { INT4, INT8 };

struct Weight {
    int32_t kind;  // a Kind
    int32_t rows, columns;
    int32_t spare;
    const uint8_t* data;
};

// 32 activations, rounded. Numbers lie in the order in which two of them meet a register of codes: 0, 2, 1, 3, 16, 18, 17,
// 19, then the same from 4, from 8, from 12 on.
struct Block {
    int16_t numbers[BLOCK];
    float scale;       // value = scale * number; not a number where an activation was not finite
    float total;       // scale * sum of the numbers
    int32_t less_128;  // -128 * sum of the numbers
};

// The same in 8 bits; numbers lie in the order of the columns.
struct ByteBlock {
    int8_t numbers[BLOCK];
    float scale, total;
    int32_t less_128;
};

// Rows of activations. Packed weights are multiplied with `bytes` or else `blocks`, others with `values`; what is not
// needed may be null.
struct Rows {
    int32_t rows;
    const Block* blocks;  // [rows, blocks_of(columns)]
    const float* values;  // [rows, columns]
    int64_t stride;       // from one row of values to the next
    const ByteBlock* bytes = nullptr;  // [rows, blocks_of(columns)]
};

constexpr int blocks_of(int columns) { return (columns + BLOCK - 1) / BLOCK; }
constexpr int groups_of(int rows) { return (rows + GROUP - 1) / GROUP; }
constexpr bool has_codes(int kind) { return kind == INT4 || kind == INT8; }

// Bytes of one block of a group: of its codes, and of all.
constexpr size_t code_bytes(int kind) { return kind == INT4 ? 128 : 256; }
constexpr size_t block_bytes(int kind) { return kind == INT4 ? 128 + 2 * 16 : 256 + 16; }

}  // namespace scope

extern "C" {

// values [rows, columns], `stride` apart, to blocks [rows, blocks_of(columns)].
void scope_round(const float* values, int64_t stride, int32_t rows, int32_t columns, scope::Block* blocks);

void scope_round_to_bytes(const float* values, int64_t stride, int32_t rows, int32_t columns, scope::ByteBlock* blocks);

// out[n, i] = sum over columns of x[n] * weight[i], for the rows i of the groups from `first` to before `last`; rows n
// of the result lie `out_stride` apart. Nothing else is written.
void scope_multiply(const scope::Weight* weight, const scope::Rows* x, float* out, int64_t out_stride, int32_t first,
                    int32_t last);

// The same for a whole weight and activations as they are, [rows, weight->columns], which are rounded on the way. `bias`,
// [weight->rows], is added; null: none.
void scope_product(const scope::Weight* weight, const float* values, int64_t stride, int32_t rows, const float* bias,
                   float* out, int64_t out_stride, int32_t threads);

// Rows `ids` of the weight as float32, [count, columns], exactly as the codes, scales and minima say.
void scope_unpack(const scope::Weight* weight, const int64_t* ids, int64_t count, float* out);

}  // extern "C"
