// Which vector instructions are used: the best that this CPU has, or fewer where somebody asks for them.
#pragma once
#include <cstdint>

namespace scope {

enum Instructions : int32_t { PLAIN, AVX2, AVX512 };  // AVX512: with VNNI, and all that a server CPU has beside it

extern int32_t instructions;  // in use; set before any work starts

}  // namespace scope

extern "C" {

// The best that this CPU has.
int32_t scope_best_instructions();

// Use these, or the best of this CPU that are fewer; returns those in use from now on.
int32_t scope_use_instructions(int32_t wanted);

}  // extern "C"
