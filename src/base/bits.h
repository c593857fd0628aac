/* bits.h - arithmetic on words, bit ranges and alignments. */
#ifndef BASE_BITS_H
#define BASE_BITS_H

#include "base/compiler.h"

#define KIB(n) ((size_t)(n) << 10)
#define MIB(n) ((size_t)(n) << 20)
#define GIB(n) ((size_t)(n) << 30)

ALWAYS_INLINE uintptr_t align_up(uintptr_t x, uintptr_t a)
{
    return (x + a - 1) & ~(a - 1);
}

ALWAYS_INLINE uintptr_t align_down(uintptr_t x, uintptr_t a)
{
    return x & ~(a - 1);
}

ALWAYS_INLINE unsigned ctz64(uint64_t x)
{
    return (unsigned)__builtin_ctzll(x);
}

ALWAYS_INLINE unsigned clz64(uint64_t x)
{
    return (unsigned)__builtin_clzll(x);
}

ALWAYS_INLINE unsigned popcount64(uint64_t x)
{
    return (unsigned)__builtin_popcountll(x);
}

/* Bits [from, to) of a word set; 0 <= from <= to <= 64. */
ALWAYS_INLINE uint64_t bit_range(unsigned from, unsigned to)
{
    uint64_t below_to = to == 64 ? ~UINT64_C(0) : (UINT64_C(1) << to) - 1;
    uint64_t below_from = from == 64 ? ~UINT64_C(0) : (UINT64_C(1) << from) - 1;
    return below_to & ~below_from;
}

#endif
