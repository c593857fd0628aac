/* loam_read_metrics: what is described can be read, and nothing else; names end in their units and are in order; sums are
 * those of their parts, figures those of loam_memstats; what is cumulative does not fall, also while threads allocate,
 * collect, finalize and run goroutines; histograms count what happened.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: small_heap | GOGC=5 | | 60
 * TEST_RUN: limited | GOGC=off GOMEMLIMIT=64MiB | | 60
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 60 */
#include "../support/test.h"

#include <math.h>

#include <loam/sched.h>
#include <loam/stats.h>

#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

static const loam_metric_description *all;
static size_t count;

static uint64_t u64_of(const char *name)
{
    loam_metric m = {.name = name};
    loam_read_metrics(&m, 1);
    EXPECT_MSG(m.kind == LOAM_METRIC_UINT64, "%s", name);
    return m.value.uint64;
}

static loam_histogram *histogram_of(const char *name)
{
    static _Thread_local loam_histogram h;
    loam_metric m = {.name = name, .histogram = &h};
    loam_read_metrics(&m, 1);
    EXPECT_MSG(m.kind == LOAM_METRIC_HISTOGRAM, "%s", name);
    return &h;
}

static uint64_t total_of(const loam_histogram *h)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < h->buckets; i++) {
        sum += h->counts[i];
    }
    return sum;
}

static void described(void)
{
    for (size_t i = 0; i < count; i++) {
        const char *unit = strrchr(all[i].name, ':');
        EXPECT_EQ(all[i].name[0], '/');
        EXPECT_NOT_NULL(unit);
        EXPECT_GT(strlen(unit), 1);
        EXPECT_GT(strlen(all[i].description), 10);
        EXPECT_NE(all[i].kind, LOAM_METRIC_BAD);
        EXPECT_MSG(i == 0 || strcmp(all[i - 1].name, all[i].name) < 0, "%s", all[i].name);
        loam_metric m = {.name = all[i].name};
        loam_read_metrics(&m, 1);
        EXPECT_EQ(m.kind, all[i].kind);
    }
}

static void names_that_are_not_there(void)
{
    loam_metric m[] = {{.name = ""},
                       {.name = "/gc/heap/live"},
                       {.name = "/gc/heap/live:bytes "},
                       {.name = "/zzz:bytes"},
                       {.name = "/gc/heap/live:bytes"}};
    loam_read_metrics(m, COUNT_OF(m));
    for (size_t i = 0; i + 1 < COUNT_OF(m); i++) {
        EXPECT_EQ(m[i].kind, LOAM_METRIC_BAD);
        EXPECT_EQ(m[i].value.uint64, 0);
    }
    EXPECT_EQ(m[COUNT_OF(m) - 1].kind, LOAM_METRIC_UINT64);
    loam_read_metrics(NULL, 0);
}

/* ---- one time ---- */

struct reading {
    loam_metric m[128];
    loam_histogram h[128];
};

static void read_all(struct reading *r)
{
    EXPECT_LE(count, COUNT_OF(r->m));
    for (size_t i = 0; i < count; i++) {
        r->m[i] = (loam_metric){.name = all[i].name, .histogram = &r->h[i]};
    }
    loam_read_metrics(r->m, count);
}

static const loam_metric *find(const struct reading *r, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(r->m[i].name, name) == 0) {
            return &r->m[i];
        }
    }
    EXPECT_MSG(false, "%s is not there", name);
    return NULL;
}

static uint64_t u64(const struct reading *r, const char *name)
{
    return find(r, name)->value.uint64;
}

/* Of all that are below the prefix, but for the sum itself. */
static void check_sum(const struct reading *r, const char *prefix, const char *sum)
{
    uint64_t whole = 0;
    double real = 0;
    const loam_metric *s = find(r, sum);
    for (size_t i = 0; i < count; i++) {
        const char *name = r->m[i].name;
        if (strncmp(name, prefix, strlen(prefix)) != 0 || strcmp(name, sum) == 0 ||
            (strstr(name, "/total:") != NULL && strcmp(prefix, "/cpu/classes/") != 0)) {
            continue;
        }
        if (strcmp(prefix, "/cpu/classes/") == 0 && strchr(name + strlen(prefix), '/') != NULL &&
            strstr(name, "/total:") == NULL) {
            continue; /* part of a part */
        }
        whole += r->m[i].value.uint64;
        real += s->kind == LOAM_METRIC_FLOAT64 ? r->m[i].value.float64 : 0;
    }
    if (s->kind == LOAM_METRIC_FLOAT64) {
        EXPECT_MSG(fabs(real - s->value.float64) < 1e-6, "%s: %g, its parts %g", sum,
                   s->value.float64, real);
    } else {
        EXPECT_MSG(whole == s->value.uint64, "%s: %" PRIu64 ", its parts %" PRIu64, sum,
                   s->value.uint64, whole);
    }
}

