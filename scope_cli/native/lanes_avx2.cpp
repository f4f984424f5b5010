// Attention and arithmetic on rows with AVX2.
#define SCOPE_AVX2
#include "attention.inl"
#include "reading.inl"
#include "sampling.inl"
#include "vectors.inl"

namespace scope {

const Attention attention_avx2 = {avx2::pieces, avx2::merge};
const Reading reading_avx2 = {avx2::round_tile, avx2::attend};
const Sampling sampling_avx2 = {avx2::tops, avx2::weigh};
const Vectors vectors_avx2 = {avx2::root,   avx2::scale, avx2::add,  avx2::activate, avx2::cap,
                               avx2::rotate, avx2::turn,  avx2::store, avx2::multiply};

}  // namespace scope
