/* heap.h - watching objects live and die.
 *
 * Stacks and registers are searched conservatively, so a stale word may keep any one object alive.  Garbage is built
 * below call_deep, in batches; EXPECT_MOST_DIE asks that 95 % of a batch goes.  What must live is asked of every one. */
#ifndef TESTS_SUPPORT_HEAP_H
#define TESTS_SUPPORT_HEAP_H

#include "test.h"

#include <loam.h>

enum { SCRUB_BYTES = 48 * 1024, DEEP_BYTES = 24 * 1024 };

/* Does a cycle mark at this moment?  The library stores the flag atomically; ThreadSanitizer wants the same here. */
static inline bool barrier_is_on(void)
{
    return __atomic_load_n(&loam_write_barrier, __ATOMIC_RELAXED) != 0;
}

/* Memory of the process that is in memory, in bytes. */
UNUSED static size_t resident(void)
{
    size_t size = 0;
    size_t pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    EXPECT_NOT_NULL(f);
    EXPECT_EQ(fscanf(f, "%zu %zu", &size, &pages), 2);
    fclose(f);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

/* Zero the registers that a call may clobber: a handshake's signal that comes next would find what they held. */
static inline void scrub_registers(void)
{
#if defined(__x86_64__)
    __asm__ volatile(
        "xorl %%eax, %%eax\n\txorl %%ecx, %%ecx\n\txorl %%edx, %%edx\n\txorl %%esi, %%esi\n\t"
        "xorl %%edi, %%edi\n\txorl %%r8d, %%r8d\n\txorl %%r9d, %%r9d\n\txorl %%r10d, %%r10d\n\t"
        "xorl %%r11d, %%r11d\n\tpxor %%xmm0, %%xmm0\n\tpxor %%xmm1, %%xmm1\n\tpxor %%xmm2, "
        "%%xmm2\n\t"
        "pxor %%xmm3, %%xmm3\n\tpxor %%xmm4, %%xmm4\n\tpxor %%xmm5, %%xmm5\n\tpxor %%xmm6, "
        "%%xmm6\n\t"
        "pxor %%xmm7, %%xmm7\n\tpxor %%xmm8, %%xmm8\n\tpxor %%xmm9, %%xmm9\n\tpxor %%xmm10, "
        "%%xmm10\n\t"
        "pxor %%xmm11, %%xmm11\n\tpxor %%xmm12, %%xmm12\n\tpxor %%xmm13, %%xmm13\n\t"
        "pxor %%xmm14, %%xmm14\n\tpxor %%xmm15, %%xmm15"
        :
        :
        : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "xmm0", "xmm1", "xmm2",
          "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
          "xmm13", "xmm14", "xmm15", "cc", "memory");
#elif defined(__aarch64__)
    __asm__ volatile(
        "mov x0, xzr\n\tmov x1, xzr\n\tmov x2, xzr\n\tmov x3, xzr\n\tmov x4, xzr\n\tmov x5, xzr\n\t"
        "mov x6, xzr\n\tmov x7, xzr\n\tmov x8, xzr\n\tmov x9, xzr\n\tmov x10, xzr\n\tmov x11, "
        "xzr\n\t"
        "mov x12, xzr\n\tmov x13, xzr\n\tmov x14, xzr\n\tmov x15, xzr\n\tmov x16, xzr\n\tmov x17, "
        "xzr\n\t"
        "movi v0.2d, #0\n\tmovi v1.2d, #0\n\tmovi v2.2d, #0\n\tmovi v3.2d, #0\n\t"
        "movi v4.2d, #0\n\tmovi v5.2d, #0\n\tmovi v6.2d, #0\n\tmovi v7.2d, #0\n\t"
        "movi v16.2d, #0\n\tmovi v17.2d, #0\n\tmovi v18.2d, #0\n\tmovi v19.2d, #0\n\t"
        "movi v20.2d, #0\n\tmovi v21.2d, #0\n\tmovi v22.2d, #0\n\tmovi v23.2d, #0\n\t"
        "movi v24.2d, #0\n\tmovi v25.2d, #0\n\tmovi v26.2d, #0\n\tmovi v27.2d, #0\n\t"
        "movi v28.2d, #0\n\tmovi v29.2d, #0\n\tmovi v30.2d, #0\n\tmovi v31.2d, #0\n\t"
        :
        :
        : "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",
          "x14", "x15", "x16", "x17", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17",
          "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30",
          "v31", "memory");
#endif
}

/* Overwrite the stack below the caller's frame, where dead frames lie. */
NOINLINE UNUSED static void scrub_stack(void)
{
    volatile char frame[SCRUB_BYTES];
    for (size_t i = 0; i < sizeof frame; i++) {
        frame[i] = 0;
    }
    scrub_registers();
}

/* Run fn far below the caller's frame, then clear what it left there. */
NOINLINE UNUSED static void call_deep(void (*fn)(void *arg), void *arg)
{
    volatile char distance[DEEP_BYTES];
    distance[0] = 0;
    distance[sizeof distance - 1] = 0;
    fn(arg);
    distance[1] = distance[0];
    scrub_stack();
}

/* Weak pointers to a batch of objects.  `weak` lies in the heap: a struct watch is a local, or is held by one. */
struct watch {
    loam_weak **weak;
    size_t count;
};

NOINLINE UNUSED static void watch_init(struct watch *w, size_t count)
{
    w->count = count;
    LOAM_SET(w->weak, LOAM_NEW_POINTERS(loam_weak, count));
    EXPECT_NOT_NULL(w->weak);
}

NOINLINE UNUSED static void watch_set(struct watch *w, size_t index, void *object)
{
    loam_weak *weak = loam_weak_make(object);
    EXPECT_NOT_NULL(weak);
    LOAM_SET(w->weak[index], weak);
}

NOINLINE UNUSED static bool watch_is_dead(const struct watch *w, size_t index)
{
    return loam_weak_value(LOAD_SLOT(w->weak)[index]) == NULL;
}

/* How many are gone.  A slot never set counts as gone. */
NOINLINE UNUSED static size_t watch_dead(const struct watch *w)
{
    size_t dead = 0;
    for (size_t i = 0; i < w->count; i++) {
        dead += w->weak[i] == NULL || watch_is_dead(w, i) ? 1 : 0;
    }
    scrub_registers();
    return dead;
}

/* Collect, at most ten times, until `percent` of the batch is gone.  Gives how many are. */
NOINLINE UNUSED static size_t watch_collect(const struct watch *w, size_t percent)
{
    size_t dead = 0;
    for (int round = 0; round < 10; round++) {
        scrub_stack();
        loam_gc();
        dead = watch_dead(w);
        if (dead * 100 >= w->count * percent) {
            break;
        }
    }
    scrub_stack();
    return dead;
}

#define EXPECT_MOST_DIE_PERCENT(w, percent)                                                \
    do {                                                                                   \
        const size_t dead_ = watch_collect((w), (percent));                                \
        if (dead_ * 100 < (w)->count * (size_t)(percent)) {                                \
            FAIL("%zu of %zu unreachable objects died; expected %d %%", dead_, (w)->count, \
                 (int)(percent));                                                          \
        }                                                                                  \
    } while (0)

#define EXPECT_MOST_DIE(w) EXPECT_MOST_DIE_PERCENT(w, 95)

/* After one more collection, all are there. */
#define EXPECT_ALL_LIVE(w)                                                                \
    do {                                                                                  \
        scrub_stack();                                                                    \
        loam_gc();                                                                        \
        for (size_t i_ = 0; i_ < (w)->count; i_++) {                                      \
            if (watch_is_dead((w), i_)) {                                                 \
                FAIL("object %zu of %zu is reachable and was collected", i_, (w)->count); \
            }                                                                             \
        }                                                                                 \
    } while (0)

/* Collect until the condition holds; fail after `seconds`. */
#define COLLECT_UNTIL(seconds, condition)                                                 \
    do {                                                                                  \
        const uint64_t start_ = now_ns();                                                 \
        for (;;) {                                                                        \
            scrub_stack();                                                                \
            loam_gc();                                                                    \
            if (condition) {                                                              \
                break;                                                                    \
            }                                                                             \
            if (seconds_since(start_) > (double)(seconds)) {                              \
                FAIL("collected for %g s in vain for %s", (double)(seconds), #condition); \
            }                                                                             \
            sleep_us(1000);                                                               \
        }                                                                                 \
    } while (0)

/* An address that the conservative search does not recognise: for a test's own notes in plain memory and locals. */
static inline uintptr_t disguise(const void *p)
{
    return ~(uintptr_t)p;
}

static inline void *reveal(uintptr_t disguised)
{
    return (void *)~disguised; /* NOLINT: the test's own notes */
}

#endif
