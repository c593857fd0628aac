/* loam/sched.h - goroutines, channels, timers, waiting for descriptors; managed stacks for interpreters.
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

/* Not recursive, belongs to nobody: another goroutine may unlock it, and one that returns leaves it locked. Who waits for more than a millisecond is next. The
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

/* ---- Managed stacks --------------------------------------------------------------------------
 *
 *     typedef struct frame { closure *fn; const uint8_t *pc; struct frame *caller; value regs[]; } frame;
 *     LOAM_TYPE_FLEX(frame, regs, fn);             its words that may hold pointers to objects, as of any type
 *     LOAM_FRAME_INNER(frame, caller);             its words that may hold addresses within the stack
 *
 *     loam_mstack *s = loam_mstack_make(0);        one for each coroutine of the interpreter
 *     loam_mstack_enter(s);                        from here on the caller runs on it
 *     frame *f = LOAM_PUSH(s, frame, nregs);       zeroed; NULL and EOVERFLOW: the script's stack overflow
 *     f->regs[0] = v;                              plain stores
 *     loam_mstack_pop(s);
 *
 * A stack of frames for an interpreter: contiguous, searched frame by frame after what its maps say, in 2 KiB at first,
 * doubled when a frame has no room, halved by the collector when less than a quarter is in use (Go's stacks,
 * runtime/stack.go). It is a heap object, left to the collector (never loam_free): a coroutine that nothing names any more goes with its stack. The memory of its
 * frames is in the heap, too, and counts there. Only who has entered it touches it, and one at a time: a goroutine, wherever it
 * goes on, or a plain thread, which may have entered several. What lies on a stack that nobody has entered is
 * alive as long as the stack is.
 *
 * To double or halve it is to move it. That happens in loam_mstack_push, and while nobody has entered it; then words of
 * its frames that hold addresses within it, or of the end of a frame, are adjusted. Everything else that holds one (a local variable of the
 * interpreter, an object) is stale after the next push: take it anew (what push gives, loam_mstack_top,
 * loam_mstack_below), or adjust it (loam_mstack_on_move). What others must reach at any time, as a variable that a closure
 * has captured, lives in an object of its own, as in Go. GODEBUG=mstackmove=1 moves the stack at each push, and fills the
 * memory that it leaves with 0xa5, which finds what was forgotten.
 */
typedef struct loam_mstack loam_mstack;

/* Where a stack has gone. */
typedef struct loam_move {
    uintptr_t from, to; /* addresses of the same byte */
    size_t bytes;       /* so many from there on */
} loam_move;

/* What p is after the move: p itself if it points elsewhere. */
LOAM_INLINE_ void *loam_moved(const loam_move *loam_move_, const void *loam_p_)
{
    uintptr_t loam_at_ = LOAM_BITS_(loam_p_) - loam_move_->from;
    return LOAM_POINTER_(loam_at_ < loam_move_->bytes ? loam_move_->to + loam_at_
                                                      : LOAM_BITS_(loam_p_));
}

/* How a frame is read. The map must stay where it is as long as there are frames that were pushed with it: before a library that
 * holds it is unloaded they are popped. A scan function of the type may also run on the thread that has entered the stack, in a
 * signal handler. */
typedef struct loam_frame_map {
    const loam_type *type; /* its size, and its words that may hold pointers to objects */
    /* Its words that may hold addresses within the stack, in each element of the type, but not in a flexible tail; NULL:
     * none. Nothing else that looks like such an address may be in them. */
    const loam_field *inner;
    uint32_t ninner;
    /* Not NULL: is called after inner, with the frame at its new place, and sets p = loam_moved(move, p) for what inner
     * cannot say (a tagged word). Perhaps on a thread of the library; touches nothing but the frame. */
    void (*adjust)(void *frame, size_t bytes, const loam_move *move);
} loam_frame_map;

/* At file scope, behind LOAM_TYPE... of the same T: no addresses within the stack; in these fields (1 to 64, as of
 * LOAM_TYPE); found by fn(T *frame, size_t bytes, const loam_move *move). */
#define LOAM_FRAME(T) LOAM_FRAME_(T, LOAM_NULL_, 0, LOAM_NULL_)
#define LOAM_FRAME_INNER(T, ...) LOAM_FRAME_INNER_(T, __VA_ARGS__)
#define LOAM_FRAME_ADJUSTED(T, fn) LOAM_FRAME_ADJUSTED_(T, fn)

/* The map of a declared frame: a const loam_frame_map *. */
#define LOAM_FRAMEOF(T) (&T##_loam_frame_)

