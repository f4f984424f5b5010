// Attention, norms and activations with plain C++.
#include "attention.inl"

const scope::Attention scope::attention_plain = {scope::plain::piece, scope::plain::merge};
