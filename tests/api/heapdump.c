/* The heap as it was at one moment: a dump that DevTools reads, with every object that is reached, its size and what holds it;
 * and why one object is alive, in words. The program runs on meanwhile, whatever the reader does.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 120
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 120
 * TEST_RUN: stopped | GODEBUG=gcstoptheworld=1 | | 120
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1 | | 120
 * TEST_RUN: stress | GODEBUG=gcstress=2000,clobberfree=1,stacksleep=1 | | 180 | stress */
#include "../support/test.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include <loam/sched.h>
#include <loam/stats.h>

#include "../support/child.h"
#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/snapshot.h"
#include "../support/threads.h"

typedef struct node {
    struct node *next, *other;
    uint64_t filler[2];
} node;
LOAM_TYPE(node, next, other);

typedef struct cache {
    node *newest;
    size_t count;
    node *buckets[];
} cache;
LOAM_TYPE_FLEX(cache, buckets, newest);

typedef struct pair {
    node *left, *right;
} pair;
LOAM_TYPE(pair, left, right);

typedef struct scanned {
    uintptr_t hidden;
    uint64_t filler[5];
} scanned;
static void scanned_scan(const scanned *s, size_t bytes, loam_marker *m)
{
    for (size_t i = 0; i < bytes / sizeof *s; i++) {
        loam_mark(m, s[i].hidden == 0 ? NULL
                                      : (void *)~s[i].hidden); /* NOLINT: that is what it is for */
    }
}
LOAM_TYPE_SCANNED(scanned, scanned_scan);

/* One object each, whose type is its name. */
typedef struct by_thread {
    struct by_thread *next;
} by_thread;
LOAM_TYPE(by_thread, next);
typedef struct by_goroutine {
    struct by_goroutine *next;
} by_goroutine;
LOAM_TYPE(by_goroutine, next);
typedef struct by_finalizer {
    struct by_finalizer *next;
} by_finalizer;
LOAM_TYPE(by_finalizer, next);
typedef struct by_ephemeron {
    struct by_ephemeron *next;
} by_ephemeron;
LOAM_TYPE(by_ephemeron, next);

typedef struct by_stack {
    struct by_stack *next;
} by_stack;
LOAM_TYPE(by_stack, next);

typedef struct frame {
    by_stack *named;
    uintptr_t unnamed;
} frame;
LOAM_TYPE(frame, named);
LOAM_FRAME(frame);

static cache *the_cache;
static void **untyped;
static pair *pairs;
static scanned *the_scanned;
static loam_ephemeron *ephemeron;
static loam_weak *weak;
static __thread node *volatile local; /* nobody reads it but the library */

enum { BUCKETS = 5, LIST = 1000, PAIRS = 3 };

static node *node_new(node *next)
{
    node *n = LOAM_NEW(node);
    EXPECT_NOT_NULL(n);
    LOAM_SET(n->next, next);
    return n;
}

static void build(void *unused)
{
    (void)unused;
    LOAM_SET(the_cache, LOAM_NEW_FLEX(cache, BUCKETS));
    for (int i = 0; i < LIST; i++) {
        LOAM_SET(the_cache->buckets[3], node_new(the_cache->buckets[3]));
    }
    LOAM_SET(the_cache->newest, the_cache->buckets[3]);
    LOAM_SET(untyped, loam_alloc(10 * sizeof *untyped));
    LOAM_SET(untyped[7], the_cache->newest->next);
    LOAM_SET(pairs, LOAM_NEW_ARRAY(pair, PAIRS));
    LOAM_SET(pairs[2].right, node_new(NULL));
    LOAM_SET(the_scanned, LOAM_NEW(scanned));
    node *kept = node_new(NULL);
    loam_store_as(&the_scanned->hidden, ~(uintptr_t)kept, NULL, kept);
    LOAM_SET(ephemeron, loam_ephemeron_make(the_cache, LOAM_NEW(by_ephemeron)));
    LOAM_SET(weak, loam_weak_make(node_new(NULL)));
}

enum { NODES = LIST + 2 }; /* the one that is held weakly is not among them, or may be */

