/* A program is told that memory is short, and what it has outside of the heap is counted.
 *
 * A cache that drops half of itself whenever it is told keeps a program inside a limit that it would exceed by far; where
 * memory is refused (address space by RLIMIT_AS, writable memory by RLIMIT_DATA, as without overcommit) it keeps
 * allocations from failing; in a container (a memory cgroup, where this process may make one) with GOMEMLIMIT=auto it keeps
 * the program alive, which the system kills without.  Handlers run on the library's thread in the order in
 * which they came, with what was given them kept alive, and no more once removed.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 | | 60 */
#include "../support/test.h"

#include <loam/stats.h>
#include <pthread.h>
#include <sys/stat.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/items.h"

enum { MIB = 1 << 20 };

/* ---- a cache ---- */

enum { PIECE = 4000, CACHE_MOST = 1 << 18 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned char **cache;
static size_t cached;
static _Atomic(unsigned) told[4];

static NOINLINE void cache_begin(void)
{
    LOAM_SET(cache, (unsigned char **)loam_alloc(CACHE_MOST * sizeof(void *)));
    EXPECT_NOT_NULL(cache);
}

static bool cache_one(void)
{
    unsigned char *p = loam_alloc_noscan(PIECE);
    if (p == NULL) {
        return false;
    }
    memset(p, 1, PIECE);
    pthread_mutex_lock(&lock);
    LOAM_SET(cache[cached], p);
    cached = (cached + 1) % CACHE_MOST;
    pthread_mutex_unlock(&lock);
    return true;
}

static void shrink(loam_pressure level, void *arg)
{
    item_check(arg);
    atomic_fetch_add(&told[level], 1);
    pthread_mutex_lock(&lock);
    for (size_t half = cached / 2; cached > half;) {
        LOAM_SET(cache[--cached], NULL);
    }
    pthread_mutex_unlock(&lock);
}

static NOINLINE void add_shrink(void)
{
    EXPECT_EQ(loam_add_pressure_handler(shrink, item_new(7, NULL)), 0);
}

static void inside_a_limit(void)
{
    cache_begin();
    add_shrink();
    loam_set_memory_limit(64 * MIB);
    for (int i = 0; i < 200000; i++) { /* 800 MB */
        EXPECT(cache_one());
        if (i % 1000 == 0) {
            loam_memstats st;
            loam_read_memstats(&st);
            EXPECT_LE(st.sys - st.heap_released, (uint64_t)128 * MIB); /* it runs ahead */
        }
    }
    EXPECT_GE(atomic_load(&told[LOAM_PRESSURE_NEAR]) + atomic_load(&told[LOAM_PRESSURE_AT]), 1);
}

/* Before the library's first use: later its address space is there. */
static void limit_memory(int resource)
{
    struct rlimit limit = {(rlim_t)700 * MIB, (rlim_t)700 * MIB};
    EXPECT_EQ(setrlimit(resource, &limit), 0);
}

static size_t fill(void)
{
    cache_begin();
    loam_set_gc_percent(-1); /* the heap grows until it is refused */
    size_t n = 0;
    while (n < 500000 && cache_one()) { /* 2 GB */
        n++;
    }
    return n;
}

static void fill_all(void)
{
    add_shrink();
    EXPECT_EQ(fill(), 500000);
    EXPECT_GE(atomic_load(&told[LOAM_PRESSURE_OVER]), 1);
}

static void space_with_handler(void)
{
    limit_memory(RLIMIT_AS);
    fill_all();
}

static void space_without(void)
{
    limit_memory(RLIMIT_AS);
    EXPECT_LT(fill(), 500000);
}

static void data_with_handler(void)
{
    limit_memory(RLIMIT_DATA);
    fill_all();
}

static void data_without(void)
{
    limit_memory(RLIMIT_DATA);
    EXPECT_LT(fill(), 500000);
}

/* ---- in a container ---- */

enum { GROUP_LIMIT = 192 * MIB };

static bool write_to(const char *dir, const char *file, const char *text)
{
    char path[4096 + 64];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

static bool has_swap(void)
{
    char line[512];
    int lines = 0;
    FILE *f = fopen("/proc/swaps", "re");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        lines++;
    }
    if (f != NULL) {
        fclose(f);
    }
    return lines > 1;
}

static bool may_enter(const char *dir)
{
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) {
        _exit(write_to(dir, "cgroup.procs", "0") ? 0 : 1);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

/* A group below our own, in the hierarchy of version 1 or 2, whichever governs memory; its folder in dir. */
static bool group_make(char *dir, size_t size)
{
    static const char *const marks[] = {":memory:", "0::"};
    static const char *const mounts[] = {"/sys/fs/cgroup/memory", "/sys/fs/cgroup"};
    static const char *const files[] = {"memory.limit_in_bytes", "memory.max"};
    static const char *const swaps[] = {"memory.memsw.limit_in_bytes", "memory.swap.max"};
    char line[2048], limit[32];
    snprintf(limit, sizeof limit, "%d", GROUP_LIMIT);
    for (int version = 0; version < 2; version++) {
        FILE *f = fopen("/proc/self/cgroup", "re");
        bool made = false;
        while (f != NULL && !made && fgets(line, sizeof line, f) != NULL) {
            const char *mark = strstr(line, marks[version]);
            if (mark == NULL) {
                continue;
            }
            const char *group = mark + strlen(marks[version]);
            snprintf(dir, size, "%s%.*s/loam-test-%d", mounts[version], (int)strcspn(group, "\n"),
                     group, (int)getpid());
            made = mkdir(dir, 0755) == 0;
            made = made && write_to(dir, files[version], limit) &&
                   (write_to(dir, swaps[version], version == 0 ? limit : "0") || !has_swap()) &&
                   may_enter(dir);
            if (!made) {
                rmdir(dir);
                made = false;
            }
        }
        if (f != NULL) {
            fclose(f);
        }
        if (made) {
            return true;
        }
    }
    return false;
}

static void enter_group(void)
{
    EXPECT(write_to(getenv("TEST_GROUP"), "cgroup.procs", "0"));
}

static void fill_container(void)
{
    cache_begin();
    for (int i = 0; i < 500000; i++) { /* 2 GB */
        EXPECT(cache_one());
    }
}

static void container_with_handler(void)
{
    enter_group();
    add_shrink();
    fill_container();
}

static void container_without(void)
{
    enter_group();
    fill_container();
}

static const struct child_case children[] = {
    {"inside_a_limit", inside_a_limit},       {"space_with_handler", space_with_handler},
    {"space_without", space_without},         {"data_with_handler", data_with_handler},
    {"data_without", data_without},           {"container_with_handler", container_with_handler},
    {"container_without", container_without},
};

static void caches_shrink(void)
{
    static struct child c;
    child_run(&c, "inside_a_limit", NULL, 60);
    EXPECT_CHILD_PASSED(&c);
#if !TEST_SANITIZED /* their shadow memory does not fit */
    /* An emulator lets no guest limit its address space. */
    for (size_t i = 1; i < 5 && getenv("TEST_EMULATOR") == NULL; i++) {
        child_run(&c, children[i].name, NULL, 60);
        EXPECT_CHILD_PASSED(&c);
    }
#endif
}

static void in_a_container(void)
{
    static struct child c;
    char dir[4096], group[4096 + 16];
    if (TEST_SANITIZED || getenv("TEST_EMULATOR") != NULL) {
        return; /* they take as much themselves */
    }
    if (!group_make(dir, sizeof dir)) {
        printf("  not shown: no memory cgroup can be made here\n");
        return;
    }
    snprintf(group, sizeof group, "TEST_GROUP=%s", dir);
    const char *const environment[] = {"GOMEMLIMIT=auto", group, NULL};
    child_run(&c, "container_with_handler", environment, 60);
    bool lives = child_exited(&c, 0);
    static struct child without;
    child_run(&without, "container_without", environment, 60);
    for (int i = 0; i < 100 && rmdir(dir) != 0; i++) { /* once its last process is gone */
        sleep_us(10000);
    }
    EXPECT_MSG(lives, "status %#x%s: %s", (unsigned)c.status, c.timed_out ? " (timed out)" : "",
               c.text);
    EXPECT_MSG(!without.timed_out && WIFSIGNALED(without.status) &&
                   WTERMSIG(without.status) == SIGKILL,
               "status %#x%s: %s", (unsigned)without.status,
               without.timed_out ? " (timed out)" : "", without.text);
}

/* ---- the list of handlers ---- */

static _Atomic(unsigned) order, a_at, b_at, a_times, b_times;

static void note_a(loam_pressure level, void *arg)
{
    (void)level;
    EXPECT_NULL(arg);
    unsigned at = atomic_fetch_add(&order, 1);
    if (atomic_fetch_add(&a_times, 1) ==
        0) { /* it is told again as long as the limit is exceeded */
        atomic_store(&a_at, at);
    }
}

static void note_b(loam_pressure level, void *arg)
{
    EXPECT_EQ(level, LOAM_PRESSURE_OVER);
    item_check(arg);
    EXPECT_NOT_NULL(item_new(1, NULL)); /* it may allocate */
    EXPECT_EQ(loam_remove_pressure_handler(note_b, arg), 0);
    atomic_store(&b_at, atomic_fetch_add(&order, 1));
    atomic_fetch_add(&b_times, 1);
}

static void wait_for(_Atomic(unsigned) *n, unsigned least)
{
    for (int i = 0; i < 5000 && atomic_load(n) < least; i++) {
        sleep_us(1000);
    }
    EXPECT_GE(atomic_load(n), least);
}

static NOINLINE void add_b(void)
{
    EXPECT_EQ(loam_add_pressure_handler(note_b, item_new(3, NULL)), 0);
}

static void in_order(void)
{
    static item *list;
    LOAM_SET(list, list_new(100000));
    EXPECT_EQ(loam_add_pressure_handler(note_a, NULL), 0);
    add_b();
    loam_gc();
    sleep_us(20000);
    EXPECT_EQ(atomic_load(&order), 0); /* no limit, no pressure */
    loam_set_memory_limit(1);
    loam_gc();
    wait_for(&b_times, 1);
    EXPECT_LT(atomic_load(&a_at), atomic_load(&b_at));
    unsigned before = atomic_load(&a_times);
    loam_gc();
    wait_for(&a_times, before + 1);
    EXPECT_EQ(loam_remove_pressure_handler(note_a, NULL), 0);
    EXPECT_ERRNO(loam_remove_pressure_handler(note_a, NULL), -1, EINVAL);
    EXPECT_ERRNO(loam_add_pressure_handler(NULL, NULL), -1, EINVAL);
    loam_gc();
    sleep_us(20000); /* one more call may have been under way */
    before = atomic_load(&a_times);
    loam_gc();
    sleep_us(50000);
    EXPECT_EQ(atomic_load(&a_times), before);
    loam_set_memory_limit(INT64_MAX);
}

/* ---- memory outside ---- */

enum { OUTSIDE = MIB };
static _Atomic(int64_t) outside, most_outside;

static void outside_freed(void *arg)
{
    (void)arg;
    atomic_fetch_sub(&outside, OUTSIDE);
    loam_add_external_bytes(-OUTSIDE);
}

static NOINLINE void own_one(void)
{
    item *it = item_new(5, NULL);
    EXPECT_NE(loam_add_cleanup(it, outside_freed, NULL), 0);
    int64_t now = atomic_fetch_add(&outside, OUTSIDE) + OUTSIDE;
    loam_add_external_bytes(OUTSIDE);
    if (now > atomic_load(&most_outside)) {
        atomic_store(&most_outside, now);
    }
}

static void external_bytes(void)
{
    loam_memstats before, after;
    loam_read_memstats(&before);
    after = before;
    /* Objects of 1 MB in all, which alone are not worth a cycle. */
    for (int i = 0; i < 20000 && after.num_gc - before.num_gc < 5; i++) {
        own_one();
        if (i % 8 == 0) {
            sleep_us(500); /* their cleanups have a thread of their own */
            loam_read_memstats(&after);
        }
    }
    printf("at most %d MiB outside\n", (int)(atomic_load(&most_outside) / MIB));
    EXPECT_GE(after.num_gc - before.num_gc, 5);
    for (int i = 0; i < 5000 && atomic_load(&outside) > 100 * OUTSIDE; i++) {
        loam_gc();
        sleep_us(1000); /* for the thread of the cleanups */
    }
    EXPECT_LE(atomic_load(&outside), (int64_t)100 * OUTSIDE);
    loam_add_external_bytes(INT64_MIN); /* never below zero */
    loam_add_external_bytes(INT64_MAX);
    loam_add_external_bytes(INT64_MIN);
    loam_gc();
    EXPECT_NOT_NULL(item_new(1, NULL));
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    RUN(in_order);
    RUN(external_bytes);
    RUN(caches_shrink);
    RUN(in_a_container);
    return test_end();
}
