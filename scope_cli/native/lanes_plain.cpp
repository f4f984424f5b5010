// Attention and arithmetic on rows in plain C++: what the other two have to equal, bit by bit.
#include "attention.inl"
#include "reading.inl"
#include "sampling.inl"
#include "vectors.inl"

namespace scope {

const Attention attention_plain = {plain::pieces, plain::merge};
const Reading reading_plain = {plain::round_tile, plain::attend};
const Sampling sampling_plain = {plain::tops, plain::weigh};
const Vectors vectors_plain = {plain::root,   plain::scale, plain::add,  plain::activate, plain::cap,
                               plain::rotate, plain::turn,  plain::store, plain::multiply};

}  // namespace scope
