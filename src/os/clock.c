/* clock.c - clocks, and sleeping by them.
 *
 * Purpose     The four clocks the library reads, in nanoseconds.
 * Model       clock_gettime is the vDSO's for the first two; the CPU clocks are system calls.
 *             os_sleep_ns goes to the kernel by itself: the C library's clock_nanosleep is a
 *             cancellation point, and no thread may be cancelled inside the library.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND INT64_C(1000000000)

static int64_t clock_read(clockid_t id)
{
    struct timespec ts = {0, 0};
    (void)clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * NS_PER_SECOND + (int64_t)ts.tv_nsec;
}

int64_t os_nanotime(void)
{
    return clock_read(CLOCK_MONOTONIC);
}

int64_t os_walltime(void)
{
    return clock_read(CLOCK_REALTIME);
}

int64_t os_thread_cputime(void)
{
    return clock_read(CLOCK_THREAD_CPUTIME_ID);
}

int64_t os_process_cputime(void)
{
    return clock_read(CLOCK_PROCESS_CPUTIME_ID);
}

void os_sleep_ns(int64_t ns)
{
    if (ns <= 0) {
        return;
    }
    int saved_errno = errno;
    int64_t now = os_nanotime();
    int64_t until = ns > INT64_MAX - now ? INT64_MAX : now + ns;
    struct timespec deadline = {
        .tv_sec = (time_t)(until / NS_PER_SECOND),
        .tv_nsec = (long)(until % NS_PER_SECOND),
    };
    while (syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) != 0 &&
           errno == EINTR) {
    }
    errno = saved_errno;
}
