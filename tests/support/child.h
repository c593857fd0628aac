/* child.h - the program, run again as a process of its own.
 *
 * A case that must end badly, or needs another environment, or must be the first to touch the library, is a function
 * named in a table; child_run starts this executable with `--child NAME` and reads what it says on stderr. */
#ifndef TESTS_SUPPORT_CHILD_H
#define TESTS_SUPPORT_CHILD_H

#include "test.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* What fork gave has ended well, a minute from now at the latest. Also in a signal handler. */
UNUSED static void child_wait(pid_t pid)
{
    int status = 0;
    EXPECT_MSG(pid > 0, "fork: %s", strerror(errno));
    uint64_t start = now_ns();
    pid_t got;
    while ((got = waitpid(pid, &status, WNOHANG)) == 0) {
        if (seconds_since(start) > 60) {
            kill(pid, SIGABRT);
            FAIL("the child hangs");
        }
        sleep_us(100);
    }
    EXPECT_EQ(got, pid);
    EXPECT_MSG(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with status %#x",
               (unsigned)status);
}

struct child_case {
    const char *name;
    void (*run)(void);
};

struct child {
    int status;       /* as waitpid gave it */
    bool timed_out;   /* and was killed */
    char text[32768]; /* the beginning of its stderr */
};

/* In main, after test_begin: runs the case asked for and does not return; returns if none was. */
static inline void child_dispatch(const struct child_case *cases, size_t count)
{
    const char *name = test_argument("child");
    if (name == NULL) {
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (strcmp(cases[i].name, name) == 0) {
            struct rlimit no_core = {0, 0};
            setrlimit(RLIMIT_CORE, &no_core);
            test_state.name = cases[i].name;
            cases[i].run();
            fflush(NULL);
            exit(0);
        }
    }
    FAIL("no child case %s", name);
}

static inline void child_read(struct child *c, int fd, pid_t pid, double seconds)
{
    uint64_t start = now_ns();
    size_t used = 0;
    char spill[4096];

    for (;;) {
        struct pollfd pfd = {fd, POLLIN, 0};
        int ready = poll(&pfd, 1, 50);
        if (ready < 0 && errno != EINTR) {
            break;
        }
        if (ready > 0) {
            size_t room = sizeof c->text - 1 - used;
            ssize_t got = room > 0 ? read(fd, c->text + used, room) : read(fd, spill, sizeof spill);
            if (got == 0) {
                break;
            }
            used += room > 0 && got > 0 ? (size_t)got : 0;
        }
        if (seconds_since(start) > seconds) {
            c->timed_out = true;
            kill(pid, SIGKILL);
            break;
        }
    }
    c->text[used] = '\0';
}

/* Run case `name` with `environment` ("KEY=value", or "KEY" to unset; NULL ends the list; NULL for none). */
static inline void child_run(struct child *c, const char *name, const char *const environment[],
                             double seconds)
{
    int pipe_fds[2];
    char seed[32];

    memset(c, 0, sizeof *c);
    snprintf(seed, sizeof seed, "%" PRIu64, test_state.seed);
    EXPECT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0); /* children beside it do not keep it open */
    fflush(NULL);
    pid_t pid = fork();
    EXPECT_MSG(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that has failed leaves nothing behind */
        dup2(pipe_fds[1], STDERR_FILENO);
        close(pipe_fds[0]);
        close(pipe_fds[1]);
        for (size_t i = 0; environment != NULL && environment[i] != NULL; i++) {
            const char *equals = strchr(environment[i], '=');
            if (equals == NULL) {
                unsetenv(environment[i]);
            } else {
                char key[64];
                snprintf(key, sizeof key, "%.*s", (int)(equals - environment[i]), environment[i]);
                setenv(key, equals + 1, 1);
            }
        }
        const char *emulator = getenv("TEST_EMULATOR");
        char self[4096] = "";
        if (emulator != NULL && readlink("/proc/self/exe", self, sizeof self - 1) > 0) {
            execl(emulator, emulator, self, "--child", name, "--seed", seed, (char *)NULL);
        }
        execl("/proc/self/exe", test_state.argv[0], "--child", name, "--seed", seed, (char *)NULL);
        _exit(127);
    }
    close(pipe_fds[1]);
    child_read(c, pipe_fds[0], pid, seconds);
    close(pipe_fds[0]);
    EXPECT_EQ(waitpid(pid, &c->status, 0), pid);
}

static inline bool child_exited(const struct child *c, int status)
{
    return !c->timed_out && WIFEXITED(c->status) && WEXITSTATUS(c->status) == status;
}

static inline bool child_aborted(const struct child *c)
{
    return !c->timed_out && WIFSIGNALED(c->status) && WTERMSIG(c->status) == SIGABRT;
}

#define EXPECT_CHILD_PASSED(c)                                                     \
    EXPECT_MSG(child_exited((c), 0), "child ended with status %#x%s; it said: %s", \
               (unsigned)(c)->status, (c)->timed_out ? " (timed out)" : "", (c)->text)

#define EXPECT_CHILD_ABORTED(c)                                                                    \
    EXPECT_MSG(child_aborted((c)), "expected SIGABRT; child ended with status %#x%s; it said: %s", \
               (unsigned)(c)->status, (c)->timed_out ? " (timed out)" : "", (c)->text)

#endif
