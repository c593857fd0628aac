/* write.c - writing to a descriptor of the program's without being held up by who reads.
 *
 * Model       poll(2), then as much as is taken at once: of a file all, of a pipe PIPE_BUF bytes, which a pipe that can be
 *             written to has room for, of a socket what MSG_DONTWAIT says.
 * Tests       tests/api/trace.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static bool is_pipe_pending(void)
{
    sigset_t pending;
    return sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1;
}

/* A SIGPIPE of ours is for the calling thread alone, and taken back before anybody sees it. */
static ssize_t write_quietly(int fd, const void *from, size_t n)
{
    sigset_t pipe, before;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, &before);
    bool pending = is_pipe_pending();
    ssize_t done = write(fd, from, n);
    int err = errno;
    if (done < 0 && err == EPIPE && !pending) {
        static const struct timespec at_once;
        (void)sigtimedwait(&pipe, NULL, &at_once);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = err;
    return done;
}

static int64_t write_some(int fd, const void *from, size_t n)
{
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return -errno;
    }
    ssize_t done;
    do {
        if (S_ISSOCK(st.st_mode)) {
            done = send(fd, from, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        } else {
            size_t most = S_ISREG(st.st_mode) || n < PIPE_BUF ? n : PIPE_BUF;
            done = write_quietly(fd, from, most);
        }
    } while (done < 0 && errno == EINTR);
    return done >= 0 ? done : errno == EAGAIN ? 0 : -errno;
}

int64_t os_write(int fd, const void *from, size_t n, int64_t wait_ns)
{
    if (os_fault()) {
        return -EIO;
    }
    int saved_errno = errno;
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    struct timespec wait = {.tv_sec = (time_t)(wait_ns / 1000000000),
                            .tv_nsec = (long)(wait_ns % 1000000000)};
    int ready = ppoll(&p, 1, &wait, NULL);
    int64_t done = 0;
    if (ready > 0) {
        done = write_some(fd, from, n);
    } else if (ready < 0 && errno != EINTR) {
        done = -errno;
    }
    errno = saved_errno;
    return done;
}

int os_write_open(int fd)
{
    int saved_errno = errno;
    int flags = os_fault() ? -1 : fcntl(fd, F_GETFL);
    int own = -EBADF;
    if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY) {
        own = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        own = own >= 0 ? own : -errno;
    }
    errno = saved_errno;
    return own;
}

void os_write_close(int fd)
{
    int saved_errno = errno;
    (void)close(fd);
    errno = saved_errno;
}