static void types_sizes_and_edges(void)
{
    struct snapshot s;
    size_t at = 0;
    loam_gc();
    snapshot_take(&s);
    size_t nodes = snapshot_named(&s, "node", &at);
    EXPECT(nodes == NODES || nodes == NODES + 1);
    EXPECT_EQ(snapshot_node(&s, at, NODE_SELF_SIZE), loam_usable_size(the_cache->newest));
    EXPECT_EQ(snapshot_named(&s, "cache", &at), 1);
    EXPECT_EQ(snapshot_node(&s, at, NODE_SELF_SIZE), loam_usable_size(the_cache));
    EXPECT_EQ(snapshot_node(&s, at, NODE_EDGE_COUNT), 2);
    size_t newest = snapshot_follow(&s, at, "newest", 0);
    EXPECT_NE(newest, 0);
    EXPECT_EQ(snapshot_follow(&s, at, NULL, 3), newest);
    size_t base_id = snapshot_node(&s, at, NODE_ID);
    EXPECT_EQ(base_id % 2, 1);
    EXPECT_EQ((int64_t)(snapshot_node(&s, newest, NODE_ID) - base_id),
              ((intptr_t)the_cache->newest - (intptr_t)the_cache) / 4);
    size_t length = 0;
    for (size_t n = newest; n != 0; n = snapshot_follow(&s, n, "next", 0)) {
        EXPECT_STR_EQ(snapshot_name(&s, n), "node");
        length++;
    }
    EXPECT_EQ(length, LIST);
    EXPECT_EQ(snapshot_named(&s, "pair", &at), 1);
    EXPECT_EQ(snapshot_node(&s, at, NODE_EDGE_COUNT), 1);
    EXPECT_STR_EQ(snapshot_name(&s, snapshot_follow(&s, at, "[2].right", 0)), "node");
    EXPECT_EQ(snapshot_named(&s, "scanned", &at), 1);
    EXPECT_EQ(snapshot_node(&s, at, NODE_EDGE_COUNT), 1);
    EXPECT_EQ(snapshot_named(&s, "by_ephemeron", &at), 1);
    EXPECT_GE(snapshot_named(&s, "loam_weak", &at), 1);
    EXPECT_EQ(snapshot_named(&s, "(GC roots)", &at), 1);
    EXPECT_EQ(at, 1);
    EXPECT_EQ(snapshot_named(&s, "(globals)", &at), 1);
    EXPECT_STR_EQ(snapshot_name(&s, snapshot_follow(&s, at, "the_cache [heapdump]", 0)), "cache");
    size_t array = snapshot_follow(&s, at, "untyped [heapdump]", 0);
    EXPECT_STR_EQ(snapshot_name(&s, array), "untyped");
    EXPECT_EQ(snapshot_follow(&s, array, NULL, 7), snapshot_follow(&s, newest, "next", 0));
    snapshot_free(&s);
}

/* What a dump says twice of the same object is the same. */
static void ids_stay(void)
{
    struct snapshot a, b;
    size_t in_a = 0, in_b = 0;
    snapshot_take(&a);
    loam_gc();
    snapshot_take(&b);
    EXPECT_EQ(snapshot_named(&a, "cache", &in_a), 1);
    EXPECT_EQ(snapshot_named(&b, "cache", &in_b), 1);
    EXPECT_EQ(snapshot_node(&a, in_a, NODE_ID), snapshot_node(&b, in_b, NODE_ID));
    snapshot_free(&a);
    snapshot_free(&b);
}

/* ---- roots of all kinds ---- */

static _Atomic(bool) ready, leave;

static void *hold_on_stack(void *unused)
{
    (void)unused;
    EXPECT_EQ(loam_attach(), 0);
    by_thread *volatile mine = LOAM_NEW(by_thread);
    atomic_store(&ready, true);
    while (!atomic_load(&leave)) {
        sleep_us(200);
    }
    EXPECT_NULL(mine->next);
    return NULL;
}

static loam_chan *gate;
static _Atomic(bool) parked;

