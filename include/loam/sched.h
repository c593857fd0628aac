/* loam/sched.h - goroutines, channels, timers, waiting for descriptors.
 *
 *     static void worker(void *arg)
 *     {
 *         int n;
 *         while (loam_chan_recv(arg, &n)) {
 *             printf("%d\n", n * n);
 *         }
 *     }
 *     static void start(void *arg)
 *     {
 *         loam_chan *c = loam_chan_make_bytes(sizeof(int), 0);
 *         loam_go(worker, c);
 *         for (int n = 0; n < 10; n++) {
 *             loam_chan_send(c, &n);
 *         }
 *         loam_chan_close(c);
 *     }
 *     int main(void) { return loam_run(start, NULL); }
 *
 * A goroutine is a function that runs on a small stack of its own, on one of the library's threads: GOMAXPROCS of them
 * run goroutines at a time. It gives its thread away when it waits: in the calls below that say "parks". Names and
 * meanings are Go's; what differs, because this is C, is said here:
 *
 *  - A goroutine may go on on another thread after each call that parks. What belongs to a thread (a __thread variable,
 *    a pthread mutex that is held, the address of errno kept in a pointer) must not be kept over it; errno itself goes with
 *    the goroutine, in code that includes this header. A call of C code that parks nowhere (printf, qsort, getaddrinfo) stays on one thread.
 *  - The scheduler cannot switch a goroutine away in the middle of C code: it may hold a lock of the C library. One that
 *    computes for more than 10 ms while others wait keeps its thread, and the others get another one. It counts as one of
 *    GOMAXPROCS again at its next call of the library that may park. A system call that takes long is treated in
 *    the same way: sooner if loam_enter_blocking and loam_exit_blocking are around it.
 *  - A stack does not move. It takes memory as it grows, up to its size: 256 KiB, or loam_go_options.stack_bytes. Beyond
 *    that the process ends with a message that names the goroutine. Pointers to locals may be handed to other goroutines,
 *    as long as the function has not returned; what is stored through them needs no LOAM_SET only if the goroutine
 *    whose locals they are does it.
 *    Others may read such a local that points into the heap while its goroutine waits for them, not while it runs.
 *    The memory of a stack whose goroutine has waited through two cycles goes back to the system, but for what is live; whoever
 *    touches it finds it as it was. Only vmsplice is not to be given such pages.
 *  - The thread is the library's: a goroutine that ends it (pthread_exit, loam_detach) ends the program with a message.
 *  - An exception of C++ that is being handled belongs to the thread: nothing parks within a catch block.
 *  - The child of a fork has no goroutines but the one that forked, which becomes an ordinary thread.
 *
 * Plain threads and goroutines live together: any attached thread may call all of this, and waits as a thread where a
 * goroutine parks. No function here may be called by a signal handler. What a program does wrong (closing a closed channel,
 * unlocking what is not locked) ends it with a message, as in Go.
 */
#ifndef LOAM_SCHED_H
#define LOAM_SCHED_H

#include <loam.h>

#include <errno.h>
#include <sys/socket.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* errno, looked up anew each time. The C library lets compilers keep its address, which after a call that parks may be another
 * thread's. LOAM_KEEP_ERRNO: it is left as it was. */
LOAM_API int *loam_errno_location(void);
#if !defined(LOAM_KEEP_ERRNO)
#undef errno
#define errno (*loam_errno_location())
#endif

/* ---- Goroutines ------------------------------------------------------------------------------ */

/* Start a goroutine that calls fn(arg) and ends when that returns. arg is kept alive until then. From a goroutine or any
 * thread. 0, or -1 and errno: ENOMEM (memory or address space, or as many goroutines as there can be), EAGAIN (no
 * thread could be made for the first ones), EINVAL (fn is NULL). */
LOAM_API int loam_go(void (*fn)(void *arg), void *arg);

typedef struct loam_go_options {
    const char *name; /* for reports; NULL: none. Copied, 31 bytes of it */
    size_t
        stack_bytes; /* 0: 256 KiB. Rounded up; at most 64 GiB, else EINVAL. Address space: memory comes as it is used */
} loam_go_options;

/* The same with options; options may be NULL. */
LOAM_API int loam_go_with(const loam_go_options *options, void (*fn)(void *arg), void *arg);

/* Run fn(arg) as a goroutine and wait until it has ended; others that it started may still run. 0, or -1 and errno
 * as loam_go. Parks. */
LOAM_API int loam_run(void (*fn)(void *arg), void *arg);

/* Let others run. Parks if there are any. */
LOAM_API void loam_yield(void);

/* Wait for at least so long; not at all if it is not positive. Parks. */
LOAM_API void loam_sleep(int64_t nanoseconds);

/* Goroutines that have not ended. */
LOAM_API size_t loam_num_goroutine(void);

/* The number of the calling goroutine, from 1 and never used twice; 0: a plain thread. */
LOAM_API uint64_t loam_goroutine_id(void);

