/* pacer.h - when a cycle starts, what it may cost, and how far the heap may grow.
 *
 * A library of its own: numbers in, numbers out, no clock and no heap, so that it can be simulated.
 * Source: Go's pacer as redesigned in go1.18 (proposal 44167), constants of go1.26.
 */
#ifndef GC_PACER_H
#define GC_PACER_H

#include "base/atomics.h"

#define PACER_UTILIZATION 0.25 /* share of the processors that mark in the background */
#define PACER_NO_LIMIT UINT64_MAX

/* What the memory limit leaves: brought up to date before pacer_commit. */
struct pacer_memory {
    uint64_t limit;    /* bytes; PACER_NO_LIMIT: none */
    uint64_t mapped;   /* all that the library has from the system */
    uint64_t external; /* counted as live heap, and not mapped */
    uint64_t overhead; /* of mapped, neither objects nor free pages: no cycle frees it */
};

/* Go's CPU limiter (gcCPULimiterState): a bucket that collecting fills and the program drains; while it is full,
 * allocators are not asked to help. Settles at `share` of the processors' time for the collector. */
struct pacer_limiter {
    double share; /* 0.5 in Go */
    double fill_ns;
    bool limiting;
};

struct pacer {
    /* set by the user */
    int gc_percent;   /* negative: off */
    int64_t min_heap; /* no cycle below it; negative: not set, then the goal has Go's floor */
    struct pacer_memory memory;

    /* of the last cycle that ended */
    uint64_t marked;    /* bytes live at its end */
    uint64_t heap_scan; /* bytes of heap it scanned */
    uint64_t stack_scan;
    uint64_t globals_scan;
    double
        cons_mark[4]; /* bytes allocated per byte scanned, at equal processor time; newest first */

    /* for the cycle to come, or running */
    uint64_t goal;      /* UINT64_MAX: off */
    uint64_t trigger;   /* UINT64_MAX: off */
    uint64_t triggered; /* live heap when it began */

    /* while a cycle runs; read by allocators */
    _Atomic uint64_t assist_work_per_mib; /* scan work owed for 1 MiB allocated */
    _Atomic uint64_t assist_goal;
};

struct pacer_cycle {
    uint64_t live; /* at the end */
    uint64_t marked;
    uint64_t scan_work; /* all of it */
    uint64_t stack_scan, globals_scan;
    double duration_ns; /* of the mark phase */
    double assist_ns;
    double idle_ns; /* marking on processors that had nothing to do */
    int procs;
};

void pacer_init(struct pacer *p, int gc_percent);
/* min_heap as the user sees it: what was set, else Go's floor of the goal at this gc_percent. */
int64_t pacer_min_heap(const struct pacer *p);
/* Goal and trigger from what is known of the last cycle. */
void pacer_commit(struct pacer *p);
void pacer_start_cycle(struct pacer *p, uint64_t live);
/* While marking: how much an allocator must pay, from how far allocation and marking are. */
void pacer_revise(struct pacer *p, uint64_t live, uint64_t scan_done);
void pacer_end_cycle(struct pacer *p, const struct pacer_cycle *c);

void pacer_limiter_init(struct pacer_limiter *l);
/* In a stretch of time the collector used collector_ns of the processors, the program program_ns. */
void pacer_limiter_account(struct pacer_limiter *l, int64_t collector_ns, int64_t program_ns,
                           int procs);

#endif
