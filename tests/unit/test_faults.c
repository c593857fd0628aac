/* test_faults.c - the system refuses the Nth call, for every N.
 *
 * Claim   Whatever call of the system is refused (once, or that one and all later ones), every step of
 *         a scenario succeeds or says NULL, -1 or 0 with ENOMEM, EAGAIN or EMFILE; nothing aborts or hangs;
 *         when the system gives again, the same scenario succeeds, what was there before and what
 *         succeeded meanwhile is intact, and the heap's own check holds.
 * Oracle  a list of objects whose contents are known, made before; patterns in what is made meanwhile.
 *         A handshake keeps its promise about stores even if there is no memory to look for them.
 * Model   a child process per scenario, N and way of refusing; N grows until the scenario does not
 *         come to its Nth call.
 * Replay  --only NAME, --at N, --repeat: that child alone, in this process.
 *
 * TEST_TIMEOUT: 240
 */
#include "gc/gc.h"

#include "os/os.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <loam/sched.h>

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

enum { NOT_REACHED = 10, REACHED = 11, BROKEN = 12 }; /* exit status of a child */
enum { HANGS_AFTER = 30 };                            /* seconds */

#define DIE(...)                                        \
    do {                                                \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
        fprintf(stderr, __VA_ARGS__);                   \
        fputc('\n', stderr);                            \
        _exit(BROKEN);                                  \
    } while (0)

/* -- steps ------------------------------------------------------------------------------------- */

static _Atomic int refused; /* steps of the scenario that did not succeed */

/* A step succeeded, or says why not. */
static bool step(bool ok, const char *what)
{
    if (!ok) {
        if (errno != ENOMEM && errno != EAGAIN && errno != EMFILE) {
            DIE("%s: refused with errno %d (%s)", what, errno, strerror(errno));
        }
        add_rlx(&refused, 1);
    }
    return ok;
}
#define STEP(expr) (errno = 0, step((expr), #expr))

static void lift(void)
{
    store_rlx(&os_fail_at, 0);
    store_rlx(&os_fail_repeat, false);
}

/* -- what must stay intact --------------------------------------------------------------------- */

typedef struct rec {
    struct rec *next;
    unsigned char *bytes; /* noscan; size of them, each `fill` */
    size_t size;
    unsigned char fill;
} rec;
LOAM_TYPE(rec, next, bytes);

static rec *witness, *made; /* made before the refusal; while it lasts */
static size_t nmade;

/* Some bytes, the last among them: large ones shall not be touched as a whole. */
static size_t probe_after(size_t i, size_t size)
{
    size_t step_bytes = size < MIB(1) ? 1000 : size / 16;
    return i + step_bytes < size ? i + step_bytes : i + 1 < size ? size - 1 : size;
}

static void fill_bytes(unsigned char *p, size_t size, unsigned char fill)
{
    for (size_t i = 0; i < size; i = probe_after(i, size)) {
        if (p[i] != 0) {
            DIE("byte %zu of %zu fresh ones is %u", i, size, p[i]);
        }
        p[i] = fill;
    }
}

static bool list_add(rec **list, size_t size, unsigned char fill)
{
    rec *l;
    unsigned char *p;
    if (!STEP((p = loam_alloc_noscan(size)) != NULL)) {
        return false;
    }
    fill_bytes(p, size, fill);
    if (!STEP((l = LOAM_NEW(rec)) != NULL)) {
        return false;
    }
    if (l->next != NULL || l->bytes != NULL || l->size != 0) {
        DIE("a fresh object is not zero");
    }
    l->size = size;
    l->fill = fill;
    LOAM_SET(l->bytes, p);
    LOAM_SET(l->next, *list);
    LOAM_SET(*list, l);
    return true;
}

static bool make(size_t size)
{
    nmade++;
    bool ok = list_add(&made, size, (unsigned char)(nmade % 251 + 1));
    nmade -= !ok;
    return ok;
}

static size_t list_check(const rec *l, const char *which)
{
    size_t n = 0;
    for (; l != NULL; l = l->next, n++) {
        for (size_t i = 0; i < l->size; i = probe_after(i, l->size)) {
            if (l->bytes[i] != l->fill) {
                DIE("%s object %zu: byte %zu is %u, not %u", which, n, i, l->bytes[i], l->fill);
            }
        }
    }
    return n;
}

