/* coroutines.c - a program that switches stacks itself, in the three ways in which C programs do, with a collected heap.
 *
 *     ucontext    makecontext and swapcontext of the C library
 *     own switch  a few instructions that store the registers a call keeps and exchange the stack pointer (minicoro's way)
 *     one stack   coroutines run on one stack in turns; who leaves has its live part copied away (libaco's way)
 *
 * What the collector has to know is in the four functions below "what the collector is told"; the rest is coroutines as they are.
 * Each holds a list that nothing but its own locals point to, and checks it after each switch. Two threads resume the
 * coroutines of the first two ways, whichever is free. Prints what a switch costs with and without telling.
 *
 *     coroutines [coroutines [milliseconds]]
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <loam.h>
#include <loam/stats.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

enum { STACK_BYTES = 64 << 10, LIST = 20 };

enum way { UCONTEXT, OWN_SWITCH, ONE_STACK };

struct coroutine {
    enum way way;
    char *memory;      /* its stack; for ONE_STACK the copy of what is live of it */
    size_t saved;      /* bytes of that copy */
    char *low, *high;  /* where it runs */
    loam_stack *known; /* memory, as the collector knows it */
    void *sp;          /* while it is parked */
    void *caller;      /* the stack pointer of who resumed it */
    ucontext_t *context, *caller_context;
    uint64_t turns;
    int idle; /* it does nothing */
    pthread_mutex_t taken;
};

/* ---- the switch: the registers that a call keeps, and the stack pointer ---- */

void switch_stacks(void **save, void *to);
#if defined(__x86_64__)
__asm__(
    ".text\n.globl switch_stacks\n.type switch_stacks, @function\nswitch_stacks:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size switch_stacks, . - switch_stacks\n.section .note.GNU-stack, \"\", @progbits\n.text\n");
enum { FRAME_WORDS = 8, FRAME_RETURN = 6 };
#elif defined(__aarch64__)
__asm__(".text\n.globl switch_stacks\n.type switch_stacks, %function\nswitch_stacks:\n"
        "sub sp, sp, #160\n"
        "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\n"
        "stp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
        "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, "
        "[sp, #144]\n"
        "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
        "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\n"
        "ldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
        "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, "
        "[sp, #144]\n"
        "add sp, sp, #160\nret\n.size switch_stacks, . - switch_stacks\n");
enum { FRAME_WORDS = 20, FRAME_RETURN = 11 };
#endif

static _Thread_local struct coroutine *starting;

static void coroutine_body(struct coroutine *co);

static void first_frame(void)
{
    coroutine_body(starting);
    abort(); /* it never returns */
}

/* ---- what the collector is told ----
 *
 * A parked coroutine's memory belongs to the thread that parked it, and is searched with that thread's stack: the live part. */

static int tell = 1;

static void tell_new(struct coroutine *co)
{
    co->known = loam_stack_add(co->memory, STACK_BYTES, NULL);
    if (co->known == NULL) {
        perror("loam_stack_add");
        exit(1);
    }
}

/* It is about to run on the calling thread: all of its memory may be live. */
static void tell_resumed(struct coroutine *co)
{
    if (tell) {
        loam_stack_set(co->known, NULL, 0);
    }
}

/* Its memory is live from here to its end, until it is resumed, by whichever thread. */
static void tell_parked(struct coroutine *co, void *live, size_t bytes)
{
    if (tell && loam_stack_set(co->known, live, bytes) != 0) {
        perror("loam_stack_set");
        exit(1);
    }
}

static void tell_freed(struct coroutine *co)
{
    loam_stack_remove(co->known);
}

/* ---- coroutines ---- */

static char *map(size_t bytes)
{
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return p;
}

static char *one_stack; /* of ONE_STACK, and of one thread */

