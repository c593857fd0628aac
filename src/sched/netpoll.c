/* netpoll.c - goroutines that wait for descriptors.
 *
 * Purpose     loam_wait_fd, and the system calls that park on EAGAIN.
 * Model       For each descriptor number the list of who waits for it, and one ask (os_poll_ask) for all that they wait for. An
 *             event wakes those that it is for, and asks again for the rest.
 *             A call is made so that it does not block whatever the descriptor's own mode (RWF_NOWAIT, MSG_DONTWAIT).
 *             Where the system cannot do that, as a blocking call of the thread, which then loses its P if it takes long.
 * Locking     the descriptor's, until who waits has left his stack; under it timers.lock.
 * From Go     netpoll.go; differs: a descriptor is asked for anew each time, since the program closes it without a word.
 * Tests       tests/api/goroutine_io.c
 */
#include "sched/sched.h"

#include "base/check.h"
#include "heap/fixalloc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include <loam/sched.h>

enum {
    BLOCK = 1024,
    BLOCKS_MAX = 1 << 13, /* 8 million descriptors */
    FULL_PAUSE_NS = 1000000,
    ALWAYS = POLLERR | POLLHUP | POLLNVAL,
};

struct fd_wait {
    struct waiter waiter;
    int events, got;
    bool listed;
    struct fd_wait *next, *prev;
};

struct fd_list {
    struct mutex lock;
    uint32_t asks; /* the number of the last one */
    struct fd_wait *first;
};

static struct {
    struct mutex lock; /* growth */
    _Atomic(struct fd_list *) blocks[BLOCKS_MAX];
    _Atomic uint32_t waiters;
    _Atomic bool open;
} polls;

uint32_t netpoll_waiters(void)
{
    return load_rlx(&polls.waiters);
}

int netpoll_open(void)
{
    int err = load_rlx(&polls.open) ? 0 : os_poll_open();
    store_rlx(&polls.open, load_rlx(&polls.open) || err == 0);
    return err;
}

static struct fd_list *list_of(int fd)
{
    uint32_t i = (uint32_t)fd / BLOCK;
    if (i >= BLOCKS_MAX) {
        return NULL;
    }
    struct fd_list *block = load_acq(&polls.blocks[i]); /* acquire: pairs with the release below */
    if (block == NULL) {
        mutex_lock(&polls.lock);
        block = load_rlx(&polls.blocks[i]);
        if (block == NULL) {
            block = persistentalloc(BLOCK * sizeof *block, CACHE_LINE, &heap.stats.other_sys);
            store_rel(&polls.blocks[i], block); /* release: zeroes */
        }
        mutex_unlock(&polls.lock);
    }
    return block == NULL ? NULL : &block[(uint32_t)fd % BLOCK];
}

static void link_locked(struct fd_list *l, struct fd_wait *w)
{
    w->listed = true;
    w->prev = NULL;
    w->next = l->first;
    if (l->first != NULL) {
        l->first->prev = w;
    }
    l->first = w;
    add_rlx(&polls.waiters, 1u);
}

static void unlink_locked(struct fd_list *l, struct fd_wait *w)
{
    if (w->prev != NULL) {
        w->prev->next = w->next;
    } else {
        l->first = w->next;
    }
    if (w->next != NULL) {
        w->next->prev = w->prev;
    }
    w->listed = false;
    sub_rlx(&polls.waiters, 1u);
}

/* For all that wait. 0, or an errno value. */
static int ask_locked(struct fd_list *l, int fd)
{
    int events = 0;
    for (const struct fd_wait *w = l->first; w != NULL; w = w->next) {
        sleeper_touch(w);
        events |= w->events;
    }
    return events == 0 ? 0 : os_poll_ask(fd, events, ++l->asks);
}

static void happened(struct gqueue *ready, int fd, uint32_t ask, int events)
{
    struct fd_list *l = list_of(fd);
    if (l == NULL) {
        return;
    }
    struct m *m = sched_m();
    mutex_lock(&l->lock);
    for (struct fd_wait *w = ask == l->asks ? l->first : NULL, *next; w != NULL; w = next) {
        sleeper_touch(w);
        next = w->next;
        int got = events & (w->events | ALWAYS);
        uint32_t undecided = 0;
        if (got == 0) {
            continue;
        }
        unlink_locked(l, w);
        w->got = got;
        if (cas_acqrel(&w->waiter.decided, &undecided, WAITER_CHOSEN)) {
            sched_trace_ready(m, w->waiter.g);
            gqueue_put(ready, w->waiter.g);
        }
    }
    if (ask == l->asks) {
        (void)ask_locked(l, fd); /* closed meanwhile: who waits for it waits on */
    }
    mutex_unlock(&l->lock);
}

void netpoll_wait(struct netpoll_events *events, int64_t ns)
{
    events->n = os_poll_wait(events->event, NETPOLL_EVENTS, ns);
}

