/* fork falls into a certain step of a cycle: the child, which drops the cycle, may free at once what had been marked,
 * and collects by itself later.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 | | 90 */
#include "../support/test.h"

#include <sys/mman.h>
#include <sys/wait.h>

#include <loam/stats.h>

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    struct item *next;
    uint64_t id;
    uint64_t check;
} item;
LOAM_TYPE(item, next);

static item *in_static;
static _Atomic(bool) stop;

static void build_list(void *length)
{
    LOAM_SET(in_static, NULL);
    for (size_t i = 0; i < *(size_t *)length; i++) {
        item *it = LOAM_NEW(item);
        EXPECT_NOT_NULL(it);
        it->id = i;
        it->check = rng_mix(i);
        LOAM_SET(it->next, in_static);
        LOAM_SET(in_static, it);
    }
}

static void check_list(void)
{
    for (const item *it = in_static; it != NULL; it = it->next) {
        EXPECT_EQ(it->check, rng_mix(it->id));
    }
}

static void *collect_until_stop(void *arg)
{
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return arg;
}

/* fork; the child runs `live`. */
static void fork_and(void (*live)(void))
{
    int status = 0;
    pid_t pid = fork();
    EXPECT_MSG(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        alarm(30);
        live();
        _exit(0);
    }
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_MSG(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with status %#x%s",
               (unsigned)status,
               WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? ", hung" : "");
}

/* ---- marking ---- */

enum { LARGE = 100, LARGE_BYTES = 40 * 1024, PAGE = 8192 };

/* Only the gate knows them: its scan function marks them, then holds marking up until the fork is near. */
static struct {
    void *large[LARGE];
} * plain;
static _Atomic(bool) gate_closed, gate_reached;

typedef struct gate {
    uint64_t unused;
} gate;

static SCANS void gate_scan(const gate *g, size_t bytes, loam_marker *m)
{
    (void)g;
    (void)bytes;
    for (size_t i = 0; i < LARGE; i++) {
        loam_mark(m, LOAD_SLOT(plain->large[i]));
    }
    atomic_store(&gate_reached, true);
    while (atomic_load(&gate_closed)) {
    }
}
LOAM_TYPE_SCANNED(gate, gate_scan);

static gate *the_gate;

static void build_large(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < LARGE; i++) {
        void *p = loam_alloc(LARGE_BYTES);
        EXPECT_NOT_NULL(p);
        LOAM_SET(plain->large[i], p);
    }
}

/* What was marked is freed; its pages take objects of a page each, which alone hold what they point to. */
static void free_and_reuse(void)
{
    enum { COUNT = LARGE * LARGE_BYTES / PAGE };
    loam_set_gc_percent(-1);
    for (size_t i = 0; i < LARGE; i++) {
        void *p = plain->large[i];
        LOAM_SET(plain->large[i], NULL);
        loam_free(p);
    }
    loam_gc();
    uint64_t ***pages = loam_alloc(COUNT * sizeof *pages);
    EXPECT_NOT_NULL(pages);
    for (size_t i = 0; i < COUNT; i++) {
        uint64_t *box = loam_alloc_noscan(sizeof *box);
        EXPECT_NOT_NULL(box);
        *box = rng_mix(i);
        LOAM_SET(pages[i], loam_alloc(PAGE));
        EXPECT_NOT_NULL(pages[i]);
        LOAM_SET(pages[i][0], box);
    }
    loam_gc();
    for (size_t i = 0; i < COUNT; i++) {
        EXPECT_PTR_EQ(loam_base(pages[i][0]), pages[i][0]);
        EXPECT_EQ(*pages[i][0], rng_mix(i));
    }
    check_list();
    loam_keep_alive(pages);
}

static void *collect_once(void *arg)
{
    loam_gc();
    return arg;
}

static void open_gate(void)
{
    atomic_store(&gate_closed, false);
}

static void while_marking(void)
{
    static size_t length = 100000; /* to be marked when the gate opens */
    call_deep(build_list, &length);
    plain = mmap(NULL, sizeof *plain, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_PTR_NE(plain, MAP_FAILED);
    LOAM_SET(the_gate, LOAM_NEW(gate));
    call_deep(build_large, NULL);
    /* fork waits for the marking thread to come to a safe point, so it is let go when fork has begun. */
    EXPECT_EQ(pthread_atfork(open_gate, NULL, NULL), 0);
    for (size_t i = 0; i < test_scaled(5); i++) {
        atomic_store(&gate_reached, false);
        atomic_store(&gate_closed, true);
        pthread_t collecting = thread_start(collect_once, NULL);
        WAIT_FOR(20, atomic_load(&gate_reached));
        fork_and(free_and_reuse);
        thread_join(collecting);
    }
    LOAM_SET(the_gate, NULL);
}

/* ---- sweeping ---- */

static uint32_t cycles(void)
{
    static loam_memstats stats;
    loam_read_memstats(&stats);
    return stats.num_gc;
}

static void make_garbage_until_a_cycle(void)
{
    const uint32_t before = cycles();
    size_t bytes = 0;
    while (cycles() == before) {
        EXPECT_LE(bytes, (size_t)128 << 20); /* many times the heap */
        for (size_t i = 0; i < 10000; i++) {
            EXPECT_NOT_NULL(loam_alloc(64));
        }
        bytes += 640000;
    }
    check_list();
}

static void while_sweeping(void)
{
    static size_t length = 100000;
    call_deep(build_list, &length);
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    for (size_t i = 0; i < test_scaled(8); i++) {
        WAIT_FOR(20, LOAD_SLOT(loam_write_barrier) != 0);
        while (LOAD_SLOT(loam_write_barrier) != 0) {
            if (TEST_TSAN) { /* it delivers signals in calls only */
                sleep_us(10);
            }
        }
        fork_and(make_garbage_until_a_cycle);
    }
    atomic_store(&stop, true);
    thread_join(collector);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    if (getenv("TEST_EMULATOR") != NULL) {
        test_skip("fork of several threads under qemu-user, which fails an assertion of its own");
        return test_end();
    }
    RUN(while_marking);
    RUN(while_sweeping);
    return test_end();
}
