#include "cpu.h"

#ifdef SCOPE_ONLY

scope::Instructions scope::instructions = scope::Instructions::SCOPE_ONLY;

int32_t scope_use_instructions(int32_t) { return scope_instructions(); }

#else

#include <cpuid.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

using scope::Instructions;

// Bits of the registers that the instruction `cpuid` fills: Intel's manual, volume 2A, table 3-8. The compiler's own
// question, __builtin_cpu_supports, is not answered where the library that belongs to it is another one's.
static Instructions best() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return Instructions::plain;
    const auto bit = [](unsigned word, int number) { return (word >> number & 1) != 0; };
    const bool fma = bit(c, 12), saves = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
    if (!(fma && saves && avx && f16c) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Instructions::plain;
    unsigned kept, upper;  // which registers the operating system keeps
    __asm__("xgetbv" : "=a"(kept), "=d"(upper) : "c"(0));
    if ((kept & 0x06) != 0x06 || !bit(b, 5)) return Instructions::plain;
    const bool f = bit(b, 16), dq = bit(b, 17), bw = bit(b, 30), vl = bit(b, 31), vnni = bit(c, 11);
    return (kept & 0xe6) == 0xe6 && f && dq && bw && vl && vnni ? Instructions::avx512 : Instructions::avx2;
}

// $SCOPE_NATIVE: plain, avx2 or avx512; else the best.
static Instructions wanted() {
    const char* said = getenv("SCOPE_NATIVE");
    if (said && !strcmp(said, "plain")) return Instructions::plain;
    if (said && !strcmp(said, "avx2")) return Instructions::avx2;
    return Instructions::avx512;
}

Instructions scope::instructions = std::min(wanted(), best());

int32_t scope_use_instructions(int32_t wish) {
    scope::instructions = std::min((Instructions)wish, best());
    return scope_instructions();
}

#endif

int32_t scope_instructions() { return (int32_t)scope::instructions; }
