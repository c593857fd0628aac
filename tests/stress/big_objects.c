/* One thread allocates and drops objects of two GiB, while others allocate small and large objects and move them about:
 * nobody of these waits for it, neither for pages, nor for zeroing, nor for marking and sweeping that much.
 *
 * A wait is what a stretch of about a millisecond takes longer on the clock than it should, without the time that the
 * kernel let others run.  If each big object made the others wait there were at least as many such stretches as big
 * objects, BIG_ONES: the shortest of the BIG_ONES longest is compared with that beside a thread that maps, writes and
 * unmaps two GiB of plain memory.  To zero two GiB takes some seconds where it was measured, on two processors that ten
 * other threads wanted, too; the shortest of the longest was 3 to 22 ms, beside plain memory 2 to 5 ms.
 *
 * --mib N (of a big object)
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | | 240
 * TEST_RUN: gogc20 | GOGC=20 | --mib 1024 | 240 */
#include "../support/test.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <loam/stats.h>

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

enum { OTHERS = 3, SLOTS = 2000, STRETCH_NS = 1000000, BIG_ONES = 8 };

static size_t big_bytes;
static _Atomic(bool) stop;
static _Atomic(uint64_t) stretches, big_ones;

/* The longest stretches, in falling order. */
static pthread_mutex_t longest_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t longest_ns[BIG_ONES];

/* ---- the others ---- */

/* How long the calling thread was ready to run and did not, so far; 0 where the kernel does not tell. */
static uint64_t run_delay_ns(int fd)
{
    char text[128];
    uint64_t ran, waited = 0;
    ssize_t got = pread(fd, text, sizeof text - 1, 0);
    if (got > 0) {
        text[got] = '\0';
        if (sscanf(text, "%" SCNu64 " %" SCNu64, &ran, &waited) != 2) {
            waited = 0;
        }
    }
    return waited;
}

static void move_and_allocate(struct rng *rng, item **slots)
{
    size_t from = rng_below(rng, SLOTS);
    size_t to = rng_below(rng, SLOTS);
    item *it = slots[from];
    if (it != NULL) {
        item_check(it);
    }
    LOAM_SET(slots[to], rng_below(rng, 4) == 0 ? item_new(rng_next(rng), it) : it);
    if (rng_below(rng, 8) == 0) {
        LOAM_SET(slots[from], NULL);
    }
    if (rng_below(rng, 500) == 0) {
        EXPECT_NOT_NULL(loam_alloc(rng_below(rng, 200000)));
    }
    if (it != NULL && rng_below(rng, 2) == 0) {
        LOAM_SET(it->next, NULL); /* lists stay short */
    }
}

static void note_stretch(uint64_t ns)
{
    pthread_mutex_lock(&longest_lock);
    for (size_t i = 0; i < BIG_ONES; i++) {
        if (ns > longest_ns[i]) {
            uint64_t kept = longest_ns[i];
            longest_ns[i] = ns;
            ns = kept;
        }
    }
    pthread_mutex_unlock(&longest_lock);
    atomic_fetch_add(&stretches, 1);
}

static void *live(void *arg)
{
    struct team_member *me = arg;
    item **slots = LOAM_NEW_POINTERS(item, SLOTS);
    int fd = open("/proc/thread-self/schedstat", O_RDONLY);
    while (!atomic_load(&stop)) {
        uint64_t delay = run_delay_ns(fd);
        uint64_t start = now_ns();
        do {
            move_and_allocate(&me->rng, slots);
        } while (now_ns() - start < STRETCH_NS);
        uint64_t took = now_ns() - start;
        delay = run_delay_ns(fd) - delay;
        note_stretch(took > delay ? took - delay : 0);
    }
    close(fd);
    return NULL;
}

/* ---- beside them ---- */

static void *map_plain_memory(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        char *p = mmap(NULL, big_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        EXPECT_PTR_NE(p, MAP_FAILED);
        for (size_t i = 0; i < big_bytes && !atomic_load(&stop); i += 4096) {
            p[i] = 1;
        }
        munmap(p, big_bytes);
        atomic_fetch_add(&big_ones, 1);
    }
    return NULL;
}

static NOINLINE void allocate_big_one(bool noscan)
{
    char *p = noscan ? loam_alloc_noscan(big_bytes) : loam_alloc(big_bytes);
    EXPECT_NOT_NULL(p);
    for (size_t i = 0; i < big_bytes; i += big_bytes / 64) {
        EXPECT_EQ(p[i], 0);
        p[i] = 1;
    }
    EXPECT_PTR_EQ(loam_base(p + big_bytes - 1), p);
}

static void *allocate_big_ones(void *arg)
{
    (void)arg;
    for (bool noscan = false; !atomic_load(&stop); noscan = !noscan) {
        allocate_big_one(noscan);
        scrub_stack();
        loam_gc(); /* the next one takes the same pages, which have to be zeroed */
        atomic_fetch_add(&big_ones, 1);
    }
    return NULL;
}

/* The shortest of the BIG_ONES longest stretches of the others while fn has `count` big ones, in milliseconds. */
static double measure(void *(*fn)(void *), uint64_t count, const char *what)
{
    static struct team team;
    atomic_store(&stop, false);
    atomic_store(&stretches, 0);
    atomic_store(&big_ones, 0);
    memset(longest_ns, 0, sizeof longest_ns);
    team_start(&team, OTHERS, live, NULL);
    pthread_t beside = thread_start(fn, NULL);
    WAIT_FOR(200, atomic_load(&big_ones) >= count);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(beside);
    double ms = (double)longest_ns[BIG_ONES - 1] * 1e-6;
    printf("%s: %" PRIu64 " of %zu MiB, %" PRIu64
           " stretches, the longest %.1f ms, the %dth %.1f ms\n",
           what, atomic_load(&big_ones), big_bytes >> 20, atomic_load(&stretches),
           (double)longest_ns[0] * 1e-6, BIG_ONES, ms);
    fflush(stdout);
    return ms;
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    big_bytes = (size_t)test_number("mib", 2048) << 20;
    long pages = sysconf(_SC_PHYS_PAGES);
    if (TEST_SANITIZED || pages < 0 ||
        (uint64_t)pages * 4096 < 4 * (uint64_t)big_bytes) { /* 4 KiB pages */
        test_skip("not enough memory for objects of %zu MiB", big_bytes >> 20);
        return test_end();
    }
    double plain = measure(map_plain_memory, 2, "plain memory");
    double objects = measure(allocate_big_ones, BIG_ONES, "big objects");
    EXPECT_MSG(objects < plain + 50, "%.1f ms beside big objects, %.1f ms beside plain memory",
               objects, plain);
    return test_end();
}
