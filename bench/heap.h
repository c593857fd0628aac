/* heap.h - one algorithm, three heaps.
 *
 * Purpose     A benchmark is written once against these names and compiled three times:
 *                 (nothing)      loam
 *                 -DUSE_BOEHM    Boehm's collector, -lgc
 *                 -DUSE_MALLOC   malloc and explicit free; mimalloc and others by LD_PRELOAD
 * Fairness    Each heap gets what its own users would write. malloc does not zero, so the program
 *             writes each field before it reads it, pointers by HEAP_NULL, which costs nothing on
 *             the heaps that zero. HEAP_FREE frees only under malloc; code that merely walks a
 *             structure to free it stands inside `if (HEAP_IS_MANUAL)`. Boehm gets GC_MALLOC, not
 *             its typed interface, which is several times slower.
 * Rules       Those of loam.h: pointers into the heap are kept in locals, in globals of the
 *             program, and in heap objects, and stored by HEAP_SET outside of locals.
 */
#ifndef BENCH_HEAP_H
#define BENCH_HEAP_H

#include "report.h"

#if defined(USE_BOEHM)
#define GC_THREADS
#include <gc.h>
#elif !defined(USE_MALLOC)
#include <loam.h>
#include <loam/stats.h>
#endif
/* After gc.h, which replaces pthread_create. */
#include <pthread.h>

static inline void *heap_checked(void *p)
{
    if (__builtin_expect(p == NULL, 0)) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return p;
}

/* What a collector did so far. Pauses are kept one by one in `pauses` of struct pause_log. */
struct pause_log {
    struct hist pauses;
    uint64_t cycles; /* cycles seen */
    uint64_t lost;   /* cycles whose pauses were overwritten before we looked */
};

#if defined(USE_MALLOC)

#define HEAP_NAME "malloc"
#define HEAP_IS_MANUAL 1
#define HEAP_TYPE(T, ...) struct heap_no_type_##T
#define HEAP_NEW(T) ((T *)heap_checked(malloc(sizeof(T))))
#define HEAP_NEW_POINTERS(T, n) ((T **)heap_checked(calloc((n), sizeof(T *))))
#define HEAP_ALLOC(bytes) heap_checked(calloc(1, (bytes)))
#define HEAP_ALLOC_NOSCAN(bytes) heap_checked(malloc(bytes))
#define HEAP_SET(lvalue, value) ((lvalue) = (value))
#define HEAP_NULL(lvalue) ((lvalue) = NULL)
#define HEAP_EXCHANGE(slot, value) __atomic_exchange_n((slot), (value), __ATOMIC_SEQ_CST)
#define HEAP_FREE(p) free(p)

static inline void heap_init(void)
{
}

static inline void heap_set_gc_percent(int percent)
{
    (void)percent;
}

static inline void heap_gc(void)
{
}

static inline void pause_log_take(struct pause_log *log)
{
    (void)log;
}

#elif defined(USE_BOEHM)

#define HEAP_NAME "boehm"
#define HEAP_IS_MANUAL 0
#define HEAP_TYPE(T, ...) struct heap_no_type_##T
#define HEAP_NEW(T) ((T *)heap_checked(GC_MALLOC(sizeof(T))))
#define HEAP_NEW_POINTERS(T, n) ((T **)heap_checked(GC_MALLOC((n) * sizeof(T *))))
#define HEAP_ALLOC(bytes) heap_checked(GC_MALLOC(bytes))
#define HEAP_ALLOC_NOSCAN(bytes) heap_checked(GC_MALLOC_ATOMIC(bytes))
#define HEAP_SET(lvalue, value) ((lvalue) = (value))
#define HEAP_NULL(lvalue) ((void)0)
#define HEAP_EXCHANGE(slot, value) __atomic_exchange_n((slot), (value), __ATOMIC_SEQ_CST)
#define HEAP_FREE(p) ((void)(p))

/* Written by the collecting thread, under Boehm's lock with the world stopped or about to be; read
 * by pause_log_take under the same lock. */
static struct {
    uint64_t stop_began_ns;
    uint64_t cycles;
    struct hist pauses;
} boehm_events;

static void boehm_on_event(GC_EventType event)
{
    if (event == GC_EVENT_PRE_STOP_WORLD) {
        boehm_events.stop_began_ns = clock_ns();
    } else if (event == GC_EVENT_POST_START_WORLD) {
        hist_add(&boehm_events.pauses, clock_ns() - boehm_events.stop_began_ns);
    } else if (event == GC_EVENT_END) {
        boehm_events.cycles++;
    }
}

