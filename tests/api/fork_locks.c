/* fork while other threads hold locks that it waits for: those of the C library's malloc and stdio, which it takes after
 * every handler of pthread_atfork, and one of the program's own that such a handler takes, registered before the
 * library started.  And while handlers of the program allocate and store, on the thread that forks and on others, or fork
 * themselves.  Parent and child go on, and the child finds whole what others were building.  A lock that fork wants and a thread holds that waits
 * for the fork: then the child has no heap, and says so.  The same where the system has no fence for all threads.
 *
 * --watched 1 (membarrier(2) is refused)
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 120
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 120
 * TEST_RUN: gcstress | GODEBUG=gcstress=300 | | 120
 * TEST_RUN: watched | GODEBUG=clobberfree=1 GOGC=5 | --watched 1 | 120 */
#include "../support/test.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

enum { WORKERS = 3, SHARED = 64 };

static item *_Atomic shared[SHARED];
static pthread_mutex_t own_lock = PTHREAD_MUTEX_INITIALIZER;
static item
    *under_own_lock; /* a list of EVEN or EVEN + 1 items, the odd one while the lock is held */
enum { EVEN = 10 };
static _Atomic(bool) stop;
static _Atomic(uint64_t) worked[WORKERS];

/* Signals that come to who waits for a mutex ThreadSanitizer delivers when it has it. */
static void take_own_lock(void)
{
    while (TEST_TSAN && pthread_mutex_trylock(&own_lock) != 0) {
        sleep_us(10);
    }
    if (!TEST_TSAN) {
        EXPECT_EQ(pthread_mutex_lock(&own_lock), 0);
    }
}

static void release_own_lock(void)
{
    EXPECT_EQ(pthread_mutex_unlock(&own_lock), 0);
}

/* Their locks in a sanitizer's child stay as they were. */
static void use_the_c_library(struct rng *rng)
{
    if (TEST_SANITIZED) {
        return;
    }
    void *blocks[16];
    for (size_t i = 0; i < COUNT_OF(blocks); i++) {
        blocks[i] = malloc(2000 + rng_below(rng, 200000));
        EXPECT_NOT_NULL(blocks[i]);
    }
    FILE *f = fopen("/dev/null", "w");
    EXPECT_NOT_NULL(f);
    fputs("text", f);
    fclose(f);
    for (size_t i = 0; i < COUNT_OF(blocks); i++) {
        free(blocks[i]);
    }
}

static void change_shared(struct rng *rng)
{
    item *old = loam_exchange(&shared[rng_below(rng, SHARED)], list_new(rng_below(rng, 8) + 1));
    list_check(old);
    loam_free(loam_alloc(rng_below(rng, 3000)));
}

static void change_under_own_lock(void)
{
    take_own_lock();
    LOAM_SET(under_own_lock, item_new(EVEN, under_own_lock));
    LOAM_SET(under_own_lock, LOAD_SLOT(under_own_lock->next));
    release_own_lock();
}

static void *work(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load(&stop)) {
        use_the_c_library(&me->rng);
        change_shared(&me->rng);
        change_under_own_lock();
        atomic_fetch_add(&worked[me->index], 1);
    }
    return NULL;
}

/* What others stored without a lock is there, or is not: no more is promised than that it may be looked for. */
static NOINLINE void live_as_child(void)
{
    EXPECT_EQ(list_check(under_own_lock), EVEN);
    item *mine = list_new(500);
    free(malloc(5000));
    loam_gc();
    EXPECT_EQ(list_check(mine), 500);
    EXPECT_EQ(list_check(under_own_lock), EVEN);
    for (size_t i = 0; i < SHARED; i++) {
        LOAM_SET(shared[i], NULL);
    }
    loam_gc();
    EXPECT_EQ(list_check(mine), 500);
    EXPECT_EQ(list_check(under_own_lock), EVEN);
}

static void handle(int signo, void (*handler)(int))
{
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = handler;
    sa.sa_flags = SA_RESTART;
    EXPECT_EQ(sigaction(signo, &sa, NULL), 0);
}

/* The alarm is for the thread that forks: who works inherits the mask. */
static void team_start_deaf(struct team *team, size_t count, void *(*fn)(void *))
{
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    EXPECT_EQ(pthread_sigmask(SIG_BLOCK, &set, &old), 0);
    atomic_store(&stop, false);
    team_start(team, count, fn, NULL);
    EXPECT_EQ(pthread_sigmask(SIG_SETMASK, &old, NULL), 0);
}