void netpoll_take(struct gqueue *ready, const struct netpoll_events *events)
{
    for (int i = 0; i < events->n; i++) {
        const struct os_poll_event *e = &events->event[i];
        happened(ready, e->fd, e->ask, e->events);
    }
}

/* -- waiting ----------------------------------------------------------------------------------- */

static int milliseconds_until(int64_t deadline)
{
    if (deadline < 0) {
        return -1;
    }
    int64_t left = deadline - os_nanotime();
    int64_t ms = left <= 0 ? 0 : (left + 999999) / 1000000;
    return ms > 1 << 30 ? 1 << 30 : (int)ms;
}

/* As a thread. */
static int wait_blocking(int fd, int events, int64_t deadline)
{
    struct pollfd p = {.fd = fd, .events = (short)events};
    int n;
    do {
        n = poll(&p, 1, milliseconds_until(deadline));
    } while (n < 0 && errno == EINTR);
    if (n > 0 && (p.revents & POLLNVAL) != 0) {
        errno = EBADF;
        return -1;
    }
    return n > 0 ? p.revents : n;
}

static void unlock_list(struct g *g, void *lock)
{
    (void)g;
    mutex_unlock(lock);
}

/* Busy, l locked; let go of when w has left its stack, or has failed. 0, or an errno value. */
static int park_until(struct fd_list *l, int fd, struct fd_wait *w, int64_t deadline)
{
    struct g *g = w->waiter.g;
    bool timed = deadline >= 0 && deadline != INT64_MAX;
    g->timed = &w->waiter;
    if (timed && !timer_start(g, deadline)) { /* before it is parked: who takes it waits for that */
        mutex_unlock(&l->lock);
        return ENOMEM;
    }
    link_locked(l, w);
    int err = ask_locked(l, fd);
    if (err != 0 && (!timed || timer_stop(g))) {
        unlink_locked(l, w);
        mutex_unlock(&l->lock);
        return err;
    }
    sched_poke_poller(timed ? deadline : INT64_MAX);
    waiter_park(&w->waiter, unlock_list, &l->lock, "descriptor");
    bool late = load_acq(&w->waiter.decided) == WAITER_LATE; /* acquire: pairs with who decided */
    if (timed && !late) {
        (void)timer_stop(g);
    }
    if (late) {
        mutex_lock(&l->lock);
        if (w->listed) {
            unlink_locked(l, w);
        }
        mutex_unlock(&l->lock);
    }
    return err;
}

/* The events; 0: too late; -1 and errno, EPERM: it is always ready. */
static int wait_parked(int fd, int events, int64_t deadline)
{
    struct fd_wait w = {.events = events};
    (void)sched_enter(SCHED_PARKS);
    struct fd_list *l = list_of(fd);
    int err = l != NULL ? 0 : fd < BLOCK * BLOCKS_MAX ? ENOMEM : EBADF;
    if (err == 0) {
        waiter_init(&w.waiter);
        mutex_lock(&l->lock);
        err = park_until(l, fd, &w, deadline);
    }
    sched_leave(SCHED_STAYS);
    if (err != 0) {
        errno = err;
        return -1;
    }
    return load_acq(&w.waiter.decided) == WAITER_LATE ? 0 : w.got;
}

static bool on_goroutine(void)
{
    struct worker *w = sched_worker();
    return w != NULL && w->g != NULL;
}

int loam_wait_fd(int fd, int events, int64_t deadline_ns)
{
    const int known = POLLIN | POLLOUT | POLLPRI | POLLRDHUP | POLLERR | POLLHUP;
    if ((events & ~known) != 0 || fd < 0) {
        errno = fd < 0 ? EBADF : EINVAL;
        return -1;
    }
    if (!on_goroutine() || (deadline_ns >= 0 && deadline_ns <= os_nanotime())) {
        return wait_blocking(fd, events, deadline_ns);
    }
    int saved_errno = errno;
    int got = wait_parked(fd, events, deadline_ns);
    if (got < 0 && errno == EPERM) {
        errno = saved_errno;
        return events & (POLLIN | POLLOUT);
    }
    return got;
}

/* Until a call may go on; false: it would not wait, so it may as well block. */
static bool wait_for(int fd, int events)
{
    if (!on_goroutine()) {
        return wait_blocking(fd, events, -1) >= 0;
    }
    return wait_parked(fd, events, -1) >= 0;
}

/* -- system calls ------------------------------------------------------------------------------ */

/* A call that may take long, not marked as blocking: handlers of the program run meanwhile, and may use the heap. */
static void say_in_call(bool yes)
{
    struct worker *w = sched_worker();
    if (w != NULL) {
        store_rlx(&w->in_call, yes); /* relaxed: a hint for the monitor */
    }
}

enum way { WITHOUT_WAITING, BLOCKING };

typedef ssize_t call_fn(int fd, const struct iovec *iov, int flags, enum way way);

static ssize_t call_read(int fd, const struct iovec *iov, int flags, enum way way)
{
    (void)flags;
    return way == BLOCKING ? read(fd, iov->iov_base, iov->iov_len)
                           : preadv2(fd, iov, 1, -1, RWF_NOWAIT);
}

