// How many rows of activations are multiplied at once.
#pragma once
#include <type_traits>

namespace scope {

constexpr int STRETCH = 128;  // rows after which the weight is read again, so that their activations stay in the cache

// work(n, number) for all rows from `first` to before `last`: `most` of them at once, then halves of that.
template <int most, class Work>
static inline void in_tiles(int first, int last, const Work& work) {
    int n = first;
    for (; last - n >= most; n += most) work(n, std::integral_constant<int, most>());
    if constexpr (most > 1) in_tiles<most / 2>(n, last, work);
}

}  // namespace scope