static void check(const struct reading *r)
{
    check_sum(r, "/cpu/classes/", "/cpu/classes/total:cpu-seconds");
    check_sum(r, "/cpu/classes/gc/", "/cpu/classes/gc/total:cpu-seconds");
    check_sum(r, "/cpu/classes/scavenge/", "/cpu/classes/scavenge/total:cpu-seconds");
    check_sum(r, "/memory/classes/", "/memory/classes/total:bytes");
    check_sum(r, "/gc/scan/", "/gc/scan/total:bytes");
    EXPECT_EQ(u64(r, "/gc/cycles/total:gc-cycles"),
              u64(r, "/gc/cycles/automatic:gc-cycles") + u64(r, "/gc/cycles/forced:gc-cycles"));
    EXPECT_EQ(u64(r, "/gc/heap/objects:objects"),
              u64(r, "/gc/heap/allocs:objects") - u64(r, "/gc/heap/frees:objects"));
    EXPECT_EQ(total_of(find(r, "/gc/heap/allocs-by-size:bytes")->histogram),
              u64(r, "/gc/heap/allocs:objects"));
    EXPECT_EQ(total_of(find(r, "/gc/heap/frees-by-size:bytes")->histogram),
              u64(r, "/gc/heap/frees:objects"));
    EXPECT_LE(u64(r, "/gc/cleanups/executed:cleanups"), u64(r, "/gc/cleanups/queued:cleanups"));
    EXPECT_LE(u64(r, "/gc/finalizers/executed:finalizers"),
              u64(r, "/gc/finalizers/queued:finalizers"));
    EXPECT_LE(u64(r, "/sched/goroutines/running:goroutines"), u64(r, "/sched/gomaxprocs:threads"));
    for (size_t i = 0; i < count; i++) {
        const loam_histogram *h = &r->h[i];
        if (r->m[i].kind != LOAM_METRIC_HISTOGRAM) {
            EXPECT_EQ(h->buckets, 0);
            continue;
        }
        EXPECT_GT(h->buckets, 0);
        for (size_t b = 0; b < h->buckets; b++) {
            EXPECT(h->bounds[b] < h->bounds[b + 1]);
        }
    }
}

static void check_growth(const struct reading *a, const struct reading *b)
{
    for (size_t i = 0; i < count; i++) {
        if (!all[i].cumulative) {
            continue;
        }
        if (all[i].kind == LOAM_METRIC_FLOAT64) {
            EXPECT_MSG(a->m[i].value.float64 <= b->m[i].value.float64 + 1e-9,
                       "%s fell from %g to %g", all[i].name, a->m[i].value.float64,
                       b->m[i].value.float64);
        } else {
            EXPECT_MSG(a->m[i].value.uint64 <= b->m[i].value.uint64, "%s fell", all[i].name);
        }
        for (size_t k = 0; k < a->h[i].buckets; k++) {
            EXPECT_MSG(a->h[i].counts[k] <= b->h[i].counts[k], "%s, bucket %zu fell", all[i].name,
                       k);
        }
    }
}

/* ---- what happened ---- */

static _Atomic(size_t) ended;

static void at_end(void *arg)
{
    (void)arg;
    atomic_fetch_add(&ended, 1);
}

static void at_finalizer(void *obj, void *arg)
{
    (void)obj;
    at_end(arg);
}

