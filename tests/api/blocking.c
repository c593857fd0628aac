/* A thread that waits holds no collection up, keeps what it holds, and sees no EINTR that SA_RESTART can prevent,
 * whether it said loam_enter_blocking or not.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 90 */
#include "../support/test.h"

#include <semaphore.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    uint64_t id;
    uint64_t check;
    uint64_t fill[6];
} item;
LOAM_TYPE_NOSCAN(item);

static item *item_new(uint64_t id)
{
    item *it = LOAM_NEW(item);
    EXPECT_NOT_NULL(it);
    it->id = id;
    it->check = rng_mix(id);
    return it;
}

static void item_check(const item *it)
{
    EXPECT_EQ(it->check, rng_mix(it->id));
}

static _Atomic(bool) stop;
static _Atomic(size_t) waiting;

static void collect_some(size_t times)
{
    for (size_t i = 0; i < times; i++) {
        uint64_t start = now_ns();
        loam_gc();
        EXPECT_MSG(seconds_since(start) < 10, "a collection took %g s beside waiting threads",
                   seconds_since(start));
        for (uint64_t k = 0; k < 500; k++) {
            item_new(k);
        }
    }
}

/* One way to wait for the other side: returns when it was told to. */
struct wait_kind {
    const char *name;
    void (*wait)(int fd);
    bool says_so;
};

static void wait_in_read(int fd)
{
    char c = 0;
    ssize_t got = read(fd, &c, 1);
    EXPECT_MSG(got == 1, "read gave %zd, %s", got, strerror(errno));
}

static void wait_in_recv(int fd)
{
    char c = 0;
    ssize_t got = recv(fd, &c, 1, 0);
    EXPECT_MSG(got == 1, "recv gave %zd, %s", got, strerror(errno));
}

static void wait_nested(int fd)
{
    loam_enter_blocking();
    loam_enter_blocking();
    loam_exit_blocking();
    sleep_us(20000); /* still blocking */
    wait_in_read(fd);
    loam_exit_blocking();
}

struct wait_run {
    const struct wait_kind *kind;
    int fd;
};

static void *hold_and_wait(void *arg)
{
    const struct wait_run *run = arg;
    item *mine[50];
    for (size_t i = 0; i < COUNT_OF(mine); i++) {
        mine[i] = item_new(i);
    }
    atomic_fetch_add(&waiting, 1);
    if (run->kind->says_so) {
        loam_enter_blocking();
    }
    run->kind->wait(run->fd);
    if (run->kind->says_so) {
        loam_exit_blocking();
    }
    for (size_t i = 0; i < COUNT_OF(mine); i++) {
        item_check(mine[i]);
        item_check(item_new(i));
    }
    return NULL;
}

static void waiting_on_descriptors(void)
{
    static const struct wait_kind kinds[] = {
        /* ThreadSanitizer delivers no signal in read and recv: there all have to say so. */
        {"read", wait_in_read, TEST_TSAN}, {"read, said so", wait_in_read, true},
        {"recv", wait_in_recv, TEST_TSAN}, {"recv, said so", wait_in_recv, true},
        {"nested", wait_nested, false},    {"nested twice", wait_nested, true},
    };
    enum { COUNT = COUNT_OF(kinds) };
    int pair[COUNT][2];
    struct wait_run runs[COUNT];
    pthread_t t[COUNT];

    atomic_store(&waiting, 0);
    for (size_t i = 0; i < COUNT; i++) {
        EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair[i]), 0);
        runs[i] = (struct wait_run){&kinds[i], pair[i][0]};
        t[i] = thread_start(hold_and_wait, &runs[i]);
    }
    WAIT_FOR(20, atomic_load(&waiting) == COUNT);
    sleep_us(10000);
    collect_some(test_scaled(200));
    for (size_t i = 0; i < COUNT; i++) {
        EXPECT_EQ(write(pair[i][1], "x", 1), 1);
        thread_join(t[i]);
        close(pair[i][0]);
        close(pair[i][1]);
    }
}

