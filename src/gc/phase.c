/* phase.c - the phase held still, for who marks or decides by marks.
 *
 * Purpose     What a program thread marks by itself (a full buffer, the fields of what it frees, a new root) it marks
 *             before [mark-done] or not at all; and weak to strong goes by one phase's rules.
 * Model       m->hold, by its thread:  FREE -> HELD -> FREE, WANTED -> CLOSED, CLOSED -> WAITED and it sleeps;
 *             by the collector: FREE -> CLOSED, HELD -> WANTED; when it opens, back, WAITED -> FREE and it wakes.
 *             The collector moves the phase on when it has closed every thread's word. A word for each thread, so that
 *             threads that hold do not meet; and entered by one instruction, so that a signal handler of the program
 *             knows whether the code that it interrupted is inside.
 * Invariants  [phase.held]  while a thread holds it the phase does not come to GC_END or to GC_OFF.
 *             [phase.late]  nothing is marked from [mark-done] on: what is unmarked then is dead for weak pointers, for
 *             finalizers and for the sweep, and the queue is empty until the next cycle.
 * Locking     world.lock from closing to opening: no thread comes or goes. Who holds waits for no handshake, and takes
 *             only what stands below the hold in docs/internals/locking.md.
 * Ordering    entering acquires, leaving and opening release, through the word.
 * From Go     no twin: there the world stands still at mark termination.
 * Tests       tests/unit/test_phase.c; tests/model [weak]; tests/stress/random_api.c with gccheckmark=1
 */
#include "gc/gc.h"

#include <limits.h>

enum hold { FREE, HELD, WANTED, CLOSED, WAITED };

enum {
    TRIES = 20, /* so often nobody is kept waiting */
    PAUSE_NS = 10000,
    PATIENCE_NS = 1000000, /* so long all others wait for one that is inside */
};

struct phase_hold gc_hold_phase(struct m *m)
{
    struct phase_hold h = {GC_OFF, false};
    uint32_t word = load_rlx(&m->hold);   /* relaxed: it is inside if it went in itself */
    if (word == HELD || word == WANTED) { /* below a handler of the program */
        h.phase = load_acq(&gc.phase);
        return h;
    }
    if (load_acq(&gc.phase) == GC_OFF) { /* acquire: pairs with the flip, sweepgen is seen */
        return h;
    }
    word = FREE;
    while (!cas_acqrel(&m->hold, &word, HELD)) {
        if (word == WAITED || cas_acqrel(&m->hold, &word, WAITED)) {
            os_futex_wait(&m->hold, WAITED, -1);
        }
        word = FREE;
    }
    h.phase = load_acq(&gc.phase);
    h.entered = true;
    return h;
}

void gc_release_phase(struct m *m, struct phase_hold h)
{
    if (!h.entered) {
        return;
    }
    uint32_t word = HELD;
    while (!cas_acqrel(&m->hold, &word, word == HELD ? FREE : CLOSED)) {
    }
}

/* -- the collector ----------------------------------------------------------------------------- */

void gc_open_phase_locked(void)
{
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        uint32_t word = WANTED;
        if (!cas_acqrel(&m->hold, &word, HELD) && word >= CLOSED &&
            xchg_acqrel(&m->hold, FREE) == WAITED) {
            os_futex_wake(&m->hold, INT_MAX);
        }
    }
}

/* All at once, so that who runs gives way to those that are inside without a processor. */
static bool close_each_locked(void)
{
    bool all = true;
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        uint32_t word = FREE;
        while (word <= HELD && !cas_acqrel(&m->hold, &word, word == FREE ? CLOSED : WANTED)) {
        }
        all = all && word != HELD && word != WANTED;
    }
    return all;
}

/* Not for ever: who is inside may wait for a lock whose holder, interrupted by a handler of the program that
 * stores, waits here. */
static bool close_locked(int64_t patience)
{
    int64_t until = patience != 0 ? os_nanotime() + patience : 0;
    while (!close_each_locked()) {
        if (until == 0 || os_nanotime() > until) {
            gc_open_phase_locked();
            return false;
        }
        os_sleep_ns(PAUSE_NS);
    }
    return true;
}

void gc_close_phase_locked(void)
{
    while (!close_locked(PATIENCE_NS)) {
        os_sleep_ns(PAUSE_NS);
    }
}

void gc_close_phase(void)
{
    for (int i = 0;; i++) {
        mutex_lock(&world.lock);
        if (close_locked(i < TRIES ? 0 : PATIENCE_NS)) {
            return;
        }
        mutex_unlock(&world.lock);
        os_sleep_ns(PAUSE_NS);
    }
}

void gc_open_phase(void)
{
    gc_open_phase_locked();
    mutex_unlock(&world.lock);
}