enum { WITNESSES = 500 };

static void start_library(void)
{
    for (int i = 0; i < WITNESSES; i++) {
        list_add(&witness, (size_t)i * 7 % 900, (unsigned char)(i % 250 + 1));
    }
    if (load_rlx(&refused) != 0) {
        DIE("memory is refused without a fault");
    }
}

static void check_everything(bool started_before)
{
    size_t n = list_check(witness, "earlier");
    if (n != (started_before ? WITNESSES : 0)) {
        DIE("%zu of the earlier objects are left", n);
    }
    n = list_check(made, "new");
    if (n != nmade) {
        DIE("%zu of %zu new objects are left", n, nmade);
    }
    struct m *m = m_self;
    struct m_wait w;
    if (m != NULL) { /* the thread sanitizer holds the library's signal back while it waits */
        m_begin_wait(m, &w);
    }
    mutex_lock(&gc.cycle_lock); /* no sweeper in the background */
    if (m != NULL) {
        m_end_wait(m, &w);
    }
    if (heap.base != 0 && !mheap_check()) {
        DIE("mheap_check fails");
    }
    mutex_unlock(&gc.cycle_lock);
}

/* -- scenarios --------------------------------------------------------------------------------- */

static void first_alloc(void)
{
    make(16);
    make(100);
}

static void first_attach(void)
{
    STEP(loam_attach() == 0);
    make(16);
}

static void first_gc(void)
{
    loam_gc();
    (void)loam_set_gc_percent(100);
    make(16);
}

static void first_type(void)
{
    size_t offsets[] = {0, 16};
    const loam_type *t;
    STEP((t = loam_type_make("first", 24, offsets, 2)) != NULL);
    if (t != NULL) {
        STEP(loam_new(t, 1) != NULL);
    }
}

static void first_end(void)
{
    loam_enter_blocking();
    loam_exit_blocking();
    int64_t min = loam_set_min_heap(-1);
    if (min < -1) {
        DIE("loam_set_min_heap(-1) is %lld", (long long)min);
    }
    (void)loam_set_max_procs(0);
    static int outside[4];
    STEP(loam_add_roots(outside, sizeof outside) == 0 || errno == ENOMEM);
    STEP(loam_pin(outside) == outside);
    static char stack[4096];
    loam_stack *s;
    if (STEP((s = loam_stack_add(stack, sizeof stack, NULL)) != NULL)) {
        loam_stack_remove(s);
    }
}

/* Small objects of many size classes until the heap has grown twice. */
static void grow_small(void)
{
    for (int i = 0; i < 600; i++) {
        make((size_t)i % 300 * 16);
        make(6000);
    }
}

static void grow_large(void)
{
    for (int i = 0; i < 4; i++) {
        make(MIB(36));
        make(40000);
    }
}

static void grow_huge(void)
{
    make(GIB(1));
    make(MIB(3));
    make(GIB(1));
}

typedef struct pair {
    rec *one, *two;
    int number[5];
} pair;
LOAM_TYPE(pair, one, two);
typedef struct vec {
    size_t n;
    rec *items[];
} vec;
LOAM_TYPE_FLEX(vec, items);

/* Each type that is new has a span class of its own; many fill the chunks of tables. */
static void new_types(void)
{
    static _Atomic unsigned round;
    unsigned r = add_rlx(&round, 1u);
    char name[32];
    STEP(LOAM_NEW(pair) != NULL);
    STEP(LOAM_NEW_ARRAY(pair, 40) != NULL);
    STEP(LOAM_NEW_FLEX(vec, 100) != NULL);
    for (unsigned i = 0; i < 400; i++) {
        size_t offsets[] = {8, 40};
        const loam_type *t;
        snprintf(name, sizeof name, "type%u.%u", r, i);
        if (STEP((t = loam_type_make(name, 48, offsets, 2)) != NULL)) {
            uintptr_t *p;
            if (STEP((p = loam_new(t, i % 3 == 0 ? 5 : 1)) != NULL) && (p[0] | p[1] | p[5]) != 0) {
                DIE("a typed object is not zero");
            }
        }
    }
}

