/* keeper.c - two goroutines in the background: one expires keys, one evicts them. */
#include "kv.h"

#include <loam/stats.h>

/* ---- expiry ----
 *
 * A key that is over is removed when somebody asks for it. For the others each tick looks through a
 * few buckets of each shard, and through more where it pays, for a quarter of the time at most. */

enum { TICK_MS = 100, TICK_WORK_MS = 25 };

static void expirer(void *unused)
{
    (void)unused;
    for (;;) {
        int64_t began = now_ms(), now = began;
        for (size_t shard = 0; shard < SHARDS; shard++) {
            while (store_expire_some(shard, now) && now - began < TICK_WORK_MS)
                now = now_ms();
            loam_yield();
        }
        loam_sleep((int64_t)TICK_MS * 1000000);
    }
}

/* ---- eviction ----
 *
 * The memory limit is the library's. Its collector says after a cycle that what is alive comes near
 * it; then keys that have not been used for long are let go, and the next cycle finds them gone.
 * The handler runs on the collector's thread: it leaves a wish in a channel and is off; where one
 * waits, that will do. The evictor is one goroutine among many. So that it does not fall behind
 * those who bring new values, they let go of as much, and of more while there is an excess, for a
 * while after each wish. */

enum { FULL_MS = 1000 };

static loam_chan *wishes;               /* of levels, room for one */
static atomic_int_least64_t excess;     /* bytes that are still to go */
static atomic_int_least64_t full_until; /* in now_ms's time */

static void on_pressure(loam_pressure level, void *unused)
{
    (void)unused;
    loam_select_case wish = {.chan = wishes, .direction = LOAM_SEND, .elem = &level};
    loam_select(&wish, 1, false);
}

/* Gives the bytes; 0: that is enough, or nothing is left. */
static int64_t evict_of_excess(void)
{
    if (atomic_load_explicit(&excess, memory_order_relaxed) <= 0)
        return 0;
    int64_t bytes = (int64_t)store_evict_one();
    atomic_fetch_sub_explicit(&excess, bytes, memory_order_relaxed);
    return bytes;
}

void keeper_help(const struct place *p)
{
    if (p->now >= atomic_load_explicit(&full_until, memory_order_relaxed))
        return;
    atomic_fetch_add_explicit(&excess, p->grown, memory_order_relaxed);
    for (int64_t gone = 0, n = 1; n > 0 && gone < 2 * p->grown; gone += n)
        n = evict_of_excess();
}

static uint32_t cycles(void)
{
    loam_memstats m;
    loam_read_memstats(&m);
    return m.num_gc;
}

/* NEAR means that it is enough, more that it is too much. What is near the limit may be holes that
 * new values fill: that counts when half of it is data. A cycle that was under way has not seen all
 * that has been let go: its wish asks for no more. */
static void evictor(void *unused)
{
    static const int64_t shares[] = {
        [LOAM_PRESSURE_NEAR] = INT64_MAX, [LOAM_PRESSURE_AT] = 20, [LOAM_PRESSURE_OVER] = 10};
    uint32_t last = 0;
    (void)unused;
    for (loam_pressure level; loam_chan_recv(wishes, &level);) {
        int64_t bytes = (int64_t)store_count().bytes;
        if (level == LOAM_PRESSURE_NEAR && bytes < loam_set_memory_limit(-1) / 2)
            continue;
        atomic_store_explicit(&full_until, now_ms() + FULL_MS, memory_order_relaxed);
        if (cycles() - last < 2)
            continue;
        atomic_store_explicit(&excess, bytes / shares[level], memory_order_relaxed);
        while (evict_of_excess() > 0)
            loam_yield();
        last = cycles();
    }
}

int keeper_start(void)
{
    LOAM_SET(wishes, loam_chan_make_bytes(sizeof(loam_pressure), 1));
    if (wishes == NULL || loam_add_pressure_handler(on_pressure, NULL) != 0 ||
        loam_go(evictor, NULL) != 0 || loam_go(expirer, NULL) != 0)
        return -1;
    return 0;
}
