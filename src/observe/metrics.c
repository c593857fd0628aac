/* metrics.c - loam_read_metrics: all figures by name.
 *
 * Purpose     One table says what there is, what it means and where it is found; docs/metrics.md is made from it.
 * Model       All figures are read at once; a metric is a field of `figures`, or a histogram that is made from them.
 *             Sums are made of their parts. In fork's child times and goroutines are counted from the fork.
 * Locking     as loam_read_memstats; gc.pacer_lock and sched.lock for a few words.
 * From Go     runtime/metrics (metrics.go, description.go). Differs: nothing stops the world, so its stops are stretches in
 *             which a thread was kept from running; processors' time is the system's, not an estimate.
 * Tests       tests/api/metrics.c; tools/mkmetrics.py --check
 */
#include "observe/observe.h"

#include "gc/ends.h"
#include "malloc/malloc.h"
#include "sched/sched.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <loam/stats.h>

struct figures {
    loam_memstats ms;
    uint64_t cycles_automatic;
    uint64_t heap_live, limited, gogc, memory_limit, min_heap;
    uint64_t scan_heap, scan_stack, scan_globals, scan_total;
    uint64_t freed_bytes, heap_free, heap_unused, mspan_free, mcache_free;
    uint64_t cleanups_queued, cleanups_executed, finalizers_queued, finalizers_executed;
    uint64_t external, scavenged_background, scavenged_eager;
    uint64_t stack_start;
    double cpu_assist, cpu_dedicated, cpu_idle_marking, cpu_answers, cpu_gc;
    double cpu_scavenge_assist, cpu_scavenge_background, cpu_scavenge;
    double cpu_user, cpu_idle, cpu_total;
    uint64_t procs, threads;
    uint64_t goroutines, created, running, runnable, waiting, in_calls, asleep;
    uint64_t class_inuse[NUM_SIZE_CLASSES];
};

/* -- reading ----------------------------------------------------------------------------------- */

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

static void read_memory(struct figures *f)
{
    loam_read_memstats(&f->ms);
    for (size_t i = 0; i < NUM_SIZE_CLASSES; i++) {
        f->class_inuse[i] = load_rlx(&heap.stats.class_inuse[i]);
    }
    f->freed_bytes = f->ms.total_alloc - f->ms.heap_alloc;
    f->heap_free = f->ms.heap_idle - f->ms.heap_released;
    f->heap_unused = f->ms.heap_inuse - f->ms.heap_alloc;
    f->mspan_free = f->ms.mspan_sys - f->ms.mspan_inuse;
    f->mcache_free = f->ms.mcache_sys - f->ms.mcache_inuse;
    f->external = load_rlx(&gc.external);
    f->scavenged_background = load_rlx(&gc.scavenged_bg);
    f->scavenged_eager = load_rlx(&gc.scavenged_eager);
}

static void read_collector(struct figures *f)
{
    const struct ends_counts *ends = ends_counts();
    mutex_lock(&gc.pacer_lock);
    f->heap_live = gc.pacer.marked;
    f->scan_heap = gc.pacer.heap_scan;
    f->scan_stack = gc.pacer.stack_scan;
    f->scan_globals = gc.pacer.globals_scan;
    int64_t min_heap = pacer_min_heap(&gc.pacer);
    mutex_unlock(&gc.pacer_lock);
    f->scan_total = f->scan_heap + f->scan_stack + f->scan_globals;
    f->min_heap = min_heap > 0 ? (uint64_t)min_heap : 0;
    int percent = load_rlx(&gc.gc_percent);
    f->gogc = percent < 0 ? UINT64_MAX : (uint64_t)percent;
    uint64_t limit = load_rlx(&heap.limit);
    f->memory_limit = limit < INT64_MAX ? limit : INT64_MAX;
    f->limited = load_rlx(&gc.limited);
    f->cycles_automatic = f->ms.num_gc - f->ms.num_forced_gc;
    /* What is executed is read first: it is never more than what is queued. */
    f->cleanups_executed = load_acq(&ends->cleanups_executed);
    f->finalizers_executed = load_acq(&ends->finalizers_executed);
    f->cleanups_queued = load_rlx(&ends->cleanups_queued);
    f->finalizers_queued = load_rlx(&ends->finalizers_queued);
}

static double seconds(int64_t ns)
{
    return (double)ns / 1e9;
}