static void count_themselves(void)
{
    uint64_t cycles = u64_of("/gc/cycles/forced:gc-cycles");
    uint64_t handshakes = total_of(histogram_of("/gc/handshakes/total:seconds"));
    uint64_t cleanups = u64_of("/gc/cleanups/executed:cleanups");
    uint64_t finalizers = u64_of("/gc/finalizers/executed:finalizers");
    uint64_t created = u64_of("/sched/goroutines-created:goroutines");
    for (int i = 0; i < 100; i++) {
        EXPECT(loam_add_cleanup(loam_alloc(100), at_end, NULL) != 0);
        EXPECT_EQ(loam_set_finalizer(loam_alloc(100), at_finalizer, NULL), 0);
        go(at_end, NULL);
    }
    WAIT_BY(30, atomic_load(&ended) >= 280,
            loam_gc()); /* some may lie where this stack still shows */
    for (int i = 0; i < 3; i++) {
        loam_gc();
    }
    WAIT_BY(30,
            u64_of("/gc/cleanups/executed:cleanups") >= cleanups + 90 &&
                u64_of("/gc/finalizers/executed:finalizers") >= finalizers + 90,
            loam_gc());
    EXPECT_GE(u64_of("/gc/cycles/forced:gc-cycles"), cycles + 3);
    EXPECT_GE(total_of(histogram_of("/gc/handshakes/total:seconds")), handshakes + 3 * 5);
    EXPECT_EQ(u64_of("/sched/goroutines-created:goroutines"), created + 100);
    EXPECT_GT(total_of(histogram_of("/sched/latencies:seconds")), 0);
    EXPECT_GT(u64_of("/gc/scan/stack:bytes"), 0);
}

static void settings(void)
{
    EXPECT_EQ(u64_of("/sched/gomaxprocs:threads"), loam_set_max_procs(0));
    int percent = loam_set_gc_percent(123);
    EXPECT_EQ(u64_of("/gc/gogc:percent"), 123);
    EXPECT_EQ(loam_set_gc_percent(-1), 123);
    EXPECT_EQ(u64_of("/gc/gogc:percent"), UINT64_MAX);
    loam_set_gc_percent(percent);
    int64_t limit = loam_set_memory_limit(INT64_C(1) << 40);
    EXPECT_EQ(u64_of("/gc/gomemlimit:bytes"), UINT64_C(1) << 40);
    loam_set_memory_limit(INT64_MAX);
    EXPECT_EQ(u64_of("/gc/gomemlimit:bytes"), INT64_MAX);
    loam_set_memory_limit(limit);
}

/* ---- beside others ---- */

static _Atomic(bool) stop;

static void *churn(void *arg)
{
    struct rng rng = rng_stream((uint64_t)(uintptr_t)arg);
    EXPECT_EQ(loam_attach(), 0);
    while (!atomic_load(&stop)) {
        void *p = loam_alloc(rng_below(&rng, 64) == 0 ? 100000 : rng_below(&rng, 2000));
        if (p != NULL && rng_below(&rng, 50) == 0) {
            (void)loam_add_cleanup(p, at_end, NULL);
        }
    }
    return NULL;
}

static void spawn_on(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        go(at_end, NULL);
        loam_sleep(MICROSECONDS(50));
    }
}

static void beside_others(void)
{
    static struct reading r[2];
    pthread_t threads[3];
    size_t rounds = test_scaled(300);
    for (size_t i = 0; i < COUNT_OF(threads); i++) {
        threads[i] = thread_start(churn, (void *)(i + 1));
    }
    go(spawn_on, NULL);
    read_all(&r[0]);
    for (size_t i = 1; i <= rounds; i++) {
        read_all(&r[i % 2]);
        check(&r[i % 2]);
        check_growth(&r[(i + 1) % 2], &r[i % 2]);
        if (i % 50 == 0) {
            loam_gc();
        }
    }
    WAIT_BY(30, total_of(histogram_of("/gc/handshakes/answers:seconds")) > 0, loam_gc());
    static loam_histogram assists, pauses;
    loam_metric both[] = {{.name = "/gc/mark/assists:seconds", .histogram = &assists},
                          {.name = "/gc/pauses:seconds", .histogram = &pauses}};
    loam_read_metrics(both, 2); /* in this order */
    EXPECT_GE(total_of(&pauses), total_of(&assists));
    EXPECT_GT(total_of(histogram_of("/gc/pauses:seconds")), 0);
    atomic_store(&stop, true);
    for (size_t i = 0; i < COUNT_OF(threads); i++) {
        thread_join(threads[i]);
    }
    go_all_ended();
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    start_watching();
    count = loam_metric_descriptions(&all);
    EXPECT_GT(count, 60);
    RUN(described);
    RUN(names_that_are_not_there);
    RUN(settings);
    RUN(count_themselves);
    RUN(beside_others);
    return test_end();
}
