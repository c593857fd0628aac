/* pacer.h - when a cycle starts, what it may cost, and how far the heap may grow.
 *
 * A library of its own: numbers in, numbers out, no clock and no heap, so that it can be simulated.
 * Source: Go's pacer as redesigned in go1.18 (proposal 44167), constants of go1.26.
 */
#ifndef GC_PACER_H
#define GC_PACER_H

#include "base/atomics.h"

#define PACER_UTILIZATION 0.25 /* share of the processors that mark in the background */

struct pacer {
    /* set by the user */
    int gc_percent;   /* negative: off */
    int64_t min_heap; /* no cycle below it; negative: not set, then the goal has Go's floor */

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

#endif
