/* count.c - how many instructions one call of loam_alloc_noscan(16) takes, counted by single steps.
 *
 * The child allocates and stops before each call that counts; the parent steps it from the call to the
 * return. Prints "calls N min N max N", then the addresses of the longest one, one per line, as
 * function+offset. Exit status 77: this system does not let a process be stepped. x86-64 only.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <loam.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WARM = 16, CALLS = 64, MOST = 1000, SKIP = 77 };

void *sink[WARM + CALLS];

static void child(void)
{
    for (int i = 0; i < WARM; i++) {
        sink[i] = loam_alloc_noscan(16);
    }
    if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0) {
        _exit(SKIP);
    }
    raise(SIGSTOP);
    for (int i = 0; i < CALLS; i++) {
        __asm__ volatile("int3" : : : "memory");
        sink[WARM + i] = loam_alloc_noscan(16);
    }
    _exit(0);
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* The child goes on to its next stop; its status. */
static int next_stop(pid_t pid, int request, struct user_regs_struct *regs)
{
    int status;
    if (ptrace(request, pid, 0, 0) != 0) {
        fail("ptrace");
    }
    if (waitpid(pid, &status, 0) != pid) {
        fail("waitpid");
    }
    if (WIFSTOPPED(status) && ptrace(PTRACE_GETREGS, pid, 0, regs) != 0) {
        fail("PTRACE_GETREGS");
    }
    return status;
}

static unsigned char byte_at(pid_t pid, unsigned long addr)
{
    errno = 0;
    long word = ptrace(PTRACE_PEEKTEXT, pid, addr & ~7ul, 0);
    if (errno != 0) {
        fail("PTRACE_PEEKTEXT");
    }
    return (unsigned char)((unsigned long)word >> (addr & 7) * 8);
}

/* The child stands before a call. Its instructions, and their addresses. */
static int count_call(pid_t pid, struct user_regs_struct *regs, unsigned long *pcs)
{
    int n = 0;
    unsigned long sp = 0;
    while (n < MOST) {
        int op = byte_at(pid, regs->rip);
        int modrm = byte_at(pid, regs->rip + 1);
        if (n == 0 && (op == 0xe8 || (op == 0xff && (modrm & 0x38) == 0x10))) {
            sp = regs->rsp; /* as it is after the return */
        }
        if (sp != 0) {
            pcs[n++] = regs->rip;
        }
        if (!WIFSTOPPED(next_stop(pid, PTRACE_SINGLESTEP, regs))) {
            fprintf(stderr, "the child ended while it was stepped\n");
            exit(1);
        }
        if (sp != 0 && n > 1 && regs->rsp == sp) {
            break;
        }
    }
    return n;
}

int main(void)
{
    static unsigned long pcs[MOST], longest[MOST];
    struct user_regs_struct regs;
    int calls = 0, min = MOST, max = 0, status;
    pid_t pid = fork();
    if (pid < 0) {
        fail("fork");
    }
    if (pid == 0) {
        child();
    }
    if (waitpid(pid, &status, 0) != pid) {
        fail("waitpid");
    }
    if (!WIFSTOPPED(status)) {
        return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    }
    for (;;) {
        status = next_stop(pid, PTRACE_CONT, &regs);
        if (!WIFSTOPPED(status)) {
            break;
        }
        if (WSTOPSIG(status) != SIGTRAP) {
            fprintf(stderr, "stopped by signal %d\n", WSTOPSIG(status));
            kill(pid, SIGKILL);
            return 1;
        }
        int n = count_call(pid, &regs, pcs);
        calls++;
        min = n < min ? n : min;
        if (n > max) {
            max = n;
            for (int i = 0; i < n; i++) {
                longest[i] = pcs[i];
            }
        }
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || calls != CALLS) {
        fprintf(stderr, "%d calls of %d, status %d\n", calls, CALLS, status);
        return 1;
    }
    printf("calls %d min %d max %d\n", calls, min, max);
    for (int i = 0; i < max; i++) { /* not randomised: the same places as in this process */
        printf("%#lx\n", longest[i] - (unsigned long)&loam_alloc_noscan);
    }
    return 0;
}
