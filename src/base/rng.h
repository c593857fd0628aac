/* rng.h - xorshift64*, for delays and samples; not for secrets.
 * Source: Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016. */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include "base/compiler.h"

ALWAYS_INLINE uint64_t rng_next(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * UINT64_C(0x2545F4914F6CDD1D);
}

#endif
