/* loam/stats.h - what the heap does: statistics, metrics, profiles, the heap dump, the execution trace.
 *
 * Names and meanings are Go's (runtime.MemStats). Any thread may call all of it at
 * any time, except from a signal handler. Sizes are bytes, times nanoseconds.
 */
#ifndef LOAM_STATS_H
#define LOAM_STATS_H

#include <loam.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Go's MemStats, field for field. A pause is any stretch in which the collector kept a thread from
 * running: the thread's processor time while it answered the collector, marked for it or gave memory
 * back for the limit, and the time on the clock while it was made to wait. A wait for the heap to
 * come back to its goal counts for as long as it was meant to be, not until the system gave the
 * thread a processor again. */
typedef struct loam_memstats {
    /* In general */
    uint64_t alloc;       /* bytes of heap objects, as heap_alloc */
    uint64_t total_alloc; /* bytes ever allocated for heap objects; never falls */
    uint64_t sys;         /* bytes obtained from the system: the sum of the ..._sys below */
    uint64_t lookups;     /* always 0, as in Go */
    uint64_t mallocs;     /* objects ever allocated */
    uint64_t frees;       /* objects ever freed; mallocs - frees are there */

    /* The heap */
    uint64_t heap_alloc;    /* bytes of reachable objects and of unreachable ones not yet swept */
    uint64_t heap_sys;      /* bytes of address space that is or was in use */
    uint64_t heap_idle;     /* bytes in spans without objects */
    uint64_t heap_inuse;    /* bytes in spans with objects */
    uint64_t heap_released; /* bytes of heap_idle given back to the system */
    uint64_t heap_objects;  /* objects there */

    /* What the library itself needs */
    uint64_t stack_inuse; /* bytes of memory of goroutines' stacks, as the last cycle found them */
    uint64_t stack_sys;   /* the same */
    uint64_t mspan_inuse; /* bytes of span descriptors */
    uint64_t mspan_sys;
    uint64_t mcache_inuse; /* bytes of mcaches */
    uint64_t mcache_sys;
    uint64_t buck_hash_sys; /* bytes of the profile's tables */
    uint64_t gc_sys;        /* bytes of the collector's metadata */
    uint64_t other_sys;

    /* The collector */
    uint64_t next_gc;        /* heap size that the next cycle aims at; UINT64_MAX: off */
    uint64_t last_gc;        /* end of the last cycle, since 1970 (the wall clock); 0: none yet */
    uint64_t pause_total_ns; /* of all pauses */
    uint64_t pause_ns[256];  /* of the last cycles; the last one at [(num_gc + 255) % 256] */
    uint64_t pause_end[256]; /* their ends, since 1970 */
    uint32_t num_gc;         /* finished cycles */
    uint32_t num_forced_gc;  /* of these asked for by loam_gc */
    double gc_cpu_fraction;  /* of the processors' time since the start, 0 to 1 */
    bool enable_gc;          /* always true, as in Go; also with GOGC=off */

    struct loam_memstats_by_size {
        uint64_t size;    /* the largest object of the class */
        uint64_t mallocs; /* objects ever allocated, as above */
        uint64_t frees;
    } by_size[68]; /* the size classes, 0 unused; larger objects are in none */
} loam_memstats;

/* Fills *m, with figures of one moment. Cheap enough for every second; it waits for no thread. Aborts if m
 * is NULL. */
LOAM_API void loam_read_memstats(loam_memstats *m);

/* ---- Metrics, after Go's runtime/metrics ----
 *
 * Each figure has a name that ends in its unit, and a description; docs/metrics.md lists them. Names are Go's where the
 * thing is the same. Programs that are to live long look a name up and do without it if it is not there. */

typedef enum loam_metric_kind {
    LOAM_METRIC_BAD, /* there is no metric of this name */
    LOAM_METRIC_UINT64,
    LOAM_METRIC_FLOAT64,
    LOAM_METRIC_HISTOGRAM,
} loam_metric_kind;

typedef struct loam_metric_description {
    const char *name;        /* "/gc/heap/live:bytes" */
    const char *description; /* in English, a sentence or more */
    loam_metric_kind kind;
    bool cumulative; /* never falls */
} loam_metric_description;

enum { LOAM_HISTOGRAM_BUCKETS = 160 };

/* counts[i] values were at least bounds[i] and less than bounds[i + 1]; bounds[buckets] may be infinite. */
typedef struct loam_histogram {
    size_t buckets;
    uint64_t counts[LOAM_HISTOGRAM_BUCKETS];
    double bounds[LOAM_HISTOGRAM_BUCKETS + 1];
} loam_histogram;

typedef struct loam_metric {
    const char *name;          /* set by the caller */
    loam_histogram *histogram; /* set by the caller: where a histogram goes; NULL: not wanted */
    loam_metric_kind kind;     /* set by loam_read_metrics: what there is */
    union {
        uint64_t uint64;
        double float64;
    } value;
} loam_metric;

/* All metrics, by name; *all is valid for ever. Gives their number. */
LOAM_API size_t loam_metric_descriptions(const loam_metric_description **all);

/* Reads the named metrics, all at one time: what adds up in the descriptions adds up here. As cheap as
 * loam_read_memstats. Aborts if metrics is NULL and n is not 0, or a name is NULL. */
LOAM_API void loam_read_metrics(loam_metric *metrics, size_t n);

/* ---- The heap profile: which calls allocated what is on the heap, after Go's runtime/pprof ---- */