static void *thread_body(void *arg)
{
    (void)arg;
    STEP(loam_attach() == 0);
    STEP(loam_alloc(64) != NULL);
    STEP(LOAM_NEW(pair) != NULL);
    loam_detach();
    STEP(loam_attach() == 0);
    return NULL;
}

static void threads_attach(void)
{
    for (int i = 0; i < 3; i++) {
        pthread_t t[2];
        for (int k = 0; k < 2; k++) {
            if (pthread_create(&t[k], NULL, thread_body, NULL) != 0) {
                DIE("pthread_create");
            }
        }
        for (int k = 0; k < 2; k++) {
            pthread_join(t[k], NULL);
        }
    }
}

static void *outside[9000];

/* The table grows 9 times; beyond 1 MiB blocks of metadata are mapped alone. */
static void roots_grow(void)
{
    static bool added[COUNT_OF(outside)];
    for (size_t i = 0; i < COUNT_OF(outside); i++) {
        added[i] = STEP(loam_add_roots(&outside[i], sizeof outside[i]) == 0);
    }
    loam_gc();
    for (size_t i = 0; i < COUNT_OF(outside); i++) {
        errno = 0;
        if ((loam_remove_roots(&outside[i], sizeof outside[i]) == 0) != added[i]) {
            DIE("range %zu: added %d, but removing says %s", i, added[i], strerror(errno));
        }
    }
}

static void pins_grow(void)
{
    static void *pinned[3000];
    size_t n = 0;
    for (size_t i = 0; i < COUNT_OF(pinned); i++) {
        char *p;
        if (!STEP((p = loam_alloc_noscan(32)) != NULL)) {
            continue;
        }
        memset(p, 0x5e, 32);
        if (STEP(loam_pin(p) == p)) {
            pinned[n++] = (void *)~(uintptr_t)p; /* hidden: the pin alone keeps it */
        }
    }
    loam_gc();
    for (size_t i = 0; i < n; i++) {
        char *p = (void *)~(uintptr_t)pinned[i];
        if (loam_base(p) != p || p[0] != 0x5e || p[31] != 0x5e) {
            DIE("pinned object %zu is gone", i);
        }
        loam_unpin(p);
    }
}

static _Atomic int due, ran; /* functions to be run, and run, once their objects are dead */

static void on_finalize(void *obj, void *arg)
{
    if (((rec *)obj)->size != 12345 || arg != &due) {
        DIE("a finalizer's object is broken");
    }
    add_rlx(&ran, 1);
}

static void on_cleanup(void *arg)
{
    if (arg != &ran) {
        DIE("a cleanup's argument is broken");
    }
    add_rlx(&ran, 1);
}

static NOINLINE void make_ends(void)
{
    rec *l;
    if (!STEP((l = LOAM_NEW(rec)) != NULL)) {
        return;
    }
    l->size = 12345;
    if (STEP(loam_set_finalizer(l, on_finalize, &due) == 0)) {
        add_rlx(&due, 1);
    }
    if (STEP(loam_add_cleanup(l, on_cleanup, &ran) != 0)) {
        add_rlx(&due, 1);
    }
    loam_weak *w;
    if (STEP((w = loam_weak_make(l)) != NULL) &&
        (loam_weak_value(w) != l || loam_weak_make(l) != w)) {
        DIE("a weak pointer does not lead to its object");
    }
    loam_ephemeron *e;
    if (STEP((e = loam_ephemeron_make(l, made)) != NULL) && loam_ephemeron_value(e) != made) {
        DIE("an ephemeron does not lead to its value");
    }
}

/* Beyond 1024 records there is a second chunk of them. */
static void ends_made(void)
{
    make(10);
    for (int i = 0; i < 500; i++) {
        make_ends();
    }
    loam_gc();
}

static void ends_run(void)
{
    for (int i = 0; i < 400; i++) {
        loam_gc();
        if (load_rlx(&ran) >= load_rlx(&due) * 9 / 10) { /* the stack may keep a few */
            return;
        }
        os_sleep_ns(5000000);
    }
    DIE("%d finalizers and cleanups of %d have run", load_rlx(&ran), load_rlx(&due));
}

static void collect(void)
{
    make(1000);
    uint32_t before = load_acq(&gc.finished);
    loam_gc();
    if (load_acq(&gc.finished) == before) {
        DIE("loam_gc returned without a cycle");
    }
    make(1000);
    loam_gc();
    loam_free_os_memory();
    make(1000);
}

