#include "cpu.h"

#if defined(__x86_64__)
static int32_t best() {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
    return avx2 && avx512 ? scope::AVX512 : avx2 ? scope::AVX2 : scope::PLAIN;
}
#else
static int32_t best() { return scope::PLAIN; }
#endif

int32_t scope::instructions = best();

int32_t scope_best_instructions() { return best(); }

int32_t scope_use_instructions(int32_t wanted) {
    const int32_t most = best();
    return scope::instructions = wanted < most ? wanted : most;
}
