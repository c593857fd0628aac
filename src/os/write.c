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
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static bool is_pending(int signo)
{
    sigset_t pending;
    return sigpending(&pending) == 0 && sigismember(&pending, signo) == 1;
}

/* Of a pipe without a reader; of a file that must not become longer. Such a signal of ours is for the calling thread alone,
 * and taken back before anybody sees it. */
static ssize_t write_quietly(int fd, const void *from, size_t n)
{
    sigset_t ours, before;
    sigemptyset(&ours);
    sigaddset(&ours, SIGPIPE);
    sigaddset(&ours, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &ours, &before);
    bool pipe = is_pending(SIGPIPE);
    bool size = is_pending(SIGXFSZ);
    ssize_t done = write(fd, from, n);
    int err = errno;
    if (done < 0 && ((err == EPIPE && !pipe) || (err == EFBIG && !size))) {
        static const struct timespec at_once;
        sigemptyset(&ours);
        sigaddset(&ours, err == EPIPE ? SIGPIPE : SIGXFSZ);
        (void)sigtimedwait(&ours, NULL, &at_once);
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

/* A pipe that others write to, and a terminal, may have less room than they say: opened anew, they need not wait, and the
 * program's own description of them is left as it is. A file is written to from where the program is in it. */
static int open_anew(int fd)
{
    struct stat st;
    char path[64];
    if (fstat(fd, &st) != 0 || !(S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode))) {
        return -1;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

int os_write_open(int fd)
{
    int saved_errno = errno;
    int flags = os_fault() ? -1 : fcntl(fd, F_GETFL);
    int own = -EBADF;
    if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY) {
        own = open_anew(fd);
        own = own >= 0 ? own : fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
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