/* Once: a fork that is interrupted begins again. Timers are not inherited. */
static void alarm_soon(size_t i)
{
    struct itimerval soon = {{0, 0}, {0, 1 + (suseconds_t)(i * 37 % 500)}};
    EXPECT_EQ(setitimer(ITIMER_REAL, &soon, NULL), 0);
}

static void fork_and_live(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        alarm(60);
        live_as_child();
        _exit(0);
    }
    child_wait(pid);
}

static void others_hold_locks(void)
{
    static struct team team;
    uint64_t before[WORKERS];
    atomic_store(&stop, false);
    team_start(&team, WORKERS, work, NULL);
    for (size_t i = 0; i < test_scaled(200); i++) {
        for (size_t k = 0; k < WORKERS; k++) {
            before[k] = atomic_load(&worked[k]);
        }
        fork_and_live();
        for (size_t k = 0; k < WORKERS; k++) { /* all of them go on */
            WAIT_FOR(30, atomic_load(&worked[k]) != before[k]);
        }
    }
    atomic_store(&stop, true);
    team_join(&team);
}

static __thread item *mine_in_handler;

static void work_in_handler(int signo)
{
    int saved = errno;
    (void)signo;
    item *list = list_new(20);
    list_check(mine_in_handler);
    mine_in_handler = list;
    list_check(loam_exchange(&shared[0], item_new(1, NULL)));
    errno = saved;
}

static void a_handler_works_over_fork(void)
{
    static struct team team;
    handle(SIGALRM, work_in_handler);
    team_start_deaf(&team, 1, work);
    for (size_t i = 0; i < test_scaled(200); i++) {
        alarm_soon(i);
        fork_and_live();
    }
    struct itimerval never = {{0, 0}, {0, 0}};
    EXPECT_EQ(setitimer(ITIMER_REAL, &never, NULL), 0);
    atomic_store(&stop, true);
    team_join(&team);
    mine_in_handler = NULL;
}

/* ---- while handlers of other threads allocate ---- */

static void allocate_in_handler(int signo)
{
    int saved = errno;
    (void)signo;
    EXPECT_NOT_NULL(loam_alloc(40000)); /* whole pages, also over a store */
    list_check(list_new(3));
    errno = saved;
}

/* Nothing of the C library: a handler that allocates over malloc while another thread forks waits with its lock. */
static void *change_only(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load(&stop)) {
        change_shared(&me->rng);
    }
    return NULL;
}

static void *interrupt(void *arg)
{
    while (!atomic_load(&stop)) {
        pthread_kill(*(pthread_t *)arg, SIGUSR1);
        sleep_us(50);
    }
    return NULL;
}

static void handlers_allocate_beside_fork(void)
{
    static struct team team;
    handle(SIGUSR1, allocate_in_handler);
    atomic_store(&stop, false);
    team_start(&team, 2, change_only, NULL);
    pthread_t first = thread_start(interrupt, &team.thread[0]);
    pthread_t second = thread_start(interrupt, &team.thread[1]);
    for (size_t i = 0; i < test_scaled(200); i++) {
        fork_and_live();
    }
    atomic_store(&stop, true);
    thread_join(first);
    thread_join(second);
    team_join(&team);
}

/* Over the library the handler's child has no heap, which it need not know to end. */
static _Atomic(size_t) forked_in_handler;

static void fork_in_handler(int signo)
{
    int saved = errno;
    (void)signo;
    pid_t pid = fork();
    if (pid == 0) {
        _exit(0);
    }
    child_wait(pid);
    atomic_fetch_add(&forked_in_handler, 1);
    errno = saved;
}

static void a_handler_forks(void)
{
    static struct team team;
    handle(SIGALRM, fork_in_handler);
    /* Not one that takes the program's own lock: fork's handler waits for that, over locks of the library. */
    team_start_deaf(&team, 1, change_only);
    struct rng rng = {test_state.seed};
    for (size_t i = 0; i < test_scaled(100); i++) {
        size_t before = atomic_load(&forked_in_handler);
        alarm_soon(i);
        while (atomic_load(&forked_in_handler) == before) {
            change_shared(&rng);
            loam_free(loam_alloc(100000));
        }
    }
    atomic_store(&stop, true);
    team_join(&team);
}

