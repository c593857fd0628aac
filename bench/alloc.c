/* alloc.c - what one small allocation costs, its share of collection (or its free) included.
 *
 * Work        Each thread keeps the last `-window` objects it allocated and drops the oldest.
 *             -kind noscan    no pointers; the first word is written
 *             -kind typed     two pointers, the rest data, of a declared type
 *             -kind untyped   every word may hold a pointer
 *             -bytes 16, 32, 64, 256 or 1024: constants in the loops, as in real programs, so that
 *             a compiler that knows how to use them (Go 1.26 does) may.
 * Measured    Wall time of a thread's loop over its number of allocations, mean of the threads.
 * Twin        go/alloc/main.go
 */
#include "heap.h"

struct job {
    uint64_t count, window;
    uint64_t ns;  /* result */
    uint64_t sum; /* result; jobs share cache lines, so it is written once */
    pthread_barrier_t *gate;
};

typedef struct typed_16 {
    void *link[2];
} typed_16;
HEAP_TYPE(typed_16, link);

#define TYPED(N)                    \
    typedef struct typed_##N {      \
        void *link[2];              \
        unsigned char rest[(N)-16]; \
    } typed_##N;                    \
    HEAP_TYPE(typed_##N, link)
TYPED(32);
TYPED(64);
TYPED(256);
TYPED(1024);

/* One loop for each kind and size. `check` reads from an object before it is dropped. */
#define LOOP(name, T, allocate, init, check)               \
    static void *name(void *arg)                           \
    {                                                      \
        struct job *job = arg;                             \
        T **window = HEAP_NEW_POINTERS(T, job->window);    \
        uint64_t slot = 0;                                 \
        uint64_t sum = 0;                                  \
        pthread_barrier_wait(job->gate);                   \
        uint64_t began = clock_ns();                       \
        for (uint64_t i = 0; i < job->count; i++) {        \
            T *p = allocate;                               \
            init;                                          \
            T *old = window[slot];                         \
            if (old != NULL) {                             \
                sum += check;                              \
            }                                              \
            HEAP_SET(window[slot], p);                     \
            HEAP_FREE(old);                                \
            slot = slot + 1 == job->window ? 0 : slot + 1; \
        }                                                  \
        job->ns = clock_ns() - began;                      \
        job->sum = sum;                                    \
        return NULL;                                       \
    }                                                      \
    struct semicolon_##name

#define LOOPS(N)                                                                                \
    LOOP(noscan_##N, uint64_t, HEAP_ALLOC_NOSCAN(N), *p = i, *old);                             \
    LOOP(typed_##N##_loop, typed_##N, HEAP_NEW(typed_##N),                                      \
         (HEAP_NULL(p->link[0]), HEAP_NULL(p->link[1])), 1 + (uint64_t)(old->link[1] != NULL)); \
    LOOP(untyped_##N, void *, HEAP_ALLOC(N), (void)p, 1 + (uint64_t)(old[0] != NULL))
LOOPS(16);
LOOPS(32);
LOOPS(64);
LOOPS(256);
LOOPS(1024);

#define ROWS(N) ROW("noscan", N, noscan_##N), ROW("typed", N, typed_##N##_loop)
#define ROW(kind, N, loop) \
    {                      \
        kind, N, loop      \
    }
static const struct {
    const char *kind;
    uint64_t bytes;
    void *(*loop)(void *);
} loops[] = {
    ROWS(16),
    ROWS(32),
    ROWS(64),
    ROWS(256),
    ROWS(1024),
    ROW("untyped", 16, untyped_16),
    ROW("untyped", 32, untyped_32),
    ROW("untyped", 64, untyped_64),
    ROW("untyped", 256, untyped_256),
    ROW("untyped", 1024, untyped_1024),
};

int main(int argc, char **argv)
{
    options_begin(argc, argv);
    heap_init();
    const char *kind = option_string("kind", "noscan");
    uint64_t bytes = option_count("bytes", 16);
    unsigned threads = option_threads(1);
    uint64_t count = option_count("count", 50000000);
    uint64_t window = option_count("window", 10000);
    result_as_json = option_flag("json");
    heap_option_gc_percent();
    options_end();

    void *(*loop)(void *) = NULL;
    for (size_t i = 0; i < sizeof loops / sizeof loops[0]; i++) {
        if (strcmp(loops[i].kind, kind) == 0 && loops[i].bytes == bytes) {
            loop = loops[i].loop;
        }
    }
    if (loop == NULL) {
        fprintf(stderr, "-kind noscan|typed|untyped, -bytes 16|32|64|256|1024\n");
        return 2;
    }
    static struct job jobs[MAX_THREADS];
    pthread_barrier_t gate;
    pthread_barrier_init(&gate, NULL, threads);
    for (unsigned i = 0; i < threads; i++) {
        jobs[i] = (struct job){.count = count, .window = window, .gate = &gate};
    }
    threads_run(threads, loop, jobs, sizeof jobs[0]);

    uint64_t ns = 0;
    uint64_t sum = 0;
    for (unsigned i = 0; i < threads; i++) {
        ns += jobs[i].ns;
        sum += jobs[i].sum;
    }
    result_begin("alloc", HEAP_NAME);
    result_string("kind", kind);
    result_count("bytes", bytes);
    result_count("threads", threads);
    result_count("count", count);
    result_real("ns_per_alloc", (double)ns / (double)(count * threads));
    result_count("cycles", heap_cycles());
    result_end(sum);
    return 0;
}
