/* latency.c - what each operation takes while a collector works beside it, and for how long it stops.
 *
 * Work        Live: binary trees of 4095 nodes of 48 bytes, three pointers each, `-live` GiB of
 *             them, in an array of roots. Each thread owns a share of the trees and, over and over,
 *                 10 of 16: sends a message of 512 bytes into a ring that all threads share,
 *                  4 of 16: exchanges two subtrees between two places of its trees,
 *                  2 of 16: replaces a subtree of 31 nodes by a new one.
 *             So pointers keep moving from memory that is marked to memory that is not, and objects
 *             pass from thread to thread.
 * Measured    Every operation, from the end of the one before: whatever held the thread up lies in
 *             some operation. Beside it what the collector itself reports as pauses.
 * Checked     Each node carries a check word; messages are summed when sent and when received.
 *             With -ops the whole is deterministic, and the checksum equal in all peers.
 * Twin        go/latency/main.go, line by line.
 */
#include "heap.h"

enum {
    TREE_LEVELS = 12,
    FRESH_LEVELS = 5,
    RING_SLOTS = 1 << 14,
    BODY_BYTES = 496,
    SAMPLE_NS = 20 * 1000 * 1000
};

typedef struct node node;
struct node {
    node *left, *right, *parent;
    uint64_t key;
    uint64_t check; /* node_check(key, level) */
    uint64_t spare;
};
HEAP_TYPE(node, left, right, parent);

/* A second object behind each message, so that a message that is freed too early shows. */
typedef struct note note;
struct note {
    uint64_t inverse;
    uint64_t spare[3];
};

typedef struct message message;
struct message {
    note *about;
    uint64_t stamp;
    unsigned char body[BODY_BYTES];
};
HEAP_TYPE(message, about);

struct worker {
    uint64_t rng;
    uint64_t first, ntrees; /* its share of the roots */
    uint64_t cursor;        /* in the ring */
    uint64_t ops;
    uint64_t sum; /* of the messages received */
    struct hist latency;
};

static node **roots;
static message **ring;
static struct worker workers[MAX_THREADS];

/* Written by main before the threads start. */
static uint64_t max_ops;
static uint64_t deadline_ns;
static unsigned char text[BODY_BYTES]; /* of every message */

/* Threads still at work: main watches it while it samples the pauses. */
static unsigned running;

static uint64_t node_check(uint64_t key, unsigned level)
{
    return (key ^ UINT64_C(0x5bd1e9955bd1e995)) * UINT64_C(0x2545f4914f6cdd1d) + level;
}

/* A tree of `levels` levels, its root at that level; leaves are at level 1. */
static node *grow(uint64_t *rng, node *parent, unsigned levels)
{
    node *n = HEAP_NEW(node);
    n->key = rng_next(rng);
    n->check = node_check(n->key, levels);
    HEAP_NULL(n->left);
    HEAP_NULL(n->right);
    HEAP_SET(n->parent, parent);
    if (levels > 1) {
        HEAP_SET(n->left, grow(rng, n, levels - 1));
        HEAP_SET(n->right, grow(rng, n, levels - 1));
    }
    return n;
}

static void cut(node *n)
{
    if (HEAP_IS_MANUAL && n != NULL) {
        cut(n->left);
        cut(n->right);
        HEAP_FREE(n);
    }
}

/* A random node `steps` below the root of a random tree of the worker's. */
static node *pick(struct worker *w, unsigned steps)
{
    node *n = roots[w->first + rng_below(&w->rng, w->ntrees)];
    uint64_t path = rng_next(&w->rng);
    for (unsigned i = 0; i < steps; i++) {
        n = (path >> i & 1) != 0 ? n->right : n->left;
    }
    return n;
}

static void op_replace(struct worker *w)
{
    node *at = pick(w, TREE_LEVELS - FRESH_LEVELS - 1);
    node *fresh = grow(&w->rng, at, FRESH_LEVELS);
    node *old;
    if ((fresh->key & 1) != 0) {
        old = at->left;
        HEAP_SET(at->left, fresh);
    } else {
        old = at->right;
        HEAP_SET(at->right, fresh);
    }
    cut(old);
}

static void op_swap(struct worker *w)
{
    node *a = pick(w, TREE_LEVELS - FRESH_LEVELS - 1);
    node *b = pick(w, TREE_LEVELS - FRESH_LEVELS - 1);
    node *from_a = a->left;
    node *from_b = b->right;
    HEAP_SET(a->left, from_b);
    HEAP_SET(from_b->parent, a);
    HEAP_SET(b->right, from_a);
    HEAP_SET(from_a->parent, b);
}

static uint64_t message_value(const message *m)
{
    if (m->about->inverse != ~m->stamp ||
        m->body[m->stamp % BODY_BYTES] != (unsigned char)m->stamp) {
        fprintf(stderr, "a message was lost\n");
        exit(1);
    }
    return m->stamp;
}

static void op_message(struct worker *w)
{
    message *m = HEAP_NEW(message);
    m->stamp = rng_next(&w->rng);
    memcpy(m->body, text, BODY_BYTES);
    m->body[m->stamp % BODY_BYTES] = (unsigned char)m->stamp;
    HEAP_NULL(m->about);
    note *about = HEAP_ALLOC_NOSCAN(sizeof(note));
    about->inverse = ~m->stamp;
    HEAP_SET(m->about, about);
    message *old = HEAP_EXCHANGE(&ring[w->cursor], m);
    w->cursor = (w->cursor + 1) % RING_SLOTS;
    if (old != NULL) {
        w->sum += message_value(old);
        HEAP_FREE(old->about);
        HEAP_FREE(old);
    }
}