/* Enough of a heap for helpers; cycles start by themselves. */
static void collect_when_due(void)
{
    for (int i = 0; i < 60; i++) {
        make(i % 10 == 0 ? MIB(1) : 300);
        for (int k = 0; k < 30; k++) {
            STEP(loam_alloc(20000) != NULL);
        }
    }
    loam_gc();
}

static void stacks_added(void)
{
    static void *area[64][16];
    loam_stack *s[64];
    for (size_t i = 0; i < COUNT_OF(s); i++) {
        if (STEP((s[i] = loam_stack_add(area[i], sizeof area[i], NULL)) != NULL)) {
            STEP(loam_stack_set(s[i], area[i], 8) == 0);
        }
    }
    loam_gc();
    for (size_t i = 0; i < COUNT_OF(s); i++) {
        loam_stack_remove(s[i]);
    }
}

static void odds_and_ends(void)
{
    void *batch[50];
    errno = 0;
    size_t n = loam_new_batch(LOAM_TYPEOF(pair), COUNT_OF(batch), batch);
    step(n == COUNT_OF(batch), "loam_new_batch");
    char *s;
    if (STEP((s = loam_strdup("a string")) != NULL)) {
        char *t;
        if (STEP((t = loam_realloc(s, 100000)) != NULL)) {
            s = t;
        }
        if (strcmp(s, "a string") != 0) {
            DIE("loam_realloc loses contents");
        }
        if (STEP((t = loam_realloc(s, MIB(30))) != NULL)) {
            s = t;
        }
        if (strcmp(s, "a string") != 0) {
            DIE("loam_realloc loses contents");
        }
        loam_free(s);
    }
    make(5);
}

static _Atomic bool stop_running;

static void *runs_and_stores(void *arg)
{
    rec *mine = LOAM_NEW(rec);
    (void)arg;
    while (mine != NULL && !load_rlx(&stop_running)) {
        LOAM_SET(mine->next, mine);
        LOAM_SET(mine->next, NULL);
    }
    return NULL;
}

static void *lifts_soon(void *arg)
{
    (void)arg;
    os_sleep_ns(5000000);
    lift();
    return NULL;
}

/* A thread that runs is reached by a signal only: while that is refused, a cycle waits. */
static void signals_refused(void)
{
    pthread_t runner, lifter;
    store_rlx(&stop_running, false);
    if (pthread_create(&runner, NULL, runs_and_stores, NULL) != 0 ||
        pthread_create(&lifter, NULL, lifts_soon, NULL) != 0) {
        DIE("pthread_create");
    }
    for (int i = 0; i < 5; i++) {
        loam_gc();
        make(100);
    }
    store_rlx(&stop_running, true);
    pthread_join(runner, NULL);
    pthread_join(lifter, NULL);
}

static _Atomic int goroutines_ran;

static void sit_in_read(void *fds)
{
    char c;
    if (read(((int *)fds)[0], &c, 1) != 1) {
        DIE("read: %s", strerror(errno));
    }
    add_acqrel(&goroutines_ran, 1); /* release: the descriptors; pairs with goroutines_sit */
}

static void write_for_him(void *fds)
{
    if (write(((int *)fds)[1], "x", 1) != 1) {
        DIE("write: %s", strerror(errno));
    }
    add_acqrel(&goroutines_ran, 1); /* release: the descriptors; pairs with goroutines_sit */
}

/* While one waits in the system another one needs a thread. That it was refused does not mean that it never runs. */
static void goroutines_sit(void)
{
    int fds[2];
    pthread_t lifter;
    store_rlx(&goroutines_ran, 0);
    if (pipe(fds) != 0 || pthread_create(&lifter, NULL, lifts_soon, NULL) != 0) {
        DIE("pipe, pthread_create");
    }
    bool sits = STEP(loam_go(sit_in_read, fds) == 0);
    bool writes = STEP(loam_go(write_for_him, fds) == 0);
    if (sits && !writes) {
        (void)!write(fds[1], "x", 1);
    }
    while (load_acq(&goroutines_ran) != sits + writes) { /* acquire: as above */
        os_sleep_ns(100000);
    }
    pthread_join(lifter, NULL);
    close(fds[0]);
    close(fds[1]);
}

