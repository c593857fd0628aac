/* profile.h - which calls allocated what is on the heap. Above malloc/, whose hook it sets. */
#ifndef OBSERVE_PROFILE_H
#define OBSERVE_PROFILE_H

#include "gc/gc.h"

enum { PROFILE_DEPTH = 128 /* Go's */ };

struct profile_counts {
    uint64_t allocs, frees, alloc_bytes, free_bytes;
};

/* All samples of one size and type that one chain of calls allocated. Never freed. */
struct profile_bucket {
    struct profile_bucket *next; /* in its hash chain; fixed once it is found there */
    struct profile_bucket *all;  /* of all, the one made before */
    uint32_t hash;
    uint32_t depth;
    const struct gctype *type;
    size_t size;
    struct profile_counts
        active; /* as of the last cycle that ended; this and what follows: profile.lock */
    struct profile_counts future[3]; /* of cycle n at [n % 3] */
    uint32_t cycle;                  /* up to which active has it */
    uintptr_t pcs[];
};

void profile_init(void);
/* What is on record when a profile is written, the last one first; counts by profile_read. */
const struct profile_bucket *profile_buckets(void);
struct profile_counts profile_read(struct m *m, const struct profile_bucket *b);
uint64_t profile_bytes(void); /* of the system's that the tables take */

#endif