static void *plant(void *arg)
{
    struct worker *w = arg;
    for (uint64_t i = 0; i < w->ntrees; i++) {
        HEAP_SET(roots[w->first + i], grow(&w->rng, NULL, TREE_LEVELS));
    }
    return NULL;
}

static void *change(void *arg)
{
    struct worker *w = arg;
    uint64_t before = clock_ns();
    while (w->ops < max_ops && before < deadline_ns) {
        uint64_t kind = rng_next(&w->rng) >> 60;
        if (kind < 2) {
            op_replace(w);
        } else if (kind < 6) {
            op_swap(w);
        } else {
            op_message(w);
        }
        w->ops++;
        uint64_t now = clock_ns();
        hist_add(&w->latency, now - before);
        before = now;
    }
    __atomic_fetch_sub(&running, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* Sum of all keys; ends the program where a node is not what it was. */
static uint64_t tree_sum(const node *n, const node *parent, unsigned levels)
{
    if (n == NULL || n->check != node_check(n->key, levels) || n->parent != parent) {
        fprintf(stderr, "a node was lost\n");
        exit(1);
    }
    if (levels == 1) {
        return n->key;
    }
    return n->key + tree_sum(n->left, n, levels - 1) + tree_sum(n->right, n, levels - 1);
}

/* Start the threads and look at the collector's pauses until they have ended. */
static void measure(unsigned threads, struct pause_log *log)
{
    pthread_t thread[MAX_THREADS];
    running = threads;
    for (unsigned i = 0; i < threads; i++) {
        thread_start(&thread[i], change, &workers[i]);
    }
    while (__atomic_load_n(&running, __ATOMIC_ACQUIRE) != 0) {
        sleep_ns(SAMPLE_NS);
        pause_log_take(log);
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
    }
    pause_log_take(log);
}

static void report(unsigned threads, uint64_t ntrees, double seconds, const struct pause_log *log,
                   uint64_t build_cycles)
{
    static struct hist all;
    uint64_t ops = 0;
    uint64_t sum = 0;
    for (unsigned i = 0; i < threads; i++) {
        hist_merge(&all, &workers[i].latency);
        ops += workers[i].ops;
        sum += workers[i].sum;
    }
    for (uint64_t i = 0; i < ntrees; i++) {
        sum += tree_sum(roots[i], NULL, TREE_LEVELS);
    }
    for (unsigned i = 0; i < RING_SLOTS; i++) {
        sum += ring[i] != NULL ? message_value(ring[i]) : 0;
    }
    result_begin("latency", HEAP_NAME);
    result_count("live_bytes", ntrees * ((1u << TREE_LEVELS) - 1) * sizeof(node));
    result_count("threads", threads);
    result_real("seconds", seconds);
    result_count("ops", ops);
    result_latency(&all);
    result_hist("op_hist_ns", &all);
    result_count("build_cycles", build_cycles);
    result_count("cycles", log->cycles - build_cycles);
    result_count("pause_max_ns", log->pauses.max);
    result_count("pause_count", log->pauses.count);
    result_count("pause_lost", log->lost);
    result_hist("pause_hist_ns", &log->pauses);
    result_end(sum);
}

int main(int argc, char **argv)
{
    options_begin(argc, argv);
    heap_init();
    double live_gib = option_real("live", 1);
    double seconds = option_real("seconds", 30);
    unsigned threads = option_threads(2);
    max_ops = option_count("ops", 0);
    result_as_json = option_flag("json");
    heap_option_gc_percent();
    options_end();

    uint64_t tree_bytes = ((1u << TREE_LEVELS) - 1) * sizeof(node);
    uint64_t per_thread = (uint64_t)(live_gib * 1073741824.0) / tree_bytes / threads;
    per_thread += per_thread == 0;
    HEAP_SET(roots, HEAP_NEW_POINTERS(node, per_thread * threads));
    HEAP_SET(ring, HEAP_NEW_POINTERS(message, RING_SLOTS));
    for (unsigned i = 0; i < threads; i++) {
        workers[i].rng = i + 1;
        workers[i].first = i * per_thread;
        workers[i].ntrees = per_thread;
        workers[i].cursor = (uint64_t)i * RING_SLOTS / threads;
    }
    memset(text, 'm', sizeof text);
    threads_run(threads, plant, workers, sizeof workers[0]);
    heap_gc();

    /* Pauses while the heap grew are another question: only what comes from here on counts. */
    static struct pause_log log;
    pause_log_take(&log);
    memset(&log.pauses, 0, sizeof log.pauses);
    log.lost = 0;
    uint64_t build_cycles = log.cycles;

    uint64_t began = clock_ns();
    deadline_ns = max_ops == 0 ? began + (uint64_t)(seconds * 1e9) : UINT64_MAX;
    max_ops = max_ops == 0 ? UINT64_MAX : max_ops;
    measure(threads, &log);
    double took = (double)(clock_ns() - began) / 1e9;
    report(threads, per_thread * threads, took, &log, build_cycles);
    return 0;
}
