/* observe.h - what the heap did, kept for reports. Above gc/; nothing below includes it. */
#ifndef OBSERVE_OBSERVE_H
#define OBSERVE_OBSERVE_H

#include "gc/gc.h"

enum { PAUSE_RING = 256 };

/* Under lock, which program threads take while busy; a leaf. */
struct observe {
    struct mutex lock;
    int64_t start;                      /* monotonic; fixed by observe_init */
    uint32_t num_gc;                    /* the last cycle that ended */
    uint32_t num_forced;                /* of those */
    uint64_t last_gc;                   /* end of its marking, wall clock */
    uint64_t pause_ns[PAUSE_RING];      /* of cycle n at [(n + 255) % 256] */
    uint64_t pause_end[PAUSE_RING];     /* wall clock */
    uint64_t mallocs[NUM_SIZE_CLASSES]; /* as reported last: they never fall */
};

extern struct observe observe;

/* After gc_init, before the first cycle: from now on ended cycles are recorded, and printed if
 * GODEBUG asks for it. May be called again. */
void observe_init(void);

/* Share of the processors' time since the start that the collector used, 0 to 1. */
double observe_gc_cpu_fraction(void);

/* gctrace.c: lines of GODEBUG=gctrace, gcpacertrace and scavtrace for the cycle in gc.last. */
void gctrace_print_cycle(void);
void gctrace_print_pacer(void);
void gctrace_print_scavenger(bool forced);

#endif