static inline void heap_init(void)
{
    GC_INIT();
    GC_set_on_collection_event(boehm_on_event);
}

/* Boehm lets the heap grow by about live/divisor between collections. */
static inline void heap_set_gc_percent(int percent)
{
    GC_set_free_space_divisor(percent >= 100 ? 1 : (GC_word)(100 / percent));
}

static inline void heap_gc(void)
{
    GC_gcollect();
}

static void *boehm_copy_events(void *arg)
{
    struct pause_log *log = arg;
    log->pauses = boehm_events.pauses;
    log->cycles = boehm_events.cycles;
    memset(&boehm_events.pauses, 0, sizeof boehm_events.pauses);
    return NULL;
}

static inline void pause_log_take(struct pause_log *log)
{
    static struct pause_log news; /* too large for a stack that Boehm searches; one caller */
    GC_call_with_alloc_lock(boehm_copy_events, &news);
    hist_merge(&log->pauses, &news.pauses);
    log->cycles = news.cycles;
}

#else

#define HEAP_NAME "loam"
#define HEAP_IS_MANUAL 0
#define HEAP_TYPE(T, ...) LOAM_TYPE(T, __VA_ARGS__)
#define HEAP_NEW(T) ((T *)heap_checked(LOAM_NEW(T)))
#define HEAP_NEW_POINTERS(T, n) ((T **)heap_checked(LOAM_NEW_POINTERS(T, (n))))
#define HEAP_ALLOC(bytes) heap_checked(loam_alloc(bytes))
#define HEAP_ALLOC_NOSCAN(bytes) heap_checked(loam_alloc_noscan(bytes))
#define HEAP_SET(lvalue, value) ((void)LOAM_SET(lvalue, value))
#define HEAP_NULL(lvalue) ((void)0)
#define HEAP_EXCHANGE(slot, value) loam_exchange((slot), (value))
#define HEAP_FREE(p) ((void)(p))

static inline void heap_init(void)
{
}

static inline void heap_set_gc_percent(int percent)
{
    loam_set_gc_percent(percent);
}

static inline void heap_gc(void)
{
    loam_gc();
}

/* pause_ns is a ring of the last 256 cycles, as in Go: looked at often enough, none is lost. */
static inline void pause_log_take(struct pause_log *log)
{
    static loam_memstats m; /* six KiB; one caller */
    loam_read_memstats(&m);
    uint64_t fresh = m.num_gc - log->cycles;
    if (fresh > 256) {
        log->lost += fresh - 256;
        fresh = 256;
    }
    for (uint64_t i = 1; i <= fresh; i++) {
        hist_add(&log->pauses, m.pause_ns[(m.num_gc + 256 - i) % 256]);
    }
    log->cycles = m.num_gc;
}

#endif

/* -gogc, where given; GOGC of the environment otherwise rules, in loam as in Go. */
static inline void heap_option_gc_percent(void)
{
    double percent = option_real("gogc", 0);
    if (percent > 0) {
        heap_set_gc_percent((int)percent);
    }
}

/* How many collections there were since the program began. */
static inline uint64_t heap_cycles(void)
{
    static struct pause_log log;
    pause_log_take(&log);
    return log.cycles;
}

/* ---- threads -------------------------------------------------------------------------------- */

enum { MAX_THREADS = 64 };

static inline unsigned option_threads(unsigned otherwise)
{
    uint64_t n = option_count("threads", otherwise);
    if (n < 1 || n > MAX_THREADS) {
        fprintf(stderr, "-threads: 1 to %d\n", MAX_THREADS);
        exit(2);
    }
    return (unsigned)n;
}

static inline void thread_start(pthread_t *thread, void *(*fn)(void *), void *arg)
{
    if (pthread_create(thread, NULL, fn, arg) != 0) {
        fprintf(stderr, "no thread\n");
        exit(1);
    }
}

/* Run fn(args + i * stride) on n threads, and return when all have ended. */
static inline void threads_run(unsigned n, void *(*fn)(void *), void *args, size_t stride)
{
    pthread_t threads[MAX_THREADS];
    for (unsigned i = 0; i < n; i++) {
        thread_start(&threads[i], fn, (char *)args + i * stride);
    }
    for (unsigned i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
    }
}

#endif
