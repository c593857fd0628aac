/* futex.c - sleeping on a word, and the mutex made of it.
 *
 * Purpose     The only way the library waits for another thread.
 * Model       Mutex word: 0 free, else who holds it, and in the lowest bit that perhaps somebody sleeps.
 *             Who has slept takes the lock with that bit, for it cannot know whether others sleep still:
 *             at worst one wake too many. Source: Drepper, "Futexes Are Tricky", mutex2; the holder's
 *             name in the word as in the kernel's priority-inheriting futexes.
 * Ordering    lock acquires, unlock releases, through the word; sleeping and waking order nothing.
 * From Go     runtime/lock_futex.go: as there, a short active spin, then sleep; no passive spin
 *             by yielding, since the holder is never parked by a scheduler of ours.
 * Tests       tests/unit/test_os_futex.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include <errno.h>
#include <limits.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Of the kernel's interface; <linux/futex.h> is not everywhere. */
#define OS_FUTEX_WAIT_PRIVATE (0 | 128)
#define OS_FUTEX_WAKE_PRIVATE (1 | 128)

/* About a microsecond: what the longest critical section of a fast path takes. */
#define MUTEX_SPINS 60

/* Sleepers are woken one after the other, and where all processors are busy each waits for one before it can wake the
 * next: the last of seven was seen to sleep 12 ms on a lock that was free for nearly all of them. */
#define MUTEX_NAP_NS 1000000

void os_futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns)
{
    int saved_errno = errno;
    struct timespec ts = {0, 0};
    if (ns > 0) {
        ts.tv_sec = (time_t)(ns / 1000000000);
        ts.tv_nsec = (long)(ns % 1000000000);
    }
    (void)syscall(SYS_futex, word, OS_FUTEX_WAIT_PRIVATE, value, ns < 0 ? NULL : &ts, NULL, 0);
    errno = saved_errno;
}

void os_futex_wake(_Atomic uint32_t *word, int count)
{
    int saved_errno = errno;
    (void)syscall(SYS_futex, word, OS_FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
    errno = saved_errno;
}

/* Processors at the first contention; spinning alone on one is only a delay. */
static bool mutex_may_spin(void)
{
    static _Atomic int ncpu;
    int n = load_rlx(&ncpu);
    if (unlikely(n == 0)) {
        n = os_ncpu();
        store_rlx(&ncpu, n); /* relaxed: everyone computes the same */
    }
    return n > 1;
}

void mutex_lock_slow(struct mutex *mu)
{
    if (mutex_may_spin()) {
        for (int i = 0; i < MUTEX_SPINS; i++) {
            /* Only where nobody sleeps: a spinner must not overtake sleepers for ever. */
            uint32_t word = load_rlx(&mu->word);
            if ((word & 1u) != 0) {
                break;
            }
            if (word == 0 && mutex_try_lock(mu)) {
                return;
            }
            cpu_relax();
        }
    }
    uint32_t word = load_rlx(&mu->word);
    for (;;) {
        uint32_t now = word == 0 ? mutex_self() | 1u : word | 1u;
        /* acquire: pairs with mutex_unlock; what the last holder wrote is seen. */
        if (now != word && !cas_acqrel(&mu->word, &word, now)) {
            continue;
        }
        if (word == 0) {
            return;
        }
        os_futex_wait(&mu->word, now, MUTEX_NAP_NS);
        word = load_rlx(&mu->word);
    }
}

void mutex_unlock_slow(struct mutex *mu)
{
    os_futex_wake(&mu->word, 1);
}