/* What is counted at a cycle's end was the program's until then: neither that nor the idle time goes back. */
static void read_cpu(struct figures *f)
{
    int64_t assist = load_rlx(&gc.cpu.assist);
    int64_t dedicated = load_rlx(&gc.cpu.dedicated);
    int64_t idle_marking = load_rlx(&gc.cpu.idle);
    int64_t answers = (int64_t)load_rlx(&world.answer_cpu_ns);
    int64_t scavenge_assist = load_rlx(&gc.scavenge_assist_ns);
    int64_t scavenge_background = load_rlx(&gc.scavenge_ns);
    int64_t collected = assist + dedicated + idle_marking + answers;
    int64_t scavenged = scavenge_assist + scavenge_background;

    int64_t there = gc_count_processors();
    struct gc_cpu *cpu = &gc.cpu;
    mutex_lock(&gc.pacer_lock);
    int64_t user = os_process_cputime() - collected - scavenged;
    cpu->user_told = user > cpu->user_told ? user : cpu->user_told;
    int64_t unused = there - cpu->user_told - collected - scavenged;
    cpu->unused_told = unused > cpu->unused_told ? unused : cpu->unused_told;
    f->cpu_user = seconds(cpu->user_told);
    f->cpu_idle = seconds(cpu->unused_told);
    mutex_unlock(&gc.pacer_lock);

    f->cpu_assist = seconds(assist);
    f->cpu_dedicated = seconds(dedicated);
    f->cpu_idle_marking = seconds(idle_marking);
    f->cpu_answers = seconds(answers);
    f->cpu_gc = f->cpu_assist + f->cpu_dedicated + f->cpu_idle_marking + f->cpu_answers;
    f->cpu_scavenge_assist = seconds(scavenge_assist);
    f->cpu_scavenge_background = seconds(scavenge_background);
    f->cpu_scavenge = f->cpu_scavenge_assist + f->cpu_scavenge_background;
    f->cpu_total = f->cpu_user + f->cpu_idle + f->cpu_gc + f->cpu_scavenge;
}

static void read_scheduler(struct figures *f)
{
    mutex_lock(&world.lock);
    f->threads = world.nms;
    mutex_unlock(&world.lock);
    f->procs = (uint64_t)load_rlx(&gc.options.max_procs);
    f->stack_start = stack_default_bytes();
    f->goroutines = load_acq(&sched.ngs); /* acquire: as loam_num_goroutine */
    f->created = load_rlx(&sched.next_id);
    f->asleep = load_rlx(&sleeper_asleep);
    if (!load_acq(&sched.started)) { /* acquire: the Ps; pairs with start_locked */
        return;
    }
    mutex_lock(&sched.lock);
    uint64_t running = less((uint64_t)load_rlx(&sched.procs), load_rlx(&sched.nidle_ps));
    uint64_t at_work = sched.nworkers - sched.nidle_workers;
    f->runnable = sched.global.n;
    mutex_unlock(&sched.lock);
    for (int i = 0; i < load_rlx(&sched.most_procs); i++) {
        const struct p *p = &sched.ps[i];
        uint32_t head = load_rlx(&p->head);
        f->runnable += (load_rlx(&p->tail) - head) % (2 * RUNQ_SLOTS) +
                       (load_rlx(&p->next) != NULL);
    }
    f->running = running < f->goroutines ? running : f->goroutines;
    f->in_calls = less(at_work, running + (load_rlx(&sched.polling) ? 1 : 0));
    f->waiting = less(f->goroutines, f->running + f->runnable + f->in_calls);
}

/* -- histograms -------------------------------------------------------------------------------- */

typedef void fill_fn(loam_histogram *h, const struct figures *f);

_Static_assert((int)HISTOGRAM_BUCKETS <= (int)LOAM_HISTOGRAM_BUCKETS, "a histogram of times fits");
_Static_assert((int)NUM_SIZE_CLASSES <= (int)LOAM_HISTOGRAM_BUCKETS, "a histogram of sizes fits");

static void fill_times(loam_histogram *h, const struct histogram *from)
{
    h->buckets = HISTOGRAM_BUCKETS;
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        h->counts[i] = load_rlx(&from->counts[i]);
        h->bounds[i] = seconds(histogram_bound(i));
    }
    h->bounds[HISTOGRAM_BUCKETS] = (double)INFINITY;
}

/* A bucket for each size class, the last one for what is larger. */
static void size_bounds(loam_histogram *h)
{
    h->buckets = NUM_SIZE_CLASSES;
    h->bounds[0] = 1;
    for (size_t i = 1; i < NUM_SIZE_CLASSES; i++) {
        h->bounds[i] = (double)class_to_size[i] + 1;
    }
    h->bounds[NUM_SIZE_CLASSES] = (double)INFINITY;
}

static void fill_by_size(loam_histogram *h, const loam_memstats *ms, bool freed)
{
    size_bounds(h);
    uint64_t small = 0;
    for (size_t i = 1; i < NUM_SIZE_CLASSES; i++) {
        h->counts[i - 1] = freed ? ms->by_size[i].frees : ms->by_size[i].mallocs;
        small += h->counts[i - 1];
    }
    h->counts[NUM_SIZE_CLASSES - 1] = (freed ? ms->frees : ms->mallocs) - small;
}

