/* snapshot.c - a copy of the process that nobody else sees, to look at what stood still when it was made.
 *
 * Model       clone(2) without flags: memory of its own, shared until one of the two writes, descriptors of its own, one
 *             thread. Without a signal for its end it is no child to a wait of the program's, nor to SIGCHLD; fork's handlers
 *             do not run. All signals stay blocked in it. It dies with the thread that made it.
 * Needs       a kernel's clone. An emulator of user programs may know fork's alone (qemu: EINVAL): there the program sees a
 *             child come and go.
 * Tests       tests/api/heapdump.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"
#include "os/os_internal.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef __WALL
#define __WALL 0x40000000
#endif

/* Linux keeps errno values below it. */
enum { EXIT_MOST = 255 };

int os_snapshot_process(void)
{
    if (os_fault()) {
        return -EAGAIN;
    }
    int saved_errno = errno;
    /* The order of the other arguments differs between machines; all of them are 0. */
    long pid = syscall(SYS_clone, 0L, 0L, 0L, 0L, 0L);
    if (pid < 0 && errno == EINVAL) {
        pid = syscall(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L, 0L);
    }
    if (pid == 0) {
        sigset_t all;
        sigfillset(&all);
        (void)pthread_sigmask(SIG_SETMASK, &all, NULL);
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    int result = pid < 0 ? -errno : (int)pid;
    errno = saved_errno;
    return result;
}

void os_snapshot_keep_file(int fd)
{
    unsigned first = STDERR_FILENO + 1;
    unsigned kept = (unsigned)fd;
    if (kept > first) {
        (void)syscall(SYS_close_range, first, kept - 1, 0);
    }
    (void)syscall(SYS_close_range, kept >= first ? kept + 1 : first, UINT_MAX, 0);
}

void os_snapshot_exit(int error)
{
    for (;;) {
        (void)syscall(SYS_exit_group, error >= 0 && error <= EXIT_MOST ? error : EIO);
    }
}

bool os_snapshot_ended(int pid, int *error)
{
    int saved_errno = errno;
    int status = 0;
    pid_t got = waitpid(pid, &status, WNOHANG | __WALL);
    bool ended = got == pid || (got < 0 && errno != EINTR);
    *error = got == pid && WIFEXITED(status) ? WEXITSTATUS(status) : EIO;
    errno = saved_errno;
    return ended;
}

bool os_snapshot_thread_name(int tid, char *name, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d/comm", (int)getppid(), tid);
    bool known = file_read(path, name, size);
    name[strcspn(name, "\n")] = '\0';
    return known;
}
