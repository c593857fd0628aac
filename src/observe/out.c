/* out.c - see out.h. */
#include "observe/out.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

bool out_init(struct out *o, int fd)
{
    o->fd = fd;
    o->error = 0;
    o->n = 0;
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) == O_RDONLY) {
        errno = EBADF;
        return false;
    }
    return flags >= 0;
}

static void wait_for_room(struct out *o)
{
    struct pollfd p = {.fd = o->fd, .events = POLLOUT};
    if (poll(&p, 1, -1) < 0 && errno != EINTR) {
        o->error = errno;
    }
}

static void flush(struct out *o)
{
    for (size_t at = 0; at < o->n && o->error == 0;) {
        ssize_t n = write(o->fd, o->buf + at, o->n - at);
        if (n >= 0) {
            at += (size_t)n;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            wait_for_room(o);
        } else if (errno != EINTR) {
            o->error = errno;
        }
    }
    o->n = 0;
}

void out_bytes(struct out *o, const void *data, size_t n)
{
    const char *p = data;
    while (n != 0) {
        size_t piece = n < OUT_BYTES - o->n ? n : OUT_BYTES - o->n;
        memcpy(o->buf + o->n, p, piece);
        o->n += piece;
        p += piece;
        n -= piece;
        if (o->n == OUT_BYTES) {
            flush(o);
        }
    }
}

int out_end(struct out *o)
{
    flush(o);
    if (o->error != 0) {
        errno = o->error;
        return -1;
    }
    return 0;
}