static void hold_in_goroutine(void *unused)
{
    (void)unused;
    by_goroutine *volatile mine = LOAM_NEW(by_goroutine);
    atomic_store(&parked, true);
    EXPECT(!loam_chan_recv(gate, NULL));
    EXPECT_NULL(mine->next);
}

/* Its own copy of the address is none. */
NOINLINE static char *why_disguised(uintptr_t obj, int *error)
{
    int fd = memfd_create("why", MFD_CLOEXEC);
    static __thread volatile uintptr_t asked; /* read as late as can be */
    asked = obj;
    errno = 0;
    int got = loam_why_alive(reveal(asked), fd);
    *error = got == 0 ? 0 : errno;
    char *text = snapshot_read_file(fd);
    close(fd);
    return text;
}

static char *why(const void *obj, int *error)
{
    return why_disguised(disguise(obj), error);
}

static void expect_why(const void *obj, const char *first, const char *second)
{
    int error;
    char *text = why(obj, &error);
    EXPECT_EQ(error, 0);
    EXPECT_CONTAINS(text, "is reached from:\n");
    EXPECT_CONTAINS(text, first);
    EXPECT_CONTAINS(text, second);
    free(text);
}

static void why_it_is_alive(void)
{
    expect_why(the_cache, "(cache, ", "  global the_cache [heapdump]\n");
    expect_why(the_cache->buckets[3], "  global the_cache [heapdump]\n  -> cache 0x", " .");
    expect_why((char *)the_cache->buckets[3]->next->next + 8, "  -> node 0x", " .next\n");
    expect_why(pairs[2].right, "  global pairs [heapdump]\n", " [2].right\n");
    expect_why(untyped[7], "(node, ", "  global ");
    node *n = (node *)~the_scanned->hidden; /* NOLINT: as its scan function */
    expect_why(n, "  global the_scanned [heapdump]\n  -> scanned 0x",
               " what its scan function names\n");
}

static void why_by_roots(void)
{
    node **range = calloc(4, sizeof *range);
    EXPECT_EQ(loam_add_roots(range, 4 * sizeof *range), 0);
    LOAM_SET(range[2], node_new(NULL));
    char where[64];
    snprintf(where, sizeof where, "  registered word 0x%" PRIxPTR "\n", (uintptr_t)&range[2]);
    expect_why(range[2], "(node, ", where);
    EXPECT_EQ(loam_remove_roots(range, 4 * sizeof *range), 0);
    free(range);

    node *pinned = loam_pin(node_new(NULL));
    expect_why(pinned, "(node, ", "  pin\n");
    loam_unpin(pinned);

    local = node_new(NULL);
    expect_why(local, "(node, ", ", which asks, ");
    local = NULL;
}

static uintptr_t garbage;

static void build_garbage(void *unused)
{
    (void)unused;
    garbage = disguise(node_new(NULL));
}

static void why_not(void)
{
    static int not_there;
    int error;
    free(why(&not_there, &error));
    EXPECT_EQ(error, EINVAL);
    free(why(NULL, &error));
    EXPECT_EQ(error, EINVAL);
    loam_set_gc_percent(-1);
    size_t dead = 0;
    for (int i = 0; i < 20; i++) { /* any one may be seen on a stack */
        call_deep(build_garbage, NULL);
        char *text = why_disguised(garbage, &error);
        dead += error == ESRCH && strstr(text, "by nothing") != NULL ? 1 : 0;
        EXPECT(error == ESRCH || error == 0 || error == EINVAL);
        free(text);
    }
    EXPECT(dead > 10 || test_godebug("gcstress") || TEST_TSAN); /* its frames keep copies */
    loam_set_gc_percent(100);
}