/* One byte in so many that are allocated, on average, is sampled; 0: none, 1: every object. 512 KiB at first, as in
 * Go. Gives the old rate. What was sampled before stays, and is scaled by the rate at which it is written: so a program sets it
 * once, before it allocates. */
LOAM_API int loam_set_mem_profile_rate(int bytes);

/* Writes the profile to fd as pprof's gzipped protocol buffer, for `go tool pprof PROGRAM FILE`: objects and bytes
 * that were allocated since the start, and that are in use, by chains of calls, each with labels `type` and `bytes` (one
 * object's). As of the end of the last cycle, so call loam_gc before it to see the present. 0, or -1 and errno: EBADF,
 * ENOMEM, or what write(2) says; part of it may be written then. Waits for fd where that blocks; no other thread waits.
 * Objects that a signal handler allocated over code of the library are not in it; of those that were allocated on a stack of the
 * program's own (a coroutine's, a handler's) nobody is said to have called. */
LOAM_API int loam_write_heap_profile(int fd);

/* Writes how many goroutines wait where, and for what (label `state`), in the same format. Nothing is stopped: each is looked
 * at by itself, one that runs has no calls. For people: loam_write_goroutines. Returns as loam_write_heap_profile does. */
LOAM_API int loam_write_goroutine_profile(int fd);

/* ---- What is alive, and why ----
 *
 * Both ask a copy of the process (copy-on-write, as fork's, but no handler of pthread_atfork runs and no wait of the program's
 * sees it). All threads stand still while it is made: 2 ms for a heap of 64 MiB, some 20 to 30 ms for each gigabyte in small
 * pages; then they run on, and the calling one waits, as blocked, for however long it takes the reader of fd. What the program
 * writes meanwhile takes memory twice. Not from a signal handler or a scan function; in fork's child too.
 *
 * 0, or -1 and errno. EBADF: fd is not open for writing. EAGAIN, ENOMEM and others of clone(2): there was no copy; what write(2)
 * says of fd (EPIPE and no signal, ENOSPC): what was written until then is there. EIO: the copy was killed. EDEADLK: called from
 * within the library. Of a thread that does not stop within 5 s, since it masks the signal, the whole stack counts. */

/* Writes all objects that are reached to fd, as the Memory tab of Chrome DevTools opens them in a file *.heapsnapshot: type,
 * bytes of the slot, what holds them by which field, kinds of roots, threads and goroutines, names of variables. */
LOAM_API int loam_write_heap_dump(int fd);

/* Writes to fd, in words, a shortest way from a root to the object around obj:
 *
 *     0x7f65a4002060 (node, 32 bytes) is reached from:
 *       global cache [program]
 *       -> cache 0x7f65a4000400 .buckets[3]
 *       -> node 0x7f65a4002040 .next
 *
 * Roots of the calling thread come last, for that has the address at hand. EINVAL: there is no object. ESRCH: nothing reaches
 * it, and so it says. */
LOAM_API int loam_why_alive(const void *obj, int fd);

/* ---- The execution trace, after Go's runtime/trace ----
 *
 * What the collector, the threads and the goroutines did, and when: phases of cycles, handshakes and each thread's answer,
 * assists, waits, sweeping, memory given back, which goroutine ran where from when to when and what it then waited for,
 * and the figures of the heap. It is Chrome trace-event JSON, which Perfetto (ui.perfetto.dev) and chrome://tracing open.
 * Times are CLOCK_MONOTONIC, in microseconds. A goroutine's stretch, a cycle, an answer is there once it is over.
 *
 * A thread of the library writes. It holds nobody up: what it cannot write as fast as it happens is dropped, and how much
 * that was stands in the trace ("dropped events"). A child of fork has no trace; its parent's goes on. */

/* Begins a trace, to fd; the descriptor stays the caller's, who may close it at once. 0, or -1 and errno: EBUSY: there is
 * one that was not stopped; EBADF: fd cannot be written to; EMFILE; EAGAIN: no thread; ENOMEM. Where writing fails later
 * (ENOSPC, EPIPE) the trace ends, as stderr is told, and what came until then is not a whole document. */
LOAM_API int loam_trace_start(int fd);

/* Writes what there is, and ends the trace; nothing if there is none. Waits for the reader of a pipe, but not for one that
 * takes nothing for a second. */
LOAM_API void loam_trace_stop(void);

/* The flight recorder, after Go's trace.FlightRecorder: keeps the last seconds of what a trace would have. It may be on
 * together with a trace. All 0, or NULL: Go's defaults. */
typedef struct loam_flight_recorder_config {
    int64_t min_age_ns; /* so much of the past is kept, if it fits; 0: 10 seconds */
    size_t max_bytes;   /* of memory, 40 for each event; 0: 10 MiB */
    int64_t
        pause_bound_ns; /* 0: none. The first pause (see loam_memstats) so long writes what there is, */
    int pause_fd;       /* to this descriptor, as loam_trace_start would */
} loam_flight_recorder_config;

/* 0, or -1 and errno: as loam_trace_start; EINVAL: a time is negative. */
LOAM_API int loam_flight_recorder_start(const loam_flight_recorder_config *config);

/* Writes what it has, a whole document, to fd; it goes on. 0, or -1 and errno: EINVAL: it is not on; EBADF, EMFILE, ENOMEM;
 * EAGAIN: the reader took nothing for five seconds; what write(2) says. */
LOAM_API int loam_flight_recorder_write(int fd);

/* Forgets what it has. Nothing if it is not on. */
LOAM_API void loam_flight_recorder_stop(void);

#ifdef __cplusplus
}
#endif

#endif /* LOAM_STATS_H */