static struct coroutine *coroutine_new(enum way way)
{
    struct coroutine *co = calloc(1, sizeof *co);
    if (co == NULL) {
        perror("calloc");
        exit(1);
    }
    co->way = way;
    co->memory = map(STACK_BYTES);
    co->low = way == ONE_STACK ? one_stack : co->memory;
    co->high = co->low + STACK_BYTES;
    pthread_mutex_init(&co->taken, NULL);
    tell_new(co);
    if (way == UCONTEXT) {
        /* swapcontext leaves registers in it, and these may be all that points to an object: it lies where the collector
         * looks, above the stack. */
        co->high -= (sizeof *co->context + 63) / 64 * 64;
        co->context = (ucontext_t *)(void *)co->high;
        getcontext(co->context);
        co->context->uc_stack.ss_sp = co->memory;
        co->context->uc_stack.ss_size = (size_t)(co->high - co->memory);
        makecontext(co->context, first_frame, 0);
        co->sp = co->high;
    } else {
        void *frame[FRAME_WORDS] = {0};
        frame[FRAME_RETURN] = (void *)(uintptr_t)first_frame;
        co->sp = co->high - sizeof frame - 16 * (FRAME_WORDS % 2);
        co->saved = (size_t)(co->high - (char *)co->sp);
        memcpy(way == ONE_STACK ? co->memory : co->sp, frame, sizeof frame);
    }
    if (way == ONE_STACK) {
        tell_parked(co, co->memory, co->saved);
    } else {
        tell_parked(co, co->sp, (size_t)(co->memory + STACK_BYTES - (char *)co->sp));
    }
    return co;
}

static void coroutine_yield(struct coroutine *co)
{
    if (co->way == UCONTEXT) {
        co->sp = (char *)__builtin_frame_address(0) - 512; /* swapcontext's own frame lies above */
        swapcontext(co->context, co->caller_context);
    } else {
        switch_stacks(&co->sp, co->caller);
    }
}

/* The copies keep what they are copied from: at no moment is a pointer nowhere. */
static void bring_back(struct coroutine *co)
{
    memcpy(co->sp, co->memory, co->saved);
}

static void copy_away(struct coroutine *co)
{
    co->saved = (size_t)(co->high - (char *)co->sp);
    tell_parked(co, co->memory, co->saved);
    memcpy(co->memory, co->sp, co->saved);
}

static void coroutine_resume(struct coroutine *co)
{
    ucontext_t here;
    starting = co;
    switch (co->way) {
    case UCONTEXT:
        tell_resumed(co);
        co->caller_context = &here;
        swapcontext(&here, co->context);
        tell_parked(co, co->sp, (size_t)(co->memory + STACK_BYTES - (char *)co->sp));
        break;
    case OWN_SWITCH:
        tell_resumed(co);
        switch_stacks(&co->caller, co->sp);
        tell_parked(co, co->sp, (size_t)(co->memory + STACK_BYTES - (char *)co->sp));
        break;
    case ONE_STACK: /* what it runs on is the thread's: main has said so */
        bring_back(co);
        switch_stacks(&co->caller, co->sp);
        copy_away(co);
        break;
    }
}

static void coroutine_free(struct coroutine *co)
{
    tell_freed(co);
    munmap(co->memory, STACK_BYTES);
    free(co);
}

/* ---- what they do ---- */

typedef struct node {
    struct node *next;
    uint64_t number;
} node;
LOAM_TYPE(node, next);

static node *list_new(uint64_t first)
{
    node *list = NULL;
    for (uint64_t i = 0; i < LIST; i++) {
        node *n = LOAM_NEW(node);
        n->number = first + i;
        LOAM_SET(n->next, list);
        list = n;
    }
    return list;
}

static void list_check(const node *list, uint64_t first)
{
    for (uint64_t i = LIST; i-- > 0; list = list->next) {
        if (list == NULL || list->number != first + i) {
            fprintf(stderr, "a coroutine's list is not what it was\n");
            exit(1);
        }
    }
}