static ssize_t call_write(int fd, const struct iovec *iov, int flags, enum way way)
{
    (void)flags;
    return way == BLOCKING ? write(fd, iov->iov_base, iov->iov_len)
                           : pwritev2(fd, iov, 1, -1, RWF_NOWAIT);
}

static ssize_t call_recv(int fd, const struct iovec *iov, int flags, enum way way)
{
    return recv(fd, iov->iov_base, iov->iov_len, flags | (way == BLOCKING ? 0 : MSG_DONTWAIT));
}

static ssize_t call_send(int fd, const struct iovec *iov, int flags, enum way way)
{
    return send(fd, iov->iov_base, iov->iov_len, flags | (way == BLOCKING ? 0 : MSG_DONTWAIT));
}

/* A call that does not wait, and parks where it would have; or, where the system has no such call, a blocking one. */
static ssize_t call(call_fn *fn, int fd, void *buf, size_t n, int flags, int events)
{
    struct iovec iov = {buf, n};
    bool can = on_goroutine();
    for (;;) {
        ssize_t r = can ? fn(fd, &iov, flags, WITHOUT_WAITING) : 0;
        if (r < 0 && (errno == EOPNOTSUPP || errno == ENOSYS) &&
            (fn == call_read || fn == call_write)) {
            can = false; /* a terminal, for example, or an old kernel */
            int mode = fcntl(fd, F_GETFL);
            bool wrong = (mode & O_ACCMODE) == (fn == call_read ? O_WRONLY : O_RDONLY);
            if (n != 0 && !wrong && (mode & O_NONBLOCK) == 0) {
                (void)wait_for(fd, events);
            }
        }
        if (!can) {
            say_in_call(true);
            r = fn(fd, &iov, flags, BLOCKING);
            say_in_call(false);
        }
        if (r >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) {
            return r;
        }
        if (!wait_for(fd, events)) {
            can = false; /* a file on disk, not in memory yet; or the call tells what is wrong */
        }
    }
}

ssize_t loam_read(int fd, void *buf, size_t n)
{
    return call(call_read, fd, buf, n, 0, POLLIN);
}

ssize_t loam_write(int fd, const void *buf, size_t n)
{
    return call(call_write, fd, (void *)(uintptr_t)buf, n, 0, POLLOUT);
}

ssize_t loam_recv(int fd, void *buf, size_t n, int flags)
{
    return (flags & MSG_DONTWAIT) != 0 ? recv(fd, buf, n, flags)
                                       : call(call_recv, fd, buf, n, flags, POLLIN);
}

ssize_t loam_send(int fd, const void *buf, size_t n, int flags)
{
    return (flags & MSG_DONTWAIT) != 0
               ? send(fd, buf, n, flags)
               : call(call_send, fd, (void *)(uintptr_t)buf, n, flags, POLLOUT);
}

static bool listens(int fd)
{
    int yes = 0;
    socklen_t len = sizeof yes;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &len) == 0 && yes != 0;
}

int loam_accept(int fd, struct sockaddr *addr, socklen_t *len)
{
    int flags = fcntl(fd, F_GETFL);
    bool tries = (flags >= 0 && (flags & O_NONBLOCK) != 0) || !listens(fd);
    for (;;) {
        if (!tries && on_goroutine()) {
            (void)wait_for(fd, POLLIN); /* else somebody may be quicker, and this thread blocks */
        }
        say_in_call(true);
        int got = accept(fd, addr, len);
        say_in_call(false);
        if (got >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) {
            return got;
        }
        if (!wait_for(fd, POLLIN)) {
            return -1;
        }
    }
}

static int finish_connect(int fd, const struct sockaddr *addr, socklen_t addr_len)
{
    int err = 0;
    socklen_t len = sizeof err;
    if (!wait_for(fd, POLLOUT) || getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0) {
        return -1;
    }
    if (err != 0) {
        errno = err;
        return -1;
    }
    (void)connect(fd, addr, addr_len); /* the kernel learns that we know */
    return 0;
}

int loam_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
    int flags = fcntl(fd, F_GETFL);
    bool blocks = flags >= 0 && (flags & O_NONBLOCK) == 0;
    if (blocks) {
        (void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    }
    int saved_errno = errno;
    int r;
    while ((r = connect(fd, addr, len)) != 0 && errno == EAGAIN) {
        loam_sleep(
            FULL_PAUSE_NS); /* a local socket whose backlog is full: nothing tells when it is not */
    }
    if (r != 0 && errno == EINPROGRESS) {
        r = finish_connect(fd, addr, len);
    }
    saved_errno = r == 0 ? saved_errno : errno;
    if (blocks) {
        (void)fcntl(fd, F_SETFL, flags);
    }
    errno = saved_errno;
    return r;
}

/* The set is the parent's too: the child gets one of its own when it uses goroutines. */
void netpoll_fork_child(void)
{
    os_poll_fork_child();
    memset(&polls, 0, sizeof polls);
}
