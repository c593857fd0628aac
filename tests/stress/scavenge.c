/* After a peak, memory goes back to the system by itself within seconds, and at once when the program asks; then
 * nothing runs any more.
 *
 * Bounds: of ten parts one stays alive.  Resident memory is within 20 % of that (and what the process had before the
 * heap) ten seconds after the drop.  A heap at rest has no thread that wakes: the count of context switches of the
 * library's threads stays.
 *
 * TEST_LABEL: stress
 * TEST_RUN: background | | --only by_itself | 120
 * TEST_RUN: large_freed | | --only large_object_freed | 120
 * TEST_RUN: at_once | | --only when_asked | 120 */
#include "../support/test.h"

#include <dirent.h>
#include <loam/stats.h>

#include "../support/heap.h"

enum { MIB = 1 << 20, PEAK = 640 * MIB, PIECE = 1024, PIECES = PEAK / PIECE };

static void **pieces;

static NOINLINE void fill(void *arg)
{
    (void)arg;
    LOAM_SET(pieces, (void **)loam_alloc(PIECES * sizeof(void *)));
    for (size_t i = 0; i < PIECES; i++) {
        unsigned char *p = loam_alloc_noscan(PIECE);
        EXPECT_NOT_NULL(p);
        memset(p, 1, PIECE);
        LOAM_SET(pieces[i], (void *)p);
    }
}

static NOINLINE void drop(void *arg)
{
    (void)arg;
    for (size_t i = PIECES / 10; i < PIECES; i++) {
        LOAM_SET(pieces[i], NULL);
    }
}

/* Times that threads of the library ran since they began. */
static uint64_t switches(void)
{
    uint64_t sum = 0;
    DIR *tasks = opendir("/proc/self/task");
    EXPECT_NOT_NULL(tasks);
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        char path[300];
        char line[128];
        snprintf(path, sizeof path, "/proc/self/task/%s/status", task->d_name);
        FILE *f = task->d_name[0] == '.' || atoi(task->d_name) == getpid() ? NULL
                                                                           : fopen(path, "r");
        while (f != NULL && fgets(line, sizeof line, f) != NULL) {
            unsigned long n;
            if (sscanf(line, "voluntary_ctxt_switches: %lu", &n) == 1) {
                sum += n;
            }
        }
        if (f != NULL) {
            fclose(f);
        }
    }
    closedir(tasks);
    return sum;
}

static size_t bound(size_t before)
{
    size_t live = PEAK / 10 + PIECES * sizeof(void *);
    return before + live + live / 5;
}

static void expect_rest(void)
{
    uint64_t count = switches();
    sleep_us(1500000);
    EXPECT_EQ(switches(), count);
}

static void by_itself(void)
{
    size_t before = resident();
    call_deep(fill, NULL);
    EXPECT_GE(resident(), before + PEAK);
    drop(NULL);
    loam_gc();
    uint64_t begin = now_ns();
    while (resident() > bound(before) && now_ns() - begin < UINT64_C(10000000000)) {
        sleep_us(10000);
    }
    printf("%zu MiB resident after %.1f s\n", (resident() - before) / MIB,
           (double)(now_ns() - begin) / 1e9);
    EXPECT_LE(resident(), bound(before));
    sleep_us(6000000); /* what was used lately is forgotten */
    expect_rest();
}

static void large_object_freed(void)
{
    size_t before = resident();
    loam_gc();
    unsigned char *p = loam_alloc_noscan(PEAK);
    EXPECT_NOT_NULL(p);
    memset(p, 1, PEAK);
    loam_gc(); /* its span is of this generation */
    sleep_us(100000);
    EXPECT_GE(resident(), before + PEAK);
    loam_free(p);
    uint64_t begin = now_ns();
    while (resident() > before + PEAK / 10 && now_ns() - begin < UINT64_C(10000000000)) {
        sleep_us(10000);
    }
    printf("%zu MiB resident after %.1f s\n", (resident() - before) / MIB,
           (double)(now_ns() - begin) / 1e9);
    EXPECT_LE(resident(), before + PEAK / 10);
    sleep_us(6000000);
    expect_rest();
}

static void when_asked(void)
{
    size_t before = resident();
    call_deep(fill, NULL);
    drop(NULL);
    loam_free_os_memory();
    EXPECT_LE(resident(), bound(before));
    loam_memstats stats;
    loam_read_memstats(&stats);
    /* What handlers of signals allocate from is kept: 4 MiB. */
    EXPECT_LE(stats.heap_idle - stats.heap_released, (uint64_t)5 * MIB);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    if (TEST_TSAN) {
        test_skip("the shadow of what was touched stays resident under ThreadSanitizer");
        return test_end();
    }
    RUN(by_itself);
    RUN(large_object_freed);
    RUN(when_asked);
    return test_end();
}
