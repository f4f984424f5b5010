#include "cpu.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>

// Bits of the registers that the instruction `cpuid` fills: Intel's manual, volume 2A, table 3-8. The compiler's own
// question, __builtin_cpu_supports, is not answered where the library that belongs to it is another one's.
static int32_t best() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return scope::PLAIN;
    const auto bit = [](unsigned word, int number) { return (word >> number & 1) != 0; };
    const bool fma = bit(c, 12), saves = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
    if (!(fma && saves && avx && f16c) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return scope::PLAIN;
    unsigned kept, upper;  // which registers the operating system keeps
    __asm__("xgetbv" : "=a"(kept), "=d"(upper) : "c"(0));
    if ((kept & 0x06) != 0x06 || !bit(b, 5)) return scope::PLAIN;
    const bool f = bit(b, 16), dq = bit(b, 17), bw = bit(b, 30), vl = bit(b, 31), vnni = bit(c, 11);
    return (kept & 0xe6) == 0xe6 && f && dq && bw && vl && vnni ? scope::AVX512 : scope::AVX2;
}
#else
static int32_t best() { return scope::PLAIN; }
#endif

// $SCOPE_NATIVE: plain, avx2 or avx512; else the best.
static int32_t wanted() {
    const char* said = getenv("SCOPE_NATIVE");
    if (said && !strcmp(said, "plain")) return scope::PLAIN;
    if (said && !strcmp(said, "avx2")) return scope::AVX2;
    return scope::AVX512;
}

int32_t scope_use_instructions(int32_t wish) {
    const int32_t most = best();
    return scope::instructions = wish < most ? wish : most;
}

int32_t scope_instructions() { return scope::instructions; }

int32_t scope::instructions = scope_use_instructions(wanted());