static void coroutine_body(struct coroutine *co)
{
    for (;;) {
        while (co->idle) {
            coroutine_yield(co);
        }
        uint64_t first = co->turns;
        node *mine = list_new(first); /* nothing else points to it */
        for (int i = 0; i < 50 && !co->idle; i++) {
            coroutine_yield(co);
            list_check(mine, first);
            list_new(0); /* something to collect */
            co->turns++;
        }
    }
}

/* ---- the program ---- */

static struct coroutine **all;
static size_t count = 2000;
static double seconds = 0.5;
static atomic_ullong switches;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Whichever coroutine is free; what one thread parked another resumes. */
static void *resume_them(void *arg)
{
    double end = now() + seconds;
    uint64_t done = 0;
    for (size_t i = (size_t)(uintptr_t)arg; now() < end;) {
        for (int k = 0; k < 100; k++, i = (i + 1) % count) {
            if (pthread_mutex_trylock(&all[i]->taken) == 0) {
                coroutine_resume(all[i]);
                pthread_mutex_unlock(&all[i]->taken);
                done++;
            }
        }
    }
    atomic_fetch_add(&switches, done);
    return NULL;
}

static double time_turns(struct coroutine *co, int told)
{
    enum { TURNS = 2000 };
    tell = told;
    double began = now();
    for (int i = 0; i < TURNS; i++) {
        coroutine_resume(co);
    }
    tell = 1;
    return (now() - began) * 1e9 / TURNS / 2;
}

/* Empty turns on one thread, without a cycle: who is not told must not collect. The least of several. */
static void measure(enum way way, double *plain, double *told)
{
    int percent = loam_set_gc_percent(-1);
    struct coroutine *co = coroutine_new(way);
    co->idle = 1;
    *plain = *told = 1e9;
    for (int i = 0; i < 20; i++) {
        double p = time_turns(co, 0);
        double t = time_turns(co, 1);
        *plain = p < *plain ? p : *plain;
        *told = t < *told ? t : *told;
    }
    coroutine_free(co);
    loam_set_gc_percent(percent);
}

static void run(enum way way, const char *name, int threads)
{
    loam_memstats before, after;
    pthread_t other;
    all = malloc(count * sizeof *all);
    for (size_t i = 0; i < count; i++) {
        all[i] = coroutine_new(way);
    }
    atomic_store(&switches, 0);
    loam_read_memstats(&before);
    if (threads == 2) {
        pthread_create(&other, NULL, resume_them, (void *)(uintptr_t)(count / 2));
    }
    resume_them((void *)0);
    if (threads == 2) {
        pthread_join(other, NULL);
    }
    loam_gc();
    for (size_t i = 0; i < count; i++) {
        coroutine_resume(all[i]); /* which looks at its list */
    }
    loam_read_memstats(&after);
    for (size_t i = 0; i < count; i++) {
        coroutine_free(all[i]);
    }
    free(all);
    double plain;
    double told;
    measure(way, &plain, &told);
    printf("%-12s %10zu %8d %12llu %8u %10.1f %10.1f\n", name, count, threads,
           atomic_load(&switches) * 2, (unsigned)(after.num_gc - before.num_gc), plain, told);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        count = strtoul(argv[1], NULL, 10);
    }
    if (argc > 2) {
        seconds = strtod(argv[2], NULL) / 1e3;
    }
    if (count == 0 || seconds <= 0) {
        fprintf(stderr, "usage: coroutines [coroutines [milliseconds]]\n");
        return 2;
    }
    one_stack = map(STACK_BYTES);
    loam_stack *shared = loam_stack_add(one_stack, STACK_BYTES, NULL); /* this thread runs on it */
    printf("%-12s %10s %8s %12s %8s %10s %10s\n", "way", "coroutines", "threads", "switches",
           "cycles", "ns, plain", "ns, told");
    run(UCONTEXT, "ucontext", 2);
    run(OWN_SWITCH, "own switch", 2);
    run(ONE_STACK, "one stack", 1);
    loam_stack_remove(shared);
    return 0;
}
