// Attention and arithmetic on rows with AVX-512.
#define SCOPE_AVX512
#include "attention.inl"
#include "reading.inl"
#include "sampling.inl"
#include "vectors.inl"

namespace scope {

const Attention attention_avx512 = {avx512::pieces, avx512::merge};
const Reading reading_avx512 = {avx512::round_tile, avx512::attend};
const Sampling sampling_avx512 = {avx512::tops, avx512::weigh};
const Vectors vectors_avx512 = {avx512::root,   avx512::scale, avx512::add,  avx512::activate, avx512::cap,
                               avx512::rotate, avx512::turn,  avx512::store, avx512::multiply};

}  // namespace scope