static void threads_and_goroutines(void)
{
    struct snapshot s;
    size_t at;
    pthread_t thread = thread_start(hold_on_stack, NULL);
    LOAM_SET(gate, loam_chan_make_bytes(0, 0));
    go_named("keeper", hold_in_goroutine, NULL);
    WAIT_FOR(10, atomic_load(&ready) && atomic_load(&parked));
    for (int i = 0; i < 4; i++) { /* its stack sleeps at the end */
        loam_gc();
        sleep_us(20000);
    }
    snapshot_take(&s);
    EXPECT_EQ(snapshot_named(&s, "by_thread", &at), 1);
    EXPECT_EQ(snapshot_named(&s, "by_goroutine", &at), 1);
    size_t goroutine = 0;
    for (size_t i = 0; i < s.nnodes; i++) {
        goroutine = strstr(snapshot_name(&s, i), "goroutine ") != NULL &&
                            strstr(snapshot_name(&s, i), ": keeper") != NULL
                        ? i
                        : goroutine;
    }
    EXPECT_NE(goroutine, 0);
    bool holds = false;
    for (size_t e = s.first_edge[goroutine]; e < s.first_edge[goroutine + 1]; e++) {
        holds = holds || snapshot_target(&s, e) == at;
    }
    EXPECT(holds);
    snapshot_free(&s);
    atomic_store(&leave, true);
    thread_join(thread);
    loam_chan_close(gate);
}

/* What lies on stacks of the program's own: a loam_stack, a managed one that it has entered, one that it has left. */
static loam_mstack *left, *entered;

static void push_frame(loam_mstack *s)
{
    EXPECT_EQ(loam_mstack_enter(s), 0);
    frame *f = LOAM_PUSH(s, frame, 1);
    EXPECT_NOT_NULL(f);
    f->named = LOAM_NEW(by_stack);
}

static void stacks_of_the_program(void)
{
    struct snapshot s;
    size_t at;
    LOAM_SET(left, loam_mstack_make(0));
    LOAM_SET(entered, loam_mstack_make(0));
    push_frame(left);
    loam_mstack_leave(left);
    push_frame(entered);
    by_stack **stack = calloc(64, sizeof *stack);
    loam_stack *added = loam_stack_add(stack, 64 * sizeof *stack, NULL);
    stack[5] = LOAM_NEW(by_stack);
    scrub_stack();
    snapshot_take(&s);
    EXPECT_EQ(snapshot_named(&s, "by_stack", &at), 3);
    EXPECT_EQ(snapshot_named(&s, "loam_mstack", &at), 2);
    EXPECT_STR_EQ(snapshot_name(&s, snapshot_follow(&s, at, "a frame on it", 0)), "by_stack");
    snapshot_free(&s);
    loam_mstack_leave(entered);
    loam_stack_remove(added);
    free(stack);
}

/* A value goes with its key, through a chain of them, whichever is reached first. */
static void chains_of_ephemerons(void)
{
    enum { CHAIN = 50 };
    struct snapshot s;
    size_t at, before;
    loam_ephemeron **chain = LOAM_NEW_POINTERS(loam_ephemeron, CHAIN);
    snapshot_take(&s);
    before = snapshot_named(&s, "by_ephemeron", &at);
    snapshot_free(&s);
    void *key = the_cache;
    for (int i = CHAIN - 1; i >= 0; i--) { /* the last one has the key that all hang on */
        by_ephemeron *value = LOAM_NEW(by_ephemeron);
        LOAM_SET(chain[i], loam_ephemeron_make(key, value));
        key = value;
    }
    scrub_stack();
    snapshot_take(&s);
    EXPECT_EQ(snapshot_named(&s, "by_ephemeron", &at), before + CHAIN);
    snapshot_free(&s);
    EXPECT_NOT_NULL(chain);
    loam_keep_alive(chain);
}

static _Atomic(int) finalized;

static void on_end(void *obj, void *arg)
{
    (void)obj, (void)arg;
    struct snapshot s;
    snapshot_take(&s); /* here, too */
    snapshot_free(&s);
    atomic_fetch_add(&finalized, 1);
}

static void build_finalizable(void *unused)
{
    (void)unused;
    by_finalizer *first = LOAM_NEW(by_finalizer);
    LOAM_SET(first->next, LOAM_NEW(by_finalizer));
    EXPECT_EQ(loam_set_finalizer(first, on_end, NULL), 0);
}

