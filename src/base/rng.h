/* rng.h - xorshift64*, for delays and samples; not for secrets.
 * Source: Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016. The state is never 0. */
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

/* Exponentially distributed: how far it is to the next event of which there is one in `mean`. By inversion; the logarithm by
 * its series in (1 - f) / (1 + f) for f in [1/2, 1), so that nothing of libm is needed. Wrong by 1e-6 at most. */
ALWAYS_INLINE double rng_exponential(uint64_t *state, double mean)
{
    uint64_t bits = rng_next(state) >> 11 | 1;
    int zeros = __builtin_clzll(bits) - 11; /* u = bits / 2^53 = f / 2^zeros */
    double f = (double)(bits << zeros) / 9007199254740992.0;
    double z = (1 - f) / (1 + f);
    double zz = z * z;
    double minus_ln_f =
        2 * z * (1 + zz * (1 / 3.0 + zz * (1 / 5.0 + zz * (1 / 7.0 + zz * (1 / 9.0 + zz / 11)))));
    return mean * (zeros * 0.6931471805599453 + minus_ln_f);
}

#endif
