// float16 and bfloat16 as float32, exactly; float32 by its bits.
#pragma once
#include <cstdint>
#include <cstring>

namespace scope {

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float from_bfloat16(uint16_t bits) { return from_bits((uint32_t)bits << 16); }

static inline float from_float16(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent != 0) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    const float small = (float)fraction * 0x1p-24f;  // a subnormal, or zero
    return sign ? -small : small;
}

static inline uint16_t two_bytes(const uint8_t* at) {
    uint16_t value;
    memcpy(&value, at, 2);
    return value;
}

static inline float four_bytes(const uint8_t* at) {
    float value;
    memcpy(&value, at, 4);
    return value;
}

}  // namespace scope
