/* deep_goroutine.c - what run.sh looks at: a goroutine some calls deep, that yields to another one. */
#include <loam/sched.h>

enum { DEPTH = 5, ROUNDS = 40, SPINS = 2000000 };

static volatile unsigned long spins;

__attribute__((noinline)) static void innermost(void)
{
    for (unsigned long i = 0; i < SPINS; i++) {
        spins += i;
    }
}

/* Not in the tail, so that each call has a frame. */
__attribute__((noinline)) static void middle(int depth)
{
    if (depth > 0) {
        middle(depth - 1);
    } else {
        innermost();
        loam_yield();
    }
    spins++;
}

__attribute__((noinline)) static void outer(void *arg)
{
    (void)arg;
    for (int i = 0; i < ROUNDS; i++) {
        middle(DEPTH);
    }
}

static void start(void *arg)
{
    loam_go(outer, arg);
    outer(arg);
}

int main(void)
{
    return loam_run(start, 0);
}
