// What a block of activations is multiplied with before it is rounded, and what is kept of it.
#pragma once
#include "numbers.h"
#include "products.h"

namespace scope {
namespace {

constexpr float WHOLE = 127 * 256 + 127;  // the largest whole number that two planes hold
constexpr float TINY = 1e-30f;            // activations so small count as zero

// Each block's largest magnitude becomes the largest whole number: 127 in both planes, or 127 in the first alone.
struct Rounding {
    bool finite, some;  // some: not all zeros
    float steps;        // whole numbers in one
    float scale;        // of 256 * high + low

    // `most`: the largest magnitude's bits. They are in the order of the magnitudes, those of no numbers come last.
    Rounding(uint32_t most, int planes) {
        const float largest = from_bits(most);
        finite = most < 0x7f800000;
        some = finite && largest > TINY;
        steps = some ? (planes == 2 ? WHOLE : 127) / largest : 0;
        scale = !finite ? from_bits(0x7fc00000) : some ? largest / (planes == 2 ? WHOLE : 127.0f * 256) : 0;
    }

    void finish(Block& block, int32_t sum) const {
        block.scale = scale;
        block.total = scale * (float)sum;
        block.sum = sum;
        block.spare = 0;
    }
};

}  // namespace
}  // namespace scope
