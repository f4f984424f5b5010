// Attention, norms and activations with AVX-512.
#define SCOPE_AVX512
#include "attention.inl"

const scope::Attention scope::attention_avx512 = {scope::avx512::piece, scope::avx512::merge};
