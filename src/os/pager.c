/* pager.c - memory whose pages are brought by us when somebody touches them.
 *
 * Purpose     Who touches a page that is not there waits, in a call of the system too, until a thread of ours has put it.
 * Model       userfaultfd(2) for missing pages. A page is taken away by moving it (UFFDIO_MOVE, Linux 6.8): in one step, so that
 *             no store is lost, and not at all while the kernel holds it for somebody's input or output.
 * Needs       Linux 6.8, and the right to see faults of the kernel's: CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1, or access to
 *             /dev/userfaultfd. Without either os_pager_open says no.
 * Tests       tests/unit/test_os_pager.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include "base/check.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Younger than the headers of Debian 12. */
#ifndef UFFDIO_MOVE
struct uffdio_move {
    __u64 dst, src, len, mode;
    __s64 move; /* bytes done, or -errno */
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#define UFFD_FEATURE_MOVE (UINT64_C(1) << 16)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

static int pager_fd = -1;

static int open_fd(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd >= 0 || errno != EPERM) {
        return fd;
    }
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0) {
        return -1;
    }
    fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC);
    close(device);
    return fd;
}

bool os_pager_open(void)
{
    if (os_fault()) {
        return false;
    }
    int saved_errno = errno;
    int fd = open_fd();
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE};
    if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) != 0) {
        close(fd);
        fd = -1;
    }
    pager_fd = fd;
    errno = saved_errno;
    return fd >= 0;
}

bool os_pager_watch(void *addr, size_t bytes)
{
    if (os_fault()) {
        return false;
    }
    int saved_errno = errno;
    struct uffdio_register r = {.range = {(uintptr_t)addr, bytes},
                                .mode = UFFDIO_REGISTER_MODE_MISSING};
    bool ok = ioctl(pager_fd, UFFDIO_REGISTER, &r) == 0;
    errno = saved_errno;
    return ok;
}

bool os_pager_unwatch(void *addr, size_t bytes)
{
    if (os_fault()) {
        return false;
    }
    int saved_errno = errno;
    struct uffdio_range r = {(uintptr_t)addr, bytes};
    bool ok = ioctl(pager_fd, UFFDIO_UNREGISTER, &r) == 0;
    errno = saved_errno;
    return ok;
}

/* How much of a request was done before it stopped; errors of the kernel's that pass are tried again. */
static size_t move_some(uintptr_t to, uintptr_t from, size_t bytes)
{
    size_t done = 0;
    while (done < bytes) {
        struct uffdio_move m = {.dst = to + done, .src = from + done, .len = bytes - done};
        int failed = ioctl(pager_fd, UFFDIO_MOVE, &m);
        done += m.move > 0 ? (size_t)m.move : 0;
        if (failed != 0 && errno != EAGAIN) {
            break;
        }
    }
    return done;
}

bool os_pager_take(void *to, void *from, size_t bytes)
{
    if (os_fault()) {
        return false;
    }
    int saved_errno = errno;
    size_t done = move_some((uintptr_t)to, (uintptr_t)from, bytes);
    if (done != 0 && done < bytes) { /* back with it: who touched it meanwhile waits */
        size_t back = move_some((uintptr_t)from, (uintptr_t)to, done);
        CHECK(back == done, "pages of a stack cannot be put back (errno %d)", errno);
    }
    errno = saved_errno;
    return done == bytes;
}

static void wake(uintptr_t at, size_t bytes)
{
    struct uffdio_range range = {at, bytes};
    (void)ioctl(pager_fd, UFFDIO_WAKE, &range);
}

bool os_pager_put(void *at, const void *from, size_t bytes)
{
    int saved_errno = errno;
    size_t done = 0;
    bool ok = true;
    while (done < bytes && ok) {
        struct uffdio_copy c = {
            .dst = (uintptr_t)at + done, .src = (uintptr_t)from + done, .len = bytes - done};
        int failed = ioctl(pager_fd, UFFDIO_COPY, &c);
        done += c.copy > 0 ? (size_t)c.copy : 0;
        if (failed != 0 && errno == EEXIST) { /* it is there */
            wake((uintptr_t)at + done, os_page_size());
            done += os_page_size();
        } else if (failed != 0) {
            ok = errno == EAGAIN;
        }
    }
    if (!ok) {
        wake((uintptr_t)at + done, bytes - done); /* they ask again, if it is still watched */
    }
    errno = saved_errno;
    return ok;
}

uintptr_t os_pager_next(void)
{
    struct uffd_msg msg;
    ssize_t n;
    do {
        n = read(pager_fd, &msg, sizeof msg);
        CHECK(n >= 0 || errno == EINTR || errno == EAGAIN,
              "the descriptor of the stacks that sleep (%d) was closed by the program (errno %d)",
              pager_fd, errno);
    } while (n != (ssize_t)sizeof msg || msg.event != UFFD_EVENT_PAGEFAULT);
    return (uintptr_t)msg.arg.pagefault.address & ~(uintptr_t)(os_page_size() - 1);
}

void os_pager_close(void)
{
    if (pager_fd >= 0) {
        close(pager_fd);
        pager_fd = -1;
    }
}
