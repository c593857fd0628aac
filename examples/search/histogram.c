/* histogram.c - latencies in log-linear buckets, as HdrHistogram counts them.
 *
 * 64 buckets for each power of two: a value is known to 1.6 %, whatever its size, and adding one is
 * an increment in memory that was there before. Measuring must not allocate, or it would measure
 * itself.
 */
#include "search.h"

static size_t bucket_of(uint64_t value)
{
    if (value < 128)
        return (size_t)value;
    unsigned shift = 57u - (unsigned)__builtin_clzll(value); /* leaves seven bits, the first set */
    return shift * 64u + (size_t)(value >> shift);
}

static uint64_t bucket_top(size_t bucket)
{
    if (bucket < 128)
        return bucket;
    unsigned shift = (unsigned)(bucket / 64 - 1);
    return ((uint64_t)(bucket - shift * 64u) << shift) + ((uint64_t)1 << shift) - 1;
}

void histogram_add(struct histogram *h, uint64_t value)
{
    h->counts[bucket_of(value)]++;
    h->total++;
    if (value > h->max)
        h->max = value;
}

/* The value that a share q of all values does not exceed. */
uint64_t histogram_quantile(const struct histogram *h, double q)
{
    uint64_t rank = (uint64_t)(q * (double)h->total), seen = 0;
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->counts[i];
        if (seen > rank)
            return bucket_top(i) < h->max ? bucket_top(i) : h->max;
    }
    return h->max;
}
