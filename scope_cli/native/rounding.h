// What a block of activations is multiplied with before it is rounded, and what is kept of it.
#pragma once
#include "numbers.h"
#include "products.h"

namespace scope {
namespace {

constexpr float MOST = 32767;   // the largest number of 16 bits
constexpr float most_of(const Block*) { return MOST; }
constexpr float most_of(const ByteBlock*) { return 127; }
constexpr float TINY = 1e-30f;  // activations so small count as zero

// The largest magnitude of some activations becomes the largest number.
struct Rounding {
    bool finite, some;  // some: not all zeros
    float steps;        // whole numbers in one
    float scale;

    // most: the largest magnitude's bits. They are in the order of the magnitudes, those of no numbers come last.
    Rounding(uint32_t most, float number) {
        const float largest = from_bits(most);
        finite = most < 0x7f800000;
        some = finite && largest > TINY;
        steps = some ? number / largest : 0;
        scale = !finite ? from_bits(0x7fc00000) : some ? largest / number : 0;
    }

    template <class Any>
    void finish(Any& block, int32_t sum) const {
        block.scale = scale;
        block.total = scale * (float)sum;
        block.less_128 = -128 * sum;
    }
};

}  // namespace
}  // namespace scope