static void fill_allocs(loam_histogram *h, const struct figures *f)
{
    fill_by_size(h, &f->ms, false);
}

static void fill_frees(loam_histogram *h, const struct figures *f)
{
    fill_by_size(h, &f->ms, true);
}

static void fill_unused(loam_histogram *h, const struct figures *f)
{
    size_bounds(h);
    uint64_t used = 0;
    for (size_t i = 1; i < NUM_SIZE_CLASSES; i++) {
        uint64_t objects = f->ms.by_size[i].mallocs - f->ms.by_size[i].frees;
        h->counts[i - 1] = less(f->class_inuse[i], objects * class_to_size[i]);
        used += objects * class_to_size[i];
    }
    h->counts[NUM_SIZE_CLASSES - 1] = less(f->class_inuse[0], f->ms.heap_alloc - used);
}

#define TIMES_OF(name, histogram)                                \
    static void name(loam_histogram *h, const struct figures *f) \
    {                                                            \
        (void)f;                                                 \
        fill_times(h, &(histogram));                             \
    }

TIMES_OF(fill_handshakes, world.handshakes)
TIMES_OF(fill_answers, world.answers)
TIMES_OF(fill_pauses, world.pauses)
TIMES_OF(fill_assists, gc.assists)
TIMES_OF(fill_waits, gc.waits)
TIMES_OF(fill_latencies, sched.latencies)

/* -- the table --------------------------------------------------------------------------------- */

enum { GAUGE = false, CUMULATIVE = true };

static const loam_metric_description descriptions[] = {
#define UINT64(name, cumulative, field, description) \
    {name, description, LOAM_METRIC_UINT64, cumulative},
#define UINT32 UINT64
#define FLOAT64(name, cumulative, field, description) \
    {name, description, LOAM_METRIC_FLOAT64, cumulative},
#define HISTOGRAM(name, cumulative, fill, description) \
    {name, description, LOAM_METRIC_HISTOGRAM, cumulative},
#include "observe/metrics.def"
#undef UINT64
#undef UINT32
#undef FLOAT64
#undef HISTOGRAM
};

/* Of the description with the same index. */
static const struct source {
    size_t offset, size; /* in figures */
    fill_fn *fill;
} sources[] = {
#define UINT64(name, cumulative, field, description) \
    {offsetof(struct figures, field), sizeof(uint64_t), NULL},
#define UINT32(name, cumulative, field, description) \
    {offsetof(struct figures, field), sizeof(uint32_t), NULL},
#define FLOAT64(name, cumulative, field, description) \
    {offsetof(struct figures, field), sizeof(double), NULL},
#define HISTOGRAM(name, cumulative, fill, description) {0, 0, fill},
#include "observe/metrics.def"
};

enum { COUNT = sizeof descriptions / sizeof *descriptions };

size_t loam_metric_descriptions(const loam_metric_description **all)
{
    *all = descriptions;
    return COUNT;
}

static int by_name(const void *name, const void *description)
{
    return strcmp(name, ((const loam_metric_description *)description)->name);
}

static void put(loam_metric *metric, const struct figures *f)
{
    const loam_metric_description *d = bsearch(metric->name, descriptions, COUNT,
                                               sizeof *descriptions, by_name);
    metric->value.uint64 = 0;
    metric->kind = d == NULL ? LOAM_METRIC_BAD : d->kind;
    if (d == NULL) {
        return;
    }
    const struct source *from = &sources[d - descriptions];
    const char *field = (const char *)f + from->offset;
    if (d->kind == LOAM_METRIC_FLOAT64) {
        memcpy(&metric->value.float64, field, sizeof(double));
    } else if (d->kind == LOAM_METRIC_HISTOGRAM) {
        if (metric->histogram != NULL) {
            memset(metric->histogram, 0, sizeof *metric->histogram);
            from->fill(metric->histogram, f);
        }
    } else {
        uint32_t narrow = 0;
        memcpy(&narrow, field, sizeof narrow);
        metric->value.uint64 = narrow;
        if (from->size == sizeof(uint64_t)) {
            memcpy(&metric->value.uint64, field, sizeof(uint64_t));
        }
    }
}

void loam_read_metrics(loam_metric *metrics, size_t n)
{
    CHECK(metrics != NULL || n == 0, "loam_read_metrics(NULL, %zu): there is nothing to fill", n);
    struct figures f;
    memset(&f, 0, sizeof f);
    read_memory(&f);
    struct m *m = malloc_self(); /* as loam_read_memstats */
    if (m != NULL) {
        m_enter(m);
    }
    read_collector(&f);
    read_cpu(&f);
    read_scheduler(&f);
    if (m != NULL) {
        m_leave(m);
    }
    for (size_t i = 0; i < n; i++) {
        CHECK(metrics[i].name != NULL, "loam_read_metrics: the metric at %zu has no name", i);
        put(&metrics[i], &f);
    }
}
