/* snapshot.c - a frozen copy of the process, which looks at the heap and writes what it finds.
 *
 * Purpose     All threads stand still for as long as it takes the kernel to copy the tables of pages, not for as long as it
 *             takes to walk the heap, or to write to somebody who reads slowly. Who asks waits, as a blocked thread.
 * Model       world_hold   nobody forks, the library's own threads rest where what they change is whole, perhaps amid a cycle;
 *             world_stop   every other thread stands still, and is not busy: its registers and stack are known;
 *             copy         what another thread has locked stays locked in the copy, which has no other thread. So it is made
 *                          with the loader's lock (a walk over the modules) and world.lock in the caller's hands, who lets go
 *                          of both, in the copy too. It takes none of the C library's, and maps its own memory.
 * Locking     fork_lock > modules_lock > stop_lock > world.lock, over the copy; nothing while its end is waited for.
 * Tests       tests/api/heapdump.c
 */
#include "observe/snapshot.h"

#include "malloc/malloc.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

enum { KEPT_WORDS = 16 }; /* no less than what a red zone has */

#define PAUSE_LEAST_NS INT64_C(50000)
#define PAUSE_MOST_NS INT64_C(10000000)

static void copy_once(void *arg, uintptr_t start, size_t bytes)
{
    int *pid = arg;
    (void)start, (void)bytes;
    if (*pid != INT_MIN) {
        return;
    }
    world_stop();
    mutex_lock(&world.lock);
    *pid = os_snapshot_process();
    mutex_unlock(&world.lock);
    if (*pid != 0) {
        world_start();
    }
}

/* The caller's mask comes back in the process, and not in the copy. */
static int copy_process(struct m *m)
{
    sigset_t all, before;
    int pid = INT_MIN;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    world_hold(m);
    os_each_data_range(copy_once, &pid);
    if (pid == INT_MIN) { /* no module has data */
        copy_once(&pid, 0, 0);
    }
    if (pid != 0) {
        world_let_go();
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    return pid;
}

/* In slices, so that handlers of the program run. */
static int wait_for_answer(struct m *m, int pid)
{
    int error;
    int64_t pause = PAUSE_LEAST_NS;
    while (!os_snapshot_ended(pid, &error)) {
        struct m_wait wait;
        m_begin_wait(m, &wait);
        os_sleep_ns(pause);
        m_end_wait(m, &wait);
        pause = pause < PAUSE_MOST_NS ? pause * 2 : PAUSE_MOST_NS;
    }
    return error;
}

struct call {
    const struct question *question;
    struct m *m;
    int error;
};

/* What lies above sp is the program's, and the copy does not change it. Its first words count as registers: for the collector
 * what lies right below a stack pointer is live too, and here the copy's own frames lie there. */
static NO_SANITIZE void stand_at(struct m_context *self, uintptr_t sp)
{
    memset(self, 0, sizeof *self);
    self->sp = sp + KEPT_WORDS * sizeof(uintptr_t);
    self->nregs = KEPT_WORDS;
    for (size_t i = 0; i < KEPT_WORDS; i++) {
        self->regs[i] = ((const volatile uintptr_t *)sp)[i];
    }
}

static void ask_spilled(void *arg, uintptr_t sp)
{
    struct call *call = arg;
    const struct question *q = call->question;
    int pid = copy_process(call->m);
    if (pid == 0) {
        struct m_context self;
        stand_at(&self, sp);
        os_snapshot_keep_file(q->fd);
        os_snapshot_exit(q->answer(q, &self));
    }
    call->error = pid < 0 ? -pid : wait_for_answer(call->m, pid);
}

static int can_ask(const struct m *m, int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) {
        return EBADF;
    }
    /* A handler of the program over the library, or a scan function: the code below may hold what is waited for. */
    return m_busy(m) != 0 ? EDEADLK : 0;
}

int snapshot_ask(const struct question *q)
{
    struct call call = {.question = q, .m = malloc_self()};
    if (call.m == NULL) {
        return -1;
    }
    call.error = can_ask(call.m, q->fd);
    if (call.error == 0) {
        os_call_spilled(ask_spilled, &call);
    }
    if (call.error == 0) {
        return 0;
    }
    errno = call.error;
    return -1;
}
