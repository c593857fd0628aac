/* run.c - one measured run: starts the threads, watches the collector, checks, and sums up. */
#define _XOPEN_SOURCE 700
#include "search.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { SAMPLE_NS = 100000000, CHECKED_QUERIES = 200 };

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void sleep_until(uint64_t when_ns)
{
    struct timespec t = {(time_t)(when_ns / 1000000000u), (long)(when_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ; /* the collector reaches threads by a signal */
}

/* ---- the indexing threads ---- */

struct indexer {
    pthread_t thread;
    struct corpus *corpus;
    size_t number, of; /* this one of so many; has every of-th file */
    atomic_bool *stop;
};

static void index_file(struct corpus *c, size_t file)
{
    struct source *s = &c->files[file];
    char *text = loam_alloc_noscan(s->size); /* garbage as soon as it is indexed */
    if (!source_read(s, text))
        return;
    if (s->fingerprint == NULL)
        source_take_fingerprint(s, text);
    index_add((uint32_t)file, text, s->size);
}

/* First everything once, then for ever: drop a document, bring back one that was dropped a while
 * ago. One in twenty is away at any time. */
static void *indexer_main(void *arg)
{
    struct indexer *x = arg;
    struct corpus *c = x->corpus;
    size_t own = (c->count - x->number + x->of - 1) / x->of, away = own / 20 + 1;
    for (size_t i = 0; own > 0 && !atomic_load_explicit(x->stop, memory_order_relaxed); i++) {
        if (i < own) {
            index_file(c, x->number + i * x->of);
            continue;
        }
        index_drop((uint32_t)(x->number + i % own * x->of));
        if (i >= own + away)
            index_file(c, x->number + (i - away) % own * x->of);
    }
    return NULL;
}

/* ---- watching ---- */

struct watch {
    loam_memstats now;
    uint32_t cycles_seen;
    uint64_t longest_stop_ns;
    double worst_overshoot;
};

/* pause_ns is a ring of the last 256 cycles: looked at often enough, it tells of every one. */
static void watch_sample(struct watch *w)
{
    loam_memstats *m = &w->now;
    loam_read_memstats(m);
    if (m->num_gc - w->cycles_seen > 256)
        w->cycles_seen = m->num_gc - 256;
    for (; w->cycles_seen != m->num_gc; w->cycles_seen++)
        if (m->pause_ns[w->cycles_seen % 256] > w->longest_stop_ns)
            w->longest_stop_ns = m->pause_ns[w->cycles_seen % 256];
    double overshoot = (double)m->heap_alloc / (double)m->next_gc;
    if (overshoot > w->worst_overshoot)
        w->worst_overshoot = overshoot;
}

static void progress(const struct watch *w, double seconds, uint64_t queries, bool tty)
{
    struct index_counts counts;
    index_count(&counts);
    fprintf(stderr,
            "%s%5.1f s  %zu documents, %zu terms, heap %" PRIu64 " MB, %" PRIu32
            " cycles, longest stop %.3f ms, %" PRIu64 " queries%s",
            tty ? "\r\033[K" : "", seconds, counts.documents, counts.terms, w->now.heap_alloc >> 20,
            w->now.num_gc, (double)w->longest_stop_ns / 1e6, queries, tty ? "" : "\n");
}

static void watch_until_over(struct watch *w, uint64_t start, const struct options *o,
                             struct searcher *s)
{
    bool tty = isatty(STDERR_FILENO);
    uint64_t shown = start, end = start + (uint64_t)o->seconds * 1000000000u;
    for (uint64_t t = start; t < end; t += SAMPLE_NS) {
        sleep_until(t + SAMPLE_NS);
        watch_sample(w);
        if (now_ns() - shown >= (tty ? 200000000u : 3000000000u)) {
            shown = now_ns();
            progress(w, (double)(shown - start) / 1e9,
                     atomic_load_explicit(&s->queries, memory_order_relaxed), tty);
        }
    }
    if (tty)
        fprintf(stderr, "\r\033[K");
}

/* ---- the run ---- */

static void out_of_memory(void *arg)
{
    (void)arg;
    fprintf(stderr, "search: out of memory\n");
    exit(1);
}

static void start(pthread_t *thread, void *(*main)(void *), void *arg)
{
    int error = pthread_create(thread, NULL, main, arg);
    if (error != 0) {
        errno = error;
        perror("search: pthread_create");
        exit(1);
    }
}

void run(const struct options *o, struct figures *out)
{
    loam_set_oom_handler(out_of_memory, NULL); /* so that nobody has to look for NULL */

    /* None of these holds a pointer into the heap, so they may be where they like. */
    static struct histogram latency;
    struct corpus corpus;
    corpus_load(&corpus, o->folders, o->folder_count, (size_t)o->max_mb << 20);
    atomic_bool stop = false;
    struct searcher searcher = {.corpus = &corpus, .latency = &latency};
    struct indexer *indexers = calloc((size_t)o->threads, sizeof *indexers);
    if (indexers == NULL)
        out_of_memory(NULL);
    index_init(corpus.count);

    struct watch watch = {0};
    pthread_t searching;
    uint64_t began = now_ns();
    for (size_t i = 0; i < (size_t)o->threads; i++) {
        indexers[i] = (struct indexer){
            .corpus = &corpus, .number = i, .of = (size_t)o->threads, .stop = &stop};
        start(&indexers[i].thread, indexer_main, &indexers[i]);
    }
    start(&searching, searcher_main, &searcher);
    watch_until_over(&watch, began, o, &searcher);
    atomic_store_explicit(&stop, true, memory_order_relaxed);
    atomic_store_explicit(&searcher.stop, true, memory_order_relaxed);
    pthread_join(searching, NULL);
    for (size_t i = 0; i < (size_t)o->threads; i++)
        pthread_join(indexers[i].thread, NULL);
    watch_sample(&watch);
    double seconds = (double)(now_ns() - began) / 1e9;

    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    *out = (struct figures){
        .queries = latency.total,
        .p50_ns = histogram_quantile(&latency, 0.5),
        .p99_ns = histogram_quantile(&latency, 0.99),
        .p999_ns = histogram_quantile(&latency, 0.999),
        .max_ns = latency.max,
        .objects_per_second = (uint64_t)((double)watch.now.mallocs / seconds),
        .bytes_per_second = (uint64_t)((double)watch.now.total_alloc / seconds),
        .cycles = watch.now.num_gc,
        .longest_stop_ns = watch.longest_stop_ns,
        .peak_rss_bytes = (uint64_t)usage.ru_maxrss * 1024,
        .worst_overshoot = watch.worst_overshoot,
    };
    index_count(&out->counts);
    out->checked = check_against_scan(&corpus, CHECKED_QUERIES);

    loam_gc(); /* what is left now is alive */
    loam_read_memstats(&watch.now);
    out->live_bytes = watch.now.heap_alloc;
    out->goal_bytes = watch.now.next_gc;
    free(indexers);
}
