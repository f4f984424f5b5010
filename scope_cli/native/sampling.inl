// The passes over a whole vocabulary, over lanes.h: included once for each width of register.
#include "lanes.h"
#include "sampling.h"

namespace scope {
namespace SCOPE_LANES {
namespace {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();
constexpr int AT_ONCE = 256;  // numbers whose weights are added up in float32

// `count` numbers from `at` on, at most 16, and -inf behind them.
inline V load_or_nothing(const float* at, long count) {
    if (count >= WIDTH) return load(at);
    float padded[WIDTH];
    for (int i = 0; i < WIDTH; i++) padded[i] = i < count ? at[i] : NOTHING;
    return load(padded);
}

void tops(const float* x, long count, float* out) {
    for (long from = 0; from < count; from += TOPS) {
        V largest = all(NOTHING);
        for (long i = from; i < from + TOPS && i < count; i += WIDTH)
            largest = most(load_or_nothing(x + i, count - i), largest);
        out[from / TOPS] = top(largest);
    }
}

double weigh(const float* x, long count, float top, float factor) {
    double total = 0;
    for (long from = 0; from < count; from += AT_ONCE) {
        V some = zero();
        for (long i = from; i < from + AT_ONCE && i < count; i += WIDTH)
            some = add(some, exp(mul(sub(load_or_nothing(x + i, count - i), all(top)), all(factor))));
        total += sum(some);
    }
    return total;
}

}  // namespace
}  // namespace SCOPE_LANES
}  // namespace scope
