/* poll.c - one set of descriptors for the process, and what happens at them.
 *
 * Purpose     The scheduler's waits for descriptors; epoll(7).
 * Model       Each descriptor is armed for one event at a time (EPOLLONESHOT): what is registered is never older than the last
 *             ask, so a number that was closed and given out anew needs no word of ours; a file that lives on under another
 *             number answers with the number of an old ask.
 * Locking     none: the kernel's.
 * Tests       tests/api/goroutine_io.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

_Static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLPRI == POLLPRI &&
                   EPOLLERR == POLLERR && EPOLLHUP == POLLHUP && EPOLLRDHUP == POLLRDHUP,
               "poll's events are epoll's");

enum { AT_ONCE = 128 };

static int set = -1;
static int bell = -1; /* an eventfd in the set; rings until somebody who waits has heard it */

int os_poll_open(void)
{
    if (os_fault()) {
        return EMFILE;
    }
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0) {
        return errno;
    }
    int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = UINT32_MAX};
    if (wake < 0 || epoll_ctl(fd, EPOLL_CTL_ADD, wake, &event) != 0) {
        int err = errno;
        (void)close(fd);
        if (wake >= 0) {
            (void)close(wake);
        }
        return err;
    }
    bell = wake;
    set = fd;
    return 0;
}

int os_poll_ask(int fd, int events, uint32_t ask)
{
    if (os_fault()) {
        return ENOMEM;
    }
    int saved_errno = errno;
    struct epoll_event event = {.events = (uint32_t)events | EPOLLONESHOT,
                                .data.u64 = (uint64_t)ask << 32 | (uint32_t)fd};
    int err = epoll_ctl(set, EPOLL_CTL_MOD, fd, &event) == 0 ? 0 : errno;
    if (err == ENOENT) {
        err = epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : errno;
    }
    errno = saved_errno;
    return err;
}

/* To the nanosecond where the kernel can (Linux 5.11), else to the next millisecond. */
static int wait_for(struct epoll_event *found, int most, int64_t ns)
{
#ifdef SYS_epoll_pwait2
    static _Atomic bool cannot; /* relaxed: a fact that all find out */
    if (ns > 0 && !load_rlx(&cannot)) {
        struct timespec ts = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
        int got = (int)syscall(SYS_epoll_pwait2, set, found, most, &ts, NULL, (size_t)0);
        if (got >= 0 || errno != ENOSYS) {
            return got;
        }
        store_rlx(&cannot, true);
    }
#endif
    int64_t ms = ns < 0 ? -1 : (ns + 999999) / 1000000;
    return epoll_wait(set, found, most, ms > 1 << 30 ? 1 << 30 : (int)ms);
}

int os_poll_wait(struct os_poll_event *events, int n, int64_t ns)
{
    struct epoll_event found[AT_ONCE];
    int saved_errno = errno;
    int got = wait_for(found, n < AT_ONCE ? n : AT_ONCE, ns);
    int count = 0;
    for (int i = 0; i < got; i++) {
        uint64_t data = found[i].data.u64;
        uint64_t rings;
        if ((uint32_t)data == UINT32_MAX) {
            /* Not by who only looks: it is meant for who waits. */
            (void)!(ns != 0 && read(bell, &rings, sizeof rings));
        } else {
            events[count++] = (struct os_poll_event){(int)(uint32_t)data, (uint32_t)(data >> 32),
                                                     (int)(found[i].events & 0xffff)};
        }
    }
    errno = saved_errno;
    return count;
}

void os_poll_wake(void)
{
    int saved_errno = errno;
    uint64_t one = 1;
    (void)!write(bell, &one, sizeof one);
    errno = saved_errno;
}

/* The set is shared with the parent: what the child did to it the parent would see. */
void os_poll_fork_child(void)
{
    if (set >= 0) {
        (void)close(set);
        (void)close(bell);
        set = bell = -1;
    }
}