static _Atomic int oom_calls;
static void on_oom(void *arg)
{
    (void)arg;
    add_rlx(&oom_calls, 1);
}

static void oom_handler(void)
{
    loam_set_oom_handler(on_oom, NULL);
    for (int i = 0; i < 4; i++) {
        int before = load_rlx(&oom_calls);
        bool ok = STEP(loam_alloc_noscan(MIB(9)) != NULL);
        if (ok == (load_rlx(&oom_calls) != before)) {
            DIE("allocation %s, out-of-memory handler %s", ok ? "succeeded" : "failed",
                ok ? "called" : "not called");
        }
    }
}

static const struct scenario {
    const char *name;
    void (*run)(void);
    void (*after)(void); /* the refusal is over: what it put off happens */
    bool started;        /* the library is, before */
    int most;            /* N stops there: the number of calls has no end */
} scenarios[] = {
    {"first_alloc", first_alloc, NULL, false, 2000},
    {"first_attach", first_attach, NULL, false, 2000},
    {"first_gc", first_gc, NULL, false, 2000},
    {"first_type", first_type, NULL, false, 2000},
    {"first_end", first_end, NULL, false, 2000},
    {"grow_small", grow_small, NULL, true, 2000},
    {"grow_large", grow_large, NULL, true, 2000},
    {"grow_huge", grow_huge, NULL, true, 2000},
    {"new_types", new_types, NULL, true, 2000},
    {"threads_attach", threads_attach, NULL, true, 2000},
    {"roots_grow", roots_grow, NULL, true, 2000},
    {"pins_grow", pins_grow, NULL, true, 2000},
    {"ends", ends_made, ends_run, true, 2000},
    {"collect", collect, NULL, true, 2000},
    {"collect_when_due", collect_when_due, NULL, true, 20},
    {"stacks_added", stacks_added, NULL, true, 2000},
    {"odds_and_ends", odds_and_ends, NULL, true, 2000},
    {"signals_refused", signals_refused, NULL, true, 40},
    {"goroutines_sit", goroutines_sit, NULL, true, 40},
    {"oom_handler", oom_handler, NULL, true, 2000},
};

/* -- one child, and all of them ---------------------------------------------------------------- */

static int child(const struct scenario *sc, int64_t at, bool repeat)
{
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    signal(SIGABRT, SIG_DFL);
    signal(SIGSEGV, SIG_DFL);
    signal(SIGALRM, SIG_DFL);
    alarm(HANGS_AFTER);
    if (sc->started) {
        start_library();
    }
    store_rlx(&os_fail_repeat, repeat);
    store_rlx(&os_fail_at, at);
    sc->run();
    int64_t left = load_rlx(&os_fail_at);
    lift();
    if (load_rlx(&refused) != 0 && left > 1) {
        DIE("%d steps are refused before the fault", load_rlx(&refused));
    }
    check_everything(sc->started);
    for (int i = 0; i < 2; i++) {
        store_rlx(&refused, 0);
        sc->run();
        if (load_rlx(&refused) != 0) {
            DIE("%d steps are refused after the fault", load_rlx(&refused));
        }
        loam_gc();
        check_everything(sc->started);
    }
    if (sc->after != NULL) {
        sc->after();
        loam_gc();
        check_everything(sc->started);
    }
    return left == 0 || (repeat && left == 1) ? REACHED : NOT_REACHED;
}

