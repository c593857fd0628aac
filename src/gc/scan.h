/* scan.h - kernels that find heap addresses among words. */
#ifndef GC_SCAN_H
#define GC_SCAN_H

#include "base/compiler.h"

#include <stddef.h>

/* What a kernel needs of the heap. */
struct scan_region {
    uintptr_t base;
    uintptr_t used;
    uintptr_t pointer_mask;
};

/* Objects of `words` words (at most 64) at base + i * words for each set bit i of `objects`; of each
 * the words in `mask`. Offsets of the words that lie in the region go to out, in order; how many.
 * out has room for popcount(objects) * words entries, and at most 8 more are overwritten. */
typedef size_t scan_kernel(const uintptr_t *base, size_t words, uint64_t mask, uint64_t objects,
                           const struct scan_region *region, uintptr_t *out);

scan_kernel scan_plain; /* the oracle of the others */
#if defined(__x86_64__)
scan_kernel scan_avx2;
scan_kernel scan_avx512;
#elif defined(__aarch64__)
scan_kernel scan_neon;
#endif

/* The fastest that this processor runs. */
scan_kernel *scan_choose(void);

#endif
