// Attention, norms and activations with AVX2.
#define SCOPE_AVX2
#include "attention.inl"

const scope::Attention scope::attention_avx2 = {scope::avx2::piece, scope::avx2::merge};