/* Exit status of the child, for one that a signal ended 128 + it. */
static int run_child(const struct scenario *sc, int64_t at, bool repeat)
{
    int status;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        _exit(child(sc, at, repeat));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void every_fault(void **state)
{
    const struct scenario *sc = *state;
    int64_t calls = 0;
    int bad = 0;
    int64_t begin = os_nanotime();
    for (int64_t at = 1; at < sc->most; at++) {
        int result = run_child(sc, at, false);
        if (result == NOT_REACHED) {
            break;
        }
        calls = at;
        if (result != REACHED) {
            fprintf(stderr, "--only %s --at %lld: ended with %d\n", sc->name, (long long)at,
                    result);
            bad++;
        }
    }
    for (int64_t at = 1; at <= calls; at++) { /* here N = 1 is always "reached" */
        int result = run_child(sc, at, true);
        if (result != REACHED && result != NOT_REACHED) {
            fprintf(stderr, "--only %s --at %lld --repeat: ended with %d\n", sc->name,
                    (long long)at, result);
            bad++;
        }
    }
    printf("%s: %lld calls, %.1f s\n", sc->name, (long long)calls,
           (double)(os_nanotime() - begin) * 1e-9);
    assert_true(calls > 0);
    assert_int_equal(bad, 0);
}

/* -- a store sequence that there was no memory to remember ------------------------------------- */

/* A sanitizer wants memory too, just when there is none. */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define WITHOUT_MEMORY 1
#endif

#if defined(WITHOUT_MEMORY)

static volatile int flag, go, slot = -1;

/* As LOAM_SET does: looks at the flag, and stores what follows from it, in one restartable sequence;
 * but it takes its time in between. */
static void *looks_and_stores(void *arg)
{
    if (loam_attach() != 0) {
        DIE("loam_attach");
    }
    store_rel((_Atomic bool *)arg, true);
    __asm__ volatile("1:\tmovl %[flag], %%ecx\n"
                     "3:\tpause\n\tcmpl $0, %[go]\n\tje 3b\n"
                     "\tmovl %%ecx, %[slot]\n" LOAM_STORE_NOTE_
                     : [slot] "=m"(slot)
                     : [flag] "m"(flag), [go] "m"(go)
                     : "ecx", "memory", "cc");
    return NULL;
}

static void *goes_soon(void *arg)
{
    (void)arg;
    os_sleep_ns(300000000);
    go = 1;
    return NULL;
}

static void answers(struct m *m, const struct m_context *ctx)
{
    (void)m, (void)ctx;
}

/* This thread is not attached: it is the collector. */
static int handshake_without_memory(void)
{
    pthread_t storer, starter;
    _Atomic bool ready = false;
    alarm(HANGS_AFTER);
    if (pthread_create(&storer, NULL, looks_and_stores, (void *)&ready) != 0 ||
        pthread_create(&starter, NULL, goes_soon, NULL) != 0) {
        DIE("pthread_create");
    }
    while (!load_acq(&ready)) {
        os_sleep_ns(1000000);
    }
    os_sleep_ns(20000000);
    struct rlimit limit, small;
    getrlimit(RLIMIT_AS, &limit);
    small = (struct rlimit){.rlim_cur = 1 << 20, .rlim_max = limit.rlim_max};
    setrlimit(RLIMIT_AS, &small);
    flag = 1; /* "the barrier is on" */
    world_handshake(answers, NULL, "answers");
    bool stored = slot != -1;
    setrlimit(RLIMIT_AS, &limit);
    pthread_join(storer, NULL);
    pthread_join(starter, NULL);
    if (slot != 1 && !stored) {
        DIE("a store that looked at the flag before the handshake came after it");
    }
    return REACHED;
}

static void test_handshake_without_memory(void **state)
{
    (void)state;
    int status;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        _exit(handshake_without_memory());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), REACHED);
}
#endif

int main(int argc, char **argv)
{
    const char *only = NULL;
    int64_t at = 0;
    bool repeat = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
            only = argv[++i];
        } else if (strcmp(argv[i], "--at") == 0 && i + 1 < argc) {
            at = strtoll(argv[++i], NULL, 0);
        } else if (strcmp(argv[i], "--repeat") == 0) {
            repeat = true;
        }
    }
    struct CMUnitTest tests[COUNT_OF(scenarios) + 1];
    size_t n = 0;
    for (size_t i = 0; i < COUNT_OF(scenarios); i++) {
        if (only != NULL && strcmp(only, scenarios[i].name) != 0) {
            continue;
        }
        if (at > 0) {
            return child(&scenarios[i], at, repeat);
        }
        tests[n++] = (struct CMUnitTest){.name = scenarios[i].name,
                                         .test_func = every_fault,
                                         .initial_state = (void *)(uintptr_t)&scenarios[i]};
    }
#if defined(WITHOUT_MEMORY)
    if (only == NULL || strcmp(only, "handshake") == 0) {
        tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_handshake_without_memory);
    }
#endif
    return _cmocka_run_group_tests("faults", tests, n, NULL, NULL);
}