static void finalizers(void)
{
    struct snapshot s;
    size_t at;
    loam_set_gc_percent(-1);
    call_deep(build_finalizable, NULL);
    snapshot_take(&s);
    EXPECT(snapshot_named(&s, "by_finalizer", &at) == 2 || test_godebug("gcstress"));
    snapshot_free(&s);
    loam_set_gc_percent(100);
    COLLECT_UNTIL(60, atomic_load(&finalized) == 1);
}

/* ---- descriptors ---- */

static void bad_descriptors(void)
{
    int fds[2];
    EXPECT_ERRNO(loam_write_heap_dump(-1), -1, EBADF);
    EXPECT_ERRNO(loam_why_alive(the_cache, -1), -1, EBADF);
    EXPECT_EQ(pipe(fds), 0);
    EXPECT_ERRNO(loam_write_heap_dump(fds[0]), -1, EBADF);
    close(fds[0]);
    EXPECT_ERRNO(loam_write_heap_dump(fds[1]), -1, EPIPE); /* and no signal */
    close(fds[1]);
    EXPECT_ERRNO(loam_write_heap_dump(fds[1]), -1, EBADF);
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    if (full >= 0) {
        EXPECT_ERRNO(loam_write_heap_dump(full), -1, ENOSPC);
        close(full);
    }
    struct snapshot s;
    snapshot_take(&s);
    snapshot_free(&s);
}

static _Atomic(int) child_signals;

static void on_child(int signo)
{
    (void)signo;
    atomic_fetch_add(&child_signals, 1);
}

struct dumper {
    int fd;
    int error;
    _Atomic(bool) done;
};

static void *dump(void *arg)
{
    struct dumper *d = arg;
    d->error = loam_write_heap_dump(d->fd) == 0 ? 0 : errno;
    atomic_store(&d->done, true);
    return NULL;
}

/* Nobody reads: the others allocate, collect, and see no child; then the reader goes away. */
static void reader_that_is_slow(void)
{
    int fds[2];
    struct dumper d = {0};
    item *list = list_new(test_scaled(200000));
    EXPECT_EQ(pipe2(fds, O_CLOEXEC), 0);
    fcntl(fds[1], F_SETPIPE_SZ, 4096);
    fcntl(fds[1], F_SETFL, O_NONBLOCK);
    signal(SIGCHLD, on_child);
    d.fd = fds[1];
    pthread_t thread = thread_start(dump, &d);
    char first;
    EXPECT_EQ(read(fds[0], &first, 1), 1); /* it has begun */
    for (int i = 0; i < 3; i++) {
        list_new(test_scaled(10000));
        loam_gc();
        EXPECT(emulated() || waitpid(-1, NULL, WNOHANG) == -1);
    }
    EXPECT(!atomic_load(&d.done));
    list_check(list);
    close(fds[0]);
    thread_join(thread);
    close(fds[1]);
    EXPECT_EQ(d.error, EPIPE);
    EXPECT(emulated() || atomic_load(&child_signals) == 0);
    signal(SIGCHLD, SIG_DFL);
}

/* The copies are made one after the other, and their ends waited for side by side, and beside forks. */
static void *dump_often(void *arg)
{
    (void)arg;
    int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    for (int i = 0; i < 5; i++) {
        EXPECT_EQ(loam_write_heap_dump(fd), 0);
        int error;
        free(why(the_cache, &error));
        EXPECT_EQ(error, 0);
    }
    close(fd);
    return NULL;
}

static void several_at_a_time(void)
{
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        threads[i] = thread_start(dump_often, NULL);
    }
    for (int i = 0; i < 5 && !TEST_TSAN && !emulated(); i++) {
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) {
            list_new(100);
            loam_gc();
            _exit(0);
        }
        child_wait(pid);
        loam_gc();
    }
    for (int i = 0; i < THREADS; i++) {
        thread_join(threads[i]);
    }
}

static void in_forks_child(void)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct snapshot s;
        size_t at;
        snapshot_take(&s);
        _exit(snapshot_named(&s, "cache", &at) == 1 ? 0 : 1);
    }
    child_wait(pid);
}

static void take_in_goroutine(void *unused)
{
    (void)unused;
    struct snapshot s;
    size_t at;
    snapshot_take(&s);
    EXPECT_EQ(snapshot_named(&s, "cache", &at), 1);
    snapshot_free(&s);
}

