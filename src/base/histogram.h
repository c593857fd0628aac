/* histogram.h - how often something took how long.
 *
 * Model     Four buckets for each power of two of nanoseconds, from 64 ns to 18 minutes; one below, one above.
 * From Go   timeHistogram (histogram.go); differs: coarser at the low end.
 */
#ifndef BASE_HISTOGRAM_H
#define BASE_HISTOGRAM_H

#include "base/atomics.h"
#include "base/bits.h"

enum {
    HISTOGRAM_LOW = 6, /* log2 of the first bound, in ns */
    HISTOGRAM_HIGH = 40,
    HISTOGRAM_SHIFT = 2, /* log2 of the buckets of a power of two */
    HISTOGRAM_BUCKETS = ((HISTOGRAM_HIGH - HISTOGRAM_LOW) << HISTOGRAM_SHIFT) + 2,
};

struct histogram {
    _Atomic uint64_t counts[HISTOGRAM_BUCKETS]; /* relaxed: a report */
};

ALWAYS_INLINE size_t histogram_bucket(int64_t ns)
{
    if (ns < INT64_C(1) << HISTOGRAM_LOW) {
        return 0;
    }
    unsigned log = 63 - clz64((uint64_t)ns);
    if (log >= HISTOGRAM_HIGH) {
        return HISTOGRAM_BUCKETS - 1;
    }
    size_t within = (uint64_t)ns >> (log - HISTOGRAM_SHIFT) & ((1 << HISTOGRAM_SHIFT) - 1);
    return 1 + ((size_t)(log - HISTOGRAM_LOW) << HISTOGRAM_SHIFT) + within;
}

/* The least that bucket i counts, in ns. */
ALWAYS_INLINE int64_t histogram_bound(size_t i)
{
    if (i == 0) {
        return 0;
    }
    unsigned log = HISTOGRAM_LOW + (unsigned)((i - 1) >> HISTOGRAM_SHIFT);
    int64_t within = (int64_t)((i - 1) & ((1 << HISTOGRAM_SHIFT) - 1));
    return (INT64_C(1) << log) + within * (INT64_C(1) << (log - HISTOGRAM_SHIFT));
}

/* Any thread, a signal handler too. */
ALWAYS_INLINE void histogram_add(struct histogram *h, int64_t ns)
{
    add_rlx(&h->counts[histogram_bucket(ns)], UINT64_C(1));
}

#endif
