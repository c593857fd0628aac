/* thread.c - processors, and the library's own threads.
 *
 * Purpose     Start background threads that disturb nobody; bounds of a native stack.
 * Model       os_thread_start hands its arguments over on its own stack and waits for the thread to
 *             take them: nothing is allocated but by pthread_create itself.
 * Locking     none. os_thread_start and os_stack_bounds allocate inside the C library: call them
 *             with no lock held that an allocator of ours takes.
 * Tests       tests/unit/test_os_signal.c (threads and their masks), test_os_futex.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os_internal.h"

#include "base/bits.h"
#include "os/os.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SCHED_IDLE
#define SCHED_IDLE 5
#endif

#define THREAD_STACK KIB(256)
#define THREAD_STACK_MOST MIB(64) /* what a program with much thread-local storage may need */
#define THREAD_NAME_SIZE 16       /* the kernel's, with the zero */
#define STACK_BOUND_MOST GIB(1)   /* of a main thread without limit */
#define AFFINITY_WORDS 128        /* 8192 processors, the most that Linux is built for */

#if defined(__SANITIZE_THREAD__)
static int sanitizer_threads = 1; /* its own; not in fork's child */
#else
static int sanitizer_threads;
#endif

static _Atomic int own_threads; /* from when they run until they are about to end: rather too few */

int os_ncpu(void)
{
    /* The kernel's mask may be larger than cpu_set_t: straight to the system call, which answers
     * how many bytes it wrote. */
    unsigned long mask[AFFINITY_WORDS];
    int saved_errno = errno;
    long bytes = syscall(SYS_sched_getaffinity, 0, sizeof(mask), mask);
    long n = 0;
    for (size_t i = 0; bytes > 0 && i < (size_t)bytes / sizeof(mask[0]); i++) {
        n += (long)popcount64(mask[i]);
    }
    if (n <= 0) {
        n = sysconf(_SC_NPROCESSORS_ONLN);
    }
    errno = saved_errno;
    return n > 0 ? (int)n : 1;
}

