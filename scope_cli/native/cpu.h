// Which vector instructions are used: the best that this CPU has, or fewer where somebody asks for them. A library
// that build.py makes of one set alone, SCOPE_ONLY, has no choice.
#pragma once
#include <cstdint>

namespace scope {

enum class Instructions : int32_t { plain, avx2, avx512 };  // avx512: with VNNI, and all that a server CPU has beside it

extern Instructions instructions;  // in use: $SCOPE_NATIVE (plain, avx2, avx512), else the best of this CPU

}  // namespace scope

// name_plain, name_avx2 or name_avx512: the one in use.
#ifdef SCOPE_ONLY
#define SCOPE_JOINED(name, set) name##_##set
#define SCOPE_OF_SET(name, set) SCOPE_JOINED(name, set)
#define SCOPE_IN_USE(name) SCOPE_OF_SET(name, SCOPE_ONLY)
#else
#define SCOPE_IN_USE(name)                                            \
    (scope::instructions == scope::Instructions::avx512 ? name##_avx512 \
     : scope::instructions == scope::Instructions::avx2 ? name##_avx2   \
                                                        : name##_plain)
#endif

extern "C" {

// Use these, or the best of this CPU and this library where they have fewer; returns those in use from now on. For
// tests: nothing may be at work.
int32_t scope_use_instructions(int32_t wanted);

int32_t scope_instructions();

}  // extern "C"
