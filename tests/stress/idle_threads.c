/* A thousand threads allocate a bit of everything and then wait, attached: after two collections the heap keeps nothing
 * for them.  Neither spans (heap_inuse is what lives) nor pages (what is idle goes back to the system, and serves one
 * thread that asks for all of it) lie in the caches of threads that do not use them.
 *
 * --threads N
 *
 * TEST_LABEL: stress
 * TEST_RUN: spans | | --only spans_are_given_back | 120
 * TEST_RUN: pages_to_the_system | | --only pages_go_back_to_the_system | 120
 * TEST_RUN: pages_to_others | | --only pages_serve_others | 120
 * TEST_RUN: spans_clobberfree | GODEBUG=clobberfree=1 GOGC=20 | --only spans_are_given_back | 120 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    struct item *next;
    uint64_t fill[6];
} item;
LOAM_TYPE(item, next);

enum { ROUNDS = 3, KIB = 1024, MIB = KIB * KIB };

/* Rounds begin when main says so; a thread that has done its part waits, as an idle server's does. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t next_round = PTHREAD_COND_INITIALIZER;
static pthread_cond_t all_done = PTHREAD_COND_INITIALIZER;
static unsigned current_round;
static size_t done;

static void wait_for_round(unsigned number)
{
    pthread_mutex_lock(&lock);
    while (current_round < number) {
        pthread_cond_wait(&next_round, &lock);
    }
    pthread_mutex_unlock(&lock);
}

static void round_done(size_t count)
{
    pthread_mutex_lock(&lock);
    if (++done == count) {
        pthread_cond_signal(&all_done);
    }
    pthread_mutex_unlock(&lock);
}

/* Nothing of it is kept. */
static void allocate_a_bit(void *arg)
{
    static const size_t sizes[] = {8, 16, 48, 128, 512, 1024, 4096, 9000, 20000, 40000};
    struct rng *rng = arg;
    for (int n = 0; n < 20; n++) {
        size_t bytes = sizes[rng_below(rng, COUNT_OF(sizes))];
        char *p = rng_below(rng, 2) == 0 ? loam_alloc(bytes) : loam_alloc_noscan(bytes);
        EXPECT_NOT_NULL(p);
        p[bytes - 1] = 1;
        LOAM_SET(LOAM_NEW(item)->next, LOAM_NEW(item));
    }
}

static void *live_idly(void *arg)
{
    struct team_member *me = arg;
    for (unsigned number = 1; number <= ROUNDS; number++) {
        wait_for_round(number);
        call_deep(allocate_a_bit, &me->rng);
        round_done(me->count);
    }
    wait_for_round(ROUNDS + 1);
    return NULL;
}

static struct team team;

static void start_round(unsigned number)
{
    pthread_mutex_lock(&lock);
    current_round = number;
    done = 0;
    pthread_cond_broadcast(&next_round);
    pthread_mutex_unlock(&lock);
}

static void run_round(unsigned number)
{
    start_round(number);
    pthread_mutex_lock(&lock);
    while (done < team.count) {
        pthread_cond_wait(&all_done, &lock);
    }
    pthread_mutex_unlock(&lock);
}

static void print_heap(const char *when, const loam_memstats *m)
{
    printf("%s: heap %" PRIu64 " KiB alive in %" PRIu64 " in use, %" PRIu64
           " idle and not released "
           "of %" PRIu64 "; caches %" PRIu64 "\n",
           when, m->heap_alloc >> 10, m->heap_inuse >> 10, (m->heap_idle - m->heap_released) >> 10,
           m->heap_sys >> 10, m->mcache_inuse >> 10);
    fflush(stdout);
}

/* All have allocated and wait.  Not once only: pages and spans that come anew were never used by others. */
static NOINLINE void make_idle(loam_memstats *m)
{
    team_start(&team, test_number("threads", 1000), live_idly, NULL);
    for (unsigned number = 1; number <= ROUNDS; number++) {
        run_round(number);
    }
    loam_read_memstats(m);
    print_heap("all have allocated", m);
    loam_gc();
    loam_gc();
    loam_read_memstats(m);
    print_heap("after two collections", m);
}

static void end_idleness(void)
{
    start_round(ROUNDS + 1);
    team_join(&team);
}

static void spans_are_given_back(void)
{
    loam_memstats m;
    make_idle(&m);
    EXPECT_LT(m.heap_inuse, 4 * MIB);
    EXPECT_LT(m.mcache_inuse, team.count * 20 * KIB); /* their tables; measured: 18.8 KiB each */
    end_idleness();
}

static void pages_go_back_to_the_system(void)
{
    loam_memstats m;
    make_idle(&m);
    loam_free_os_memory();
    loam_read_memstats(&m);
    print_heap("after loam_free_os_memory", &m);
    EXPECT_LT(m.heap_idle - m.heap_released, 8 * MIB);
    end_idleness();
}

/* Four fifths of what is idle, in pieces larger than any cache. */
static void pages_serve_others(void)
{
    enum { PIECES = 80 };
    void *pieces[PIECES];
    loam_memstats before, after;
    make_idle(&before);
    for (size_t i = 0; i < PIECES; i++) {
        pieces[i] = loam_alloc_noscan(before.heap_idle / 100);
        EXPECT_NOT_NULL(pieces[i]);
    }
    loam_read_memstats(&after);
    print_heap("after four fifths were allocated", &after);
    EXPECT_LE(after.heap_sys, before.heap_sys + 4 * MIB);
    EXPECT_GE(loam_usable_size(pieces[PIECES - 1]), before.heap_idle / 100);
    end_idleness();
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    if (test_argument("only") == NULL) {
        FAIL("--only CASE: each case wants a process of its own");
    }
    RUN(spans_are_given_back);
    RUN(pages_go_back_to_the_system);
    RUN(pages_serve_others);
    return test_end();
}