/* ---- a lock that fork takes after it has waited for the library ---- */

static pthread_mutex_t late_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(bool) late_lock_matters, late_lock_is_held;

static void take_late_lock(void)
{
    if (atomic_load(&late_lock_matters)) {
        EXPECT_EQ(pthread_mutex_lock(&late_lock), 0);
    }
}

static void release_late_lock(void)
{
    if (atomic_load(&late_lock_matters)) {
        EXPECT_EQ(pthread_mutex_unlock(&late_lock), 0);
    }
}

static void register_first(void)
{
    EXPECT_EQ(pthread_atfork(take_late_lock, release_late_lock, release_late_lock), 0);
}
#if !TEST_SANITIZED /* whose runtimes start there themselves */
__attribute__((section(".preinit_array"),
               used)) static void (*const before_all)(void) = register_first;
#endif

static void *allocate_under_late_lock(void *arg)
{
    EXPECT_EQ(pthread_mutex_lock(&late_lock), 0);
    atomic_store(&late_lock_is_held, true);
    uint64_t start = now_ns();
    while (seconds_since(start) < 2) {
        loam_free(loam_alloc(100000));
    }
    EXPECT_EQ(pthread_mutex_unlock(&late_lock), 0);
    return arg;
}

static pid_t fork_against_late_lock(void)
{
    atomic_store(&late_lock_is_held, false);
    atomic_store(&late_lock_matters, true);
    pthread_t t = thread_start(allocate_under_late_lock, NULL);
    WAIT_FOR(30, atomic_load(&late_lock_is_held));
    pid_t pid = fork();
    if (pid != 0) {
        atomic_store(&late_lock_matters, false);
        thread_join(t);
        EXPECT_EQ(list_check(list_new(1000)), 1000);
        loam_gc();
    }
    return pid;
}

static void child_without_heap_forks(void)
{
    pid_t pid = fork_against_late_lock();
    if (pid == 0) {
        atomic_store(&late_lock_matters, false);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            _exit(0);
        }
        child_wait(grandchild);
        _exit(0);
    }
    child_wait(pid);
}

static void child_without_heap_collects(void)
{
    pid_t pid = fork_against_late_lock();
    if (pid == 0) {
        loam_gc();
        loam_free(loam_alloc(100000));
        _exit(0);
    }
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static const struct child_case cases[] = {
    {"child_without_heap_forks", child_without_heap_forks},
    {"child_without_heap_collects", child_without_heap_collects},
};

static void a_lock_that_cannot_be_had(void)
{
    static struct child c;
    if (TEST_SANITIZED) {
        printf("skip: who registers a handler before the library is a sanitizer here\n");
        return;
    }
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        child_run(&c, cases[i].name, NULL, 60);
        EXPECT_MSG(!c.timed_out && WIFEXITED(c.status) && WEXITSTATUS(c.status) == 0,
                   "status %#x, it said: %s", (unsigned)c.status, c.text);
        EXPECT_CONTAINS(c.text, "after 5 s it goes on");
        EXPECT((strstr(c.text, "exec or _exit") != NULL) == (i == 1));
    }
}

/* ---- */

static bool refuse_membarrier(void)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {COUNT_OF(program), program};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0 &&
           syscall(SYS_membarrier, 0, 0, 0) < 0;
}

int main(int argc, char **argv)
{
    if (TEST_SANITIZED) {
        register_first();
    }
    EXPECT_EQ(pthread_atfork(take_own_lock, release_own_lock, release_own_lock), 0);
    test_begin(argc, argv);
    if (getenv("TEST_EMULATOR") != NULL) {
        test_skip("fork of several threads under qemu-user, which fails an assertion of its own");
        return test_end();
    }
    if (test_number("watched", 0) != 0 && !refuse_membarrier()) {
        test_skip("no system call can be refused here");
        return test_end();
    }
    child_dispatch(cases, COUNT_OF(cases));
    LOAM_SET(under_own_lock, list_new(EVEN));
    RUN(others_hold_locks);
    RUN(a_handler_works_over_fork);
    RUN(handlers_allocate_beside_fork);
    RUN(a_handler_forks);
    RUN(a_lock_that_cannot_be_had);
    return test_end();
}