bool os_fence_threads(void)
{
    enum {
        PRIVATE_EXPEDITED = 8,
        REGISTER_PRIVATE_EXPEDITED = 16
    }; /* of <linux/membarrier.h>, which is not everywhere */
    int saved_errno = errno;
    bool ok = syscall(SYS_membarrier, PRIVATE_EXPEDITED, 0, 0) == 0 ||
              (syscall(SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0 &&
               syscall(SYS_membarrier, PRIVATE_EXPEDITED, 0, 0) == 0);
    errno = saved_errno;
    return ok;
}

int os_gettid(void)
{
    return (int)syscall(SYS_gettid);
}

void os_yield(void)
{
    (void)sched_yield();
}

/* What proc(5) tells of a process or thread behind its name, from the state on; NULL: nothing. */
static const char *stat_read(const char *path, char *text, size_t size)
{
    int saved_errno = errno;
    bool known = file_read(path, text, size);
    errno = saved_errno;
    const char *name_end = known ? strrchr(text, ')') : NULL; /* a name may hold anything */
    return name_end != NULL && name_end[1] == ' ' ? name_end + 2 : NULL;
}

int os_count_threads(void)
{
    enum { FIELD = 17 }; /* of num_threads, from the state on */
    char text[1024];
    const char *at = stat_read("/proc/self/stat", text, sizeof text);
    for (int i = 0; i < FIELD && at != NULL; i++) {
        at = strchr(at, ' ');
        at = at == NULL ? NULL : at + 1;
    }
    return at == NULL ? -1 : atoi(at) - load_rlx(&own_threads) - sanitizer_threads;
}

bool os_thread_sleeps(int tid)
{
    char path[64];
    char text[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    const char *state = stat_read(path, text, sizeof text);
    return state != NULL && (state[0] == 'S' || state[0] == 'D');
}

bool os_thread_name(int tid, char name[OS_THREAD_NAME])
{
    char path[64];
    int saved_errno = errno;
    snprintf(path, sizeof path, "/proc/self/task/%d/comm", tid);
    bool known = file_read(path, name, OS_THREAD_NAME);
    name[known ? strcspn(name, "\n") : 0] = 0;
    errno = saved_errno;
    return known;
}

void os_thread_fork_child(void)
{
    store_rlx(&own_threads, 0);
    sanitizer_threads = 0;
}

int os_tgkill(int tid, int signo)
{
    if (os_fault()) {
        return EAGAIN;
    }
    int saved_errno = errno;
    int err = syscall(SYS_tgkill, getpid(), tid, signo) == 0 ? 0 : errno;
    errno = saved_errno;
    return err;
}

struct thread_start {
    void (*fn)(void *arg);
    void *arg;
    char name[THREAD_NAME_SIZE];
    _Atomic uint32_t taken; /* 1: the new thread has its copy, the starter may go */
};

static void *thread_main(void *p)
{
    struct thread_start *start = p;
    void (*fn)(void *) = start->fn;
    void *arg = start->arg;
    add_rlx(&own_threads, 1); /* relaxed, here and below: a number */
    (void)prctl(PR_SET_NAME, start->name);
    store_rel(&start->taken,
              1u); /* release: our reads of *start are done. Pairs with os_thread_start */
    /* The starter may have gone already: a wake of a word nobody sleeps on is harmless. */
    os_futex_wake(&start->taken, 1);
    fn(arg);
    sub_rlx(&own_threads, 1);
    return NULL;
}

/* pthread_create, with a stack large enough for the thread-local storage that glibc puts on it. */
static int thread_create(struct thread_start *start)
{
    pthread_attr_t attr;
    int err = pthread_attr_init(&attr);
    if (err != 0) {
        return err;
    }
    size_t stack = THREAD_STACK + (size_t)PTHREAD_STACK_MIN + os_tls_static_bytes();
    stack = align_up(stack, os_page_size());
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    do {
        pthread_t thread;
        err = pthread_attr_setstacksize(&attr, stack);
        if (err == 0) {
            err = pthread_create(&thread, &attr, thread_main, start);
        }
        stack *= 2;
    } while (err == EINVAL && stack <= THREAD_STACK_MOST);
    (void)pthread_attr_destroy(&attr);
    return err;
}

int os_thread_start(void (*fn)(void *arg), void *arg, const char *name)
{
    if (os_fault()) {
        return EAGAIN;
    }
    struct thread_start start = {.fn = fn, .arg = arg};
    strncpy(start.name, name, sizeof(start.name) - 1);

    sigset_t all;
    sigset_t old;
    sigfillset(&all);
    int err = pthread_sigmask(SIG_SETMASK, &all, &old); /* the new thread inherits it */
    if (err != 0) {
        return err;
    }
    err = thread_create(&start);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err != 0) {
        return err;
    }
    /* acquire: pairs with thread_main; it reads *start no more. */
    while (load_acq(&start.taken) == 0) {
        os_futex_wait(&start.taken, 0, -1);
    }
    return 0;
}

enum { LOW_NICE = 10, QUICK_SLICE_NS = 100000 };

/* sched_setattr(2) of Linux; the C library has no wrapper for it. */
struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

/* LOW is a nice value and not SCHED_IDLE: who holds work of others must get some processor time even
 * where the way back is refused. */
void os_thread_set_priority(int tid, enum os_priority priority)
{
    int saved_errno = errno;
    int nice = getpriority(PRIO_PROCESS, (id_t)getpid()); /* what the program was given */
    struct scheduling attr = {.size = sizeof attr, .policy = SCHED_OTHER, .nice = nice};
    if (priority == OS_PRIORITY_QUICK) {
        attr.runtime = QUICK_SLICE_NS;
        (void)syscall(SYS_sched_setattr, tid, &attr, 0);
    } else {
        (void)setpriority(PRIO_PROCESS, (id_t)tid,
                          priority == OS_PRIORITY_LOW ? nice + LOW_NICE : nice);
    }
    errno = saved_errno;
}

bool os_stack_bounds(uintptr_t *low, uintptr_t *high)
{
    pthread_attr_t attr;
    if (os_fault() || pthread_getattr_np(pthread_self(), &attr) != 0) {
        return false;
    }
    void *base = NULL;
    size_t bytes = 0;
    int err = pthread_attr_getstack(&attr, &base, &bytes);
    (void)pthread_attr_destroy(&attr);
    if (err != 0 || base == NULL || bytes == 0) {
        return false;
    }
    *low = (uintptr_t)base;
    *high = (uintptr_t)base + bytes;
#ifndef __GLIBC__
    /* musl reports as much of the main thread's stack as is mapped already; it may grow. */
    struct rlimit limit;
    if (os_gettid() == getpid() && getrlimit(RLIMIT_STACK, &limit) == 0) {
        size_t most = limit.rlim_cur < STACK_BOUND_MOST ? (size_t)limit.rlim_cur : STACK_BOUND_MOST;
        *low = most > bytes ? *high - most : *low;
    }
#endif
    return true;
}