/* ---- waits of the C library ---- */

static sem_t semaphore;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static bool condition_met;

static void *wait_for_semaphore(void *arg)
{
    item *mine = item_new(1);
    atomic_fetch_add(&waiting, 1);
    EXPECT_MSG(sem_wait(&semaphore) == 0, "sem_wait: %s", strerror(errno));
    item_check(mine);
    return arg;
}

static void *wait_for_mutex(void *arg)
{
    item *mine = item_new(2);
    atomic_fetch_add(&waiting, 1);
    EXPECT_EQ(pthread_mutex_lock(&mutex), 0);
    while (!condition_met) {
        EXPECT_EQ(pthread_cond_wait(&condition, &mutex), 0);
    }
    EXPECT_EQ(pthread_mutex_unlock(&mutex), 0);
    item_check(mine);
    return arg;
}

static void *wait_for_child(void *arg)
{
    item *mine = item_new(3);
    int status = 0;
    atomic_fetch_add(&waiting, 1);
    pid_t pid = *(pid_t *)arg;
    if (TEST_TSAN) { /* as above */
        loam_enter_blocking();
    }
    EXPECT_MSG(waitpid(pid, &status, 0) == pid, "waitpid: %s", strerror(errno));
    if (TEST_TSAN) {
        loam_exit_blocking();
    }
    item_check(mine);
    return NULL;
}

static void waiting_in_the_c_library(void)
{
    int fds[2];
    EXPECT_EQ(sem_init(&semaphore, 0, 0), 0);
    EXPECT_EQ(pipe(fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        char c;
        close(fds[1]);
        _exit(read(fds[0], &c, 1) == 0 ? 0 : 1); /* ends when the parent closes */
    }
    close(fds[0]);
    atomic_store(&waiting, 0);
    pthread_t t[] = {thread_start(wait_for_semaphore, NULL), thread_start(wait_for_mutex, NULL),
                     thread_start(wait_for_child, &pid)};
    WAIT_FOR(20, atomic_load(&waiting) == COUNT_OF(t));
    sleep_us(10000);
    collect_some(test_scaled(200));
    EXPECT_EQ(sem_post(&semaphore), 0);
    pthread_mutex_lock(&mutex);
    condition_met = true;
    pthread_cond_broadcast(&condition);
    pthread_mutex_unlock(&mutex);
    close(fds[1]);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        thread_join(t[i]);
    }
    sem_destroy(&semaphore);
}

/* ---- in and out all the time ---- */

static void *in_and_out(void *arg)
{
    struct team_member *me = arg;
    item *mine[20] = {NULL};
    uint64_t x = 1;
    while (!atomic_load(&stop)) {
        size_t i = rng_below(&me->rng, COUNT_OF(mine));
        mine[i] = item_new(i);
        loam_enter_blocking();
        for (size_t n = rng_below(&me->rng, 300); n > 0; n--) {
            x = rng_mix(x);
        }
        if (rng_below(&me->rng, 50) == 0) {
            sleep_us(100);
        }
        loam_exit_blocking();
        i = rng_below(&me->rng, COUNT_OF(mine));
        if (mine[i] != NULL) {
            item_check(mine[i]);
        }
    }
    return (void *)(uintptr_t)(x & 1);
}

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static void entered_and_left_while_cycles_run(void)
{
    static struct team team;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, in_and_out, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

/* ---- unattached threads may say it too ---- */

static void *enter_unattached(void *arg)
{
    loam_enter_blocking();
    sleep_us(1000);
    loam_exit_blocking();
    item_check(item_new(1));
    loam_enter_blocking(); /* and may end so */
    return arg;
}

static void without_being_attached(void)
{
    for (int i = 0; i < 20; i++) {
        thread_run(enter_unattached, NULL);
        loam_gc();
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(waiting_on_descriptors);
    RUN(waiting_in_the_c_library);
    RUN(entered_and_left_while_cycles_run);
    RUN(without_being_attached);
    return test_end();
}