static void in_a_goroutine(void)
{
    go_run(take_in_goroutine, NULL);
}

/* ---- how long ---- */

static _Atomic(bool) stop_watch;
static uint64_t longest_ns;

/* A thread that runs: for how long is it kept from it? */
static void *watch_clock(void *unused)
{
    (void)unused;
    EXPECT_EQ(loam_attach(), 0);
    uint64_t last = now_ns();
    atomic_store(&ready, true);
    while (!atomic_load(&stop_watch)) {
        uint64_t now = now_ns();
        longest_ns = now - last > longest_ns ? now - last : longest_ns;
        last = now;
    }
    return NULL;
}

static void a_million(void)
{
    size_t count = go_scaled(1000000);
    item *list = list_new(count);
    atomic_store(&ready, false);
    pthread_t thread = thread_start(watch_clock, NULL);
    WAIT_FOR(10, atomic_load(&ready));
    int fd = memfd_create("dump", MFD_CLOEXEC);
    loam_memstats before, after;
    loam_read_memstats(&before);
    uint64_t start = now_ns();
    EXPECT_EQ(loam_write_heap_dump(fd), 0);
    double took = seconds_since(start);
    loam_read_memstats(&after);
    atomic_store(&stop_watch, true);
    thread_join(thread);
    struct stat st;
    EXPECT_EQ(fstat(fd, &st), 0);
    printf(
        "%zu objects: %.3f s, %zu MB; another thread was stopped for %.3f ms, and did not run for "
        "%.3f ms at most\n",
        count, took, (size_t)st.st_size >> 20,
        (double)(after.pause_total_ns - before.pause_total_ns) / 1e6, (double)longest_ns / 1e6);
    char *text = snapshot_read_file(fd);
    struct snapshot s;
    size_t at;
    snapshot_parse(&s, text);
    EXPECT_GE(snapshot_named(&s, "item", &at), count);
    snapshot_free(&s);
    free(text);
    close(fd);
    EXPECT_EQ(list_check(list), count);
}

/* ---- while everybody writes ---- */

enum { SLOTS = 64 };
static item *shared[SLOTS];
static _Atomic(bool) done;

static void on_cleanup(void *arg)
{
    (void)arg;
}

static void *mutate(void *arg)
{
    struct team_member *me = arg;
    item *mine = NULL;
    while (!atomic_load(&done)) {
        size_t i = rng_below(&me->rng, SLOTS);
        mine = item_new(rng_next(&me->rng), rng_below(&me->rng, 8) == 0 ? NULL : mine);
        LOAM_SET(shared[i], mine);
        if (rng_below(&me->rng, 64) == 0) {
            loam_add_cleanup(mine, on_cleanup, NULL);
        }
        mine = rng_below(&me->rng, 100) == 0 ? NULL : mine;
    }
    return NULL;
}

static void dumps_of_a_moving_heap(void)
{
    static struct team team;
    team_start(&team, TEST_TSAN ? 3 : TEST_SANITIZED ? 8 : 32, mutate, NULL);
    for (size_t i = 0; i < (test_godebug("gcstress") ? 10 : TEST_TSAN ? 1 : 4); i++) {
        struct snapshot s;
        snapshot_take(&s);
        snapshot_free(&s);
        int error;
        free(why(the_cache->newest, &error));
        EXPECT_EQ(error, 0);
    }
    atomic_store(&done, true);
    team_join(&team);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    call_deep(build, NULL);
    RUN(types_sizes_and_edges);
    RUN(ids_stay);
    RUN(why_it_is_alive);
    RUN(why_by_roots);
    RUN(why_not);
    RUN(threads_and_goroutines);
    RUN(stacks_of_the_program);
    RUN(chains_of_ephemerons);
    RUN(finalizers);
    RUN(bad_descriptors);
    RUN(reader_that_is_slow);
    RUN(several_at_a_time);
    RUN(in_forks_child);
    RUN(in_a_goroutine);
    RUN(dumps_of_a_moving_heap);
    RUN(a_million);
    return test_end();
}
