// Which vector instructions are used: the best that this CPU has, or fewer where somebody asks for them.
#pragma once
#include <cstdint>

namespace scope {

enum Instructions : int32_t { PLAIN, AVX2, AVX512 };  // AVX512: with VNNI, and all that a server CPU has beside it

extern int32_t instructions;  // in use: $SCOPE_NATIVE (plain, avx2, avx512), else the best of this CPU

}  // namespace scope

extern "C" {

// Use these, or the best of this CPU where it has fewer; returns those in use from now on. For tests: nothing may be
// at work.
int32_t scope_use_instructions(int32_t wanted);

int32_t scope_instructions();

}  // extern "C"