/* An empty stack, which nobody has entered. Its frames may take max_bytes in all, 16 for each included; 0: Go's 1 000 000 000.
 * NULL: ENOMEM; EINVAL: more than 1 GiB. */
LOAM_API loam_mstack *loam_mstack_make(size_t max_bytes);

/* The calling goroutine or thread runs on it from now on, until it leaves it, ends, or detaches; a finalizer, a cleanup or a
 * handler of pressure leaves it before it returns. May wait for the collector to be done with searching or halving it. While a cycle
 * begins, leaving it costs a search of its frames. In a
 * fork's child nobody is on those that others had entered; their frames are there. 0, or -1: EBUSY (somebody has entered it),
 * ENOMEM (the first call of a thread). */
LOAM_API int loam_mstack_enter(loam_mstack *s);

/* The opposite; its frames stay. Stacks may be left in any order. What was not entered by the caller ends the program with a
 * message. */
LOAM_API void loam_mstack_leave(loam_mstack *s);

/* The rest is for who has entered it; where nobody has, the program ends with a message.
 *
 * A new topmost frame, zeroed and aligned to 16: `count` elements of the map's type, or its head with `count` elements of the
 * flexible tail. May move the stack. NULL, and everything is as it was: EOVERFLOW (max_bytes), ENOMEM, EINVAL (the map is
 * NULL, or its type malformed). So it is, too, and still entered, when the out-of-memory handler leaves by longjmp. */
LOAM_API void *loam_mstack_push(loam_mstack *s, const loam_frame_map *map, size_t count);
#define LOAM_PUSH(s, T, count) LOAM_CAST_(T *, loam_mstack_push(s, LOAM_FRAMEOF(T), count))

LOAM_API void loam_mstack_pop(loam_mstack *s); /* the topmost frame; none ends the program */

/* All frames above `frame`, which is the topmost one then; all of them if it is NULL. What is no frame of s ends the program. */
LOAM_API void loam_mstack_unwind(loam_mstack *s, const void *frame);

LOAM_API void *loam_mstack_top(const loam_mstack *s); /* the topmost frame; NULL: none */
LOAM_API void *loam_mstack_below(const loam_mstack *s,
                                 const void *frame); /* the one below that frame of s; NULL: none */

/* Bytes of memory that it has; *used, if not NULL: of these in frames. */
LOAM_API size_t loam_mstack_bytes(const loam_mstack *s, size_t *used);

/* fn(s, move, arg) is called by loam_mstack_push when it has moved s, on the thread of the caller, to adjust what holds addresses
 * within s elsewhere; it calls nothing of this section but loam_moved, and parks nowhere. While there is one the stack is not moved but by a push. arg is kept
 * alive with s. fn NULL: none. A fork's child is not told of what another thread of its parent moved just then. For who has entered it, or made it just now. */
LOAM_API void loam_mstack_on_move(loam_mstack *s,
                                  void (*fn)(loam_mstack *s, const loam_move *move, void *arg),
                                  void *arg);

/* ---- How the macros are built ---------------------------------------------------------------- */

#define LOAM_FRAME_(T, inner, ninner, adjust)                                   \
    static const loam_frame_map T##_loam_frame_                                 \
        __attribute__((__unused__)) = {&T##_loam_type_, inner, ninner, adjust}; \
    struct loam_semicolon_

#define LOAM_FRAME_INNER_(T, ...)                                                       \
    LOAM_TABLES_BEGIN_                                                                  \
    static const loam_field T##_loam_inner_[]                                           \
        __attribute__((__unused__)) = {LOAM_FILL_(T, __VA_ARGS__)};                     \
    LOAM_TABLES_END_                                                                    \
    LOAM_FRAME_(T, T##_loam_inner_,                                                     \
                LOAM_CAST_(uint32_t, sizeof(T##_loam_inner_) / sizeof(loam_field) - 1), \
                LOAM_NULL_)

#define LOAM_FRAME_ADJUSTED_(T, fn)                                         \
    static __attribute__((__unused__)) void T##_loam_adjust_(               \
        void *loam_frame_, size_t loam_bytes_, const loam_move *loam_move_) \
    {                                                                       \
        fn(LOAM_CAST_(T *, loam_frame_), loam_bytes_, loam_move_);          \
    }                                                                       \
    LOAM_FRAME_(T, LOAM_NULL_, 0, T##_loam_adjust_)

#ifdef __cplusplus
}
#endif

#endif