/* Write what each goroutine does, and where it was parked, to fd as text. Also done, on stderr, when all goroutines wait
 * for each other and nothing else could wake them; the process ends then, as in Go. 0, or -1 and errno of the write. */
LOAM_API int loam_write_goroutines(int fd);

/* ---- Channels --------------------------------------------------------------------------------
 *
 * Heap objects, collected like any other. Elements are copied. Operations on NULL wait for ever, as in Go. */

typedef struct loam_chan loam_chan;

/* Room for `capacity` elements of the type; 0: who sends waits for who receives. NULL and errno: ENOMEM, EINVAL (elem is a
 * flexible type, or too much in all). */
LOAM_API loam_chan *loam_chan_make(const loam_type *elem, size_t capacity);

/* Elements of elem_size bytes without pointers; 0 is a size, too: signals. */
LOAM_API loam_chan *loam_chan_make_bytes(size_t elem_size, size_t capacity);

/* Send a copy of *elem. Parks until there is room, or somebody to receive it. The program ends if c is or becomes
 * closed. elem may be NULL if elements have no bytes. */
LOAM_API void loam_chan_send(loam_chan *c, const void *elem);

/* Receive into *elem, which may be NULL: it is dropped. false: c is closed and empty, *elem is zeroed. Parks
 * until there is one. *elem may lie anywhere: the write barrier runs. */
LOAM_API bool loam_chan_recv(loam_chan *c, void *elem);

/* No more will be sent: who receives gets what is left, then false. The program ends if c is NULL or closed. */
LOAM_API void loam_chan_close(loam_chan *c);

LOAM_API size_t loam_chan_len(const loam_chan *c); /* elements that wait in it; 0 for NULL */
LOAM_API size_t loam_chan_cap(const loam_chan *c);

enum loam_select_direction { LOAM_SEND, LOAM_RECV };

typedef struct loam_select_case {
    loam_chan *chan; /* NULL: never ready */
    enum loam_select_direction direction;
    void *elem;    /* what is sent, or where it goes, as above */
    bool received; /* written for the chosen case if it receives: what loam_chan_recv gives */
} loam_select_case;

/* Do one of the cases that can be done, chosen by lot; its index. None can be: -1 if !block, else it parks until one
 * can. n is at most 65536. No cases and block: waits for ever. */
LOAM_API int loam_select(loam_select_case *cases, size_t n, bool block);

/* ---- Waiting for each other ------------------------------------------------------------------
 *
 * Zeroed memory is one that is ready. May lie anywhere (no part of it is a pointer to the collector); must not be copied
 * or freed while it is in use. */

typedef struct loam_waitgroup {
    uint64_t opaque_[3];
} loam_waitgroup;

/* Count delta more to wait for. The program ends if the count falls below zero. */
LOAM_API void loam_waitgroup_add(loam_waitgroup *wg, int delta);
LOAM_API void loam_waitgroup_done(loam_waitgroup *wg); /* add -1 */
LOAM_API void loam_waitgroup_wait(loam_waitgroup *wg); /* Parks until the count is zero. */

typedef struct loam_mutex {
    uint64_t opaque_[3];
} loam_mutex;

/* Not recursive, belongs to nobody: another goroutine may unlock it. Who waits for more than a millisecond is next. The
 * program ends if what is unlocked was not locked. */
LOAM_API void loam_mutex_lock(loam_mutex *mu); /* Parks. */
LOAM_API bool loam_mutex_trylock(loam_mutex *mu);
LOAM_API void loam_mutex_unlock(loam_mutex *mu);

/* ---- Descriptors -----------------------------------------------------------------------------
 *
 * These park the goroutine, not its thread, whether the descriptor blocks or not. */

/* Wait until one of poll's events (POLLIN, POLLOUT; POLLERR and POLLHUP always) is there: which, > 0. 0: the deadline
 * (CLOCK_MONOTONIC, ns; < 0: none) has passed. -1 and errno: EBADF, EINVAL, ENOMEM. A file that poll calls always ready
 * (on disk) is ready. Several may wait for one descriptor. Close none that somebody waits for: as in poll, he may
 * wait on. */
LOAM_API int loam_wait_fd(int fd, int events, int64_t deadline_ns);

/* Each as its system call, EAGAIN excepted: then it waits. */
LOAM_API ssize_t loam_read(int fd, void *buf, size_t n);
LOAM_API ssize_t loam_write(int fd, const void *buf, size_t n);
LOAM_API ssize_t loam_recv(int fd, void *buf, size_t n, int flags);
LOAM_API ssize_t loam_send(int fd, const void *buf, size_t n, int flags);
LOAM_API int loam_accept(int fd, struct sockaddr *addr, socklen_t *len);
LOAM_API int loam_connect(int fd, const struct sockaddr *addr, socklen_t len);

#ifdef __cplusplus
}
#endif

#endif
