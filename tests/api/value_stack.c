/* A loam_stack is searched like the thread's own stack: an interpreter pushes and pops with plain stores below a top
 * pointer, while cycles run, and loses nothing; what lies above the top is not held.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90 */
#include "../support/test.h"

#include <sys/mman.h>

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct cons {
    struct cons *head, *tail;
    uint64_t sum; /* 1, or the children's sums together: what a lost child would spoil */
    uint64_t magic;
} cons;
LOAM_TYPE(cons, head, tail);

#define MAGIC UINT64_C(0x636F6E732D6F6B21)

static cons *cons_new(cons *head, cons *tail)
{
    cons *c = LOAM_NEW(cons);
    EXPECT_NOT_NULL(c);
    c->magic = MAGIC;
    c->sum = 1 + (head != NULL ? head->sum : 0) + (tail != NULL ? tail->sum : 0);
    LOAM_SET(c->head, head);
    LOAM_SET(c->tail, tail);
    return c;
}

static uint64_t cons_check(const cons *c)
{
    uint64_t sum = 0;
    if (c != NULL) {
        EXPECT_EQ(c->magic, MAGIC);
        sum = 1 + cons_check(c->head) + cons_check(c->tail);
        EXPECT_EQ(sum, c->sum);
    }
    return sum;
}

/* The machine: `slots` in plain memory, `top` its live end. */
struct machine {
    cons **slots;
    void *top;
    size_t room;
    loam_stack *stack;
};

static void machine_init(struct machine *vm, size_t room, bool with_top)
{
    vm->slots = mmap(NULL, room * sizeof *vm->slots, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_PTR_NE(vm->slots, MAP_FAILED);
    vm->room = room;
    vm->top = vm->slots;
    vm->stack = loam_stack_add(vm->slots, room * sizeof *vm->slots, with_top ? &vm->top : NULL);
    EXPECT_NOT_NULL(vm->stack);
}

static void machine_end(struct machine *vm)
{
    loam_stack_remove(vm->stack);
    munmap(vm->slots, vm->room * sizeof *vm->slots);
}

static size_t depth(const struct machine *vm)
{
    return (size_t)((cons **)vm->top - vm->slots);
}

static void push(struct machine *vm, cons *c)
{
    cons **at = vm->top;
    *(void *volatile *)&vm->top = at + 1; /* first the top, then the store */
    *(cons *volatile *)at = c;
}

static cons *pop(struct machine *vm)
{
    cons **at = (cons **)vm->top - 1;
    cons *c = *at;
    *(void *volatile *)&vm->top = at;
    return c;
}

static void run_instructions(struct machine *vm, struct rng *rng, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t n = depth(vm);
        switch (rng_below(rng, 6)) {
        case 0:
        case 1:
            if (n < vm->room) {
                push(vm, cons_new(NULL, NULL));
            }
            break;
        case 2:
            if (n >= 2 && vm->slots[n - 1]->sum + vm->slots[n - 2]->sum < 200) {
                cons *a = pop(vm);
                cons *b = pop(vm);
                push(vm, cons_new(a, b));
            }
            break;
        case 3:
            if (n >= 1) {
                cons_check(pop(vm));
            }
            break;
        case 4: /* exchange two slots with plain stores: the pointers exist nowhere else meanwhile */
            if (n >= 2) {
                size_t a = rng_below(rng, n);
                size_t b = rng_below(rng, n);
                cons *kept = vm->slots[a];
                vm->slots[a] = vm->slots[b];
                vm->slots[b] = kept;
            }
            break;
        default:
            if (n >= 1 && n < vm->room) {
                push(vm, vm->slots[rng_below(rng, n)]);
            }
        }
    }
}

static void machine_check(const struct machine *vm)
{
    for (size_t i = 0; i < depth(vm); i++) {
        cons_check(vm->slots[i]);
    }
}

static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static void *interpret(void *arg)
{
    struct team_member *me = arg;
    struct machine vm;
    machine_init(&vm, me->index == 0 ? 20000 : 500, me->index % 2 == 0);
    while (!atomic_load(&stop)) {
        run_instructions(&vm, &me->rng, 1000);
        if (rng_below(&me->rng, 16) == 0) {
            machine_check(&vm);
        }
    }
    machine_check(&vm);
    machine_end(&vm);
    return NULL;
}

static void interpreters(void)
{
    static struct team team;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, interpret, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

/* ---- what is not live is not held ---- */

static struct watch below, above;

static void push_batch(void *arg)
{
    struct machine *vm = arg;
    for (size_t i = 0; i < below.count + above.count; i++) {
        cons *c = cons_new(NULL, NULL);
        if (i < below.count) {
            watch_set(&below, i, c);
        } else {
            watch_set(&above, i - below.count, c);
        }
        push(vm, c);
    }
}

static void what_lies_above_the_top_dies(void)
{
    struct machine vm;
    watch_init(&below, 1000);
    watch_init(&above, 1000);
    machine_init(&vm, 4000, true);
    call_deep(push_batch, &vm);
    EXPECT_ALL_LIVE(&below);
    EXPECT_ALL_LIVE(&above);
    vm.top = vm.slots + below.count;
    EXPECT_MOST_DIE(&above);
    EXPECT_ALL_LIVE(&below);
    vm.top = vm.slots;
    EXPECT_MOST_DIE(&below);
    machine_end(&vm);
}

static void without_a_top_all_is_live(void)
{
    struct machine vm;
    watch_init(&below, 1000);
    watch_init(&above, 1000);
    machine_init(&vm, 4000, false);
    call_deep(push_batch, &vm);
    vm.top = vm.slots;
    EXPECT_ALL_LIVE(&above);
    EXPECT_ALL_LIVE(&below);
    loam_stack_remove(vm.stack);
    EXPECT_MOST_DIE(&below);
    EXPECT_MOST_DIE(&above);
    munmap(vm.slots, vm.room * sizeof *vm.slots);
}

static void a_parked_stack_says_what_is_live(void)
{
    struct machine vm;
    watch_init(&below, 1000);
    watch_init(&above, 1000);
    machine_init(&vm, 4000, true);
    call_deep(push_batch, &vm);
    EXPECT_EQ(loam_stack_set(vm.stack, vm.slots + below.count, above.count * sizeof *vm.slots), 0);
    EXPECT_MOST_DIE(&below);
    EXPECT_ALL_LIVE(&above);
    EXPECT_EQ(loam_stack_set(vm.stack, vm.slots, 0), 0);
    EXPECT_MOST_DIE(&above);
    machine_end(&vm);
}

/* ---- handed from thread to thread ---- */

enum { MACHINES = 12 };

struct parking {
    pthread_mutex_t lock;
    struct machine vm[MACHINES];
    bool taken[MACHINES];
    struct rng rng[MACHINES];
};
static struct parking *parking;

/* A parked machine, now the calling thread's; MACHINES when it is time to stop. */
static size_t unpark(struct rng *rng)
{
    while (!atomic_load(&stop)) {
        pthread_mutex_lock(&parking->lock);
        size_t i = rng_below(rng, MACHINES);
        bool got = !parking->taken[i];
        if (got) {
            parking->taken[i] = true;
            EXPECT_EQ(loam_stack_set(parking->vm[i].stack, NULL, 0),
                      0); /* mine, and `top` counts again */
        }
        pthread_mutex_unlock(&parking->lock);
        if (got) {
            return i;
        }
        sched_yield();
    }
    return MACHINES;
}

static void park(size_t i)
{
    struct machine *vm = &parking->vm[i];
    pthread_mutex_lock(&parking->lock);
    EXPECT_EQ(loam_stack_set(vm->stack, vm->slots, depth(vm) * sizeof *vm->slots), 0);
    parking->taken[i] = false;
    pthread_mutex_unlock(&parking->lock);
}

static void *interpret_what_is_parked(void *arg)
{
    struct team_member *me = arg;
    EXPECT_EQ(loam_attach(), 0);
    for (size_t i = unpark(&me->rng); i < MACHINES; i = unpark(&me->rng)) {
        run_instructions(&parking->vm[i], &parking->rng[i], rng_below(&me->rng, 2000));
        if (rng_below(&me->rng, 8) == 0) {
            machine_check(&parking->vm[i]);
        }
        park(i);
    }
    return NULL;
}

static void handed_between_threads(void)
{
    static struct team team;
    parking = calloc(1, sizeof *parking);
    pthread_mutex_init(&parking->lock, NULL);
    for (size_t i = 0; i < MACHINES; i++) {
        parking->rng[i] = rng_stream(100 + i);
        machine_init(&parking->vm[i], 2000, true);
    }
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, interpret_what_is_parked, NULL);
    struct rng rng = rng_stream(99);
    for (uint64_t start = now_ns(); seconds_since(start) < (double)test_number("seconds", 1);) {
        size_t i = unpark(&rng);
        run_instructions(&parking->vm[i], &parking->rng[i], 500);
        machine_check(&parking->vm[i]);
        park(i);
    }
    /* Take all over, one by one, before the others end: a stack belongs to the thread that set it last. */
    for (size_t i = 0; i < MACHINES; i++) {
        unpark(&rng);
    }
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
    loam_gc();
    for (size_t i = 0; i < MACHINES; i++) {
        machine_check(&parking->vm[i]);
        machine_end(&parking->vm[i]);
    }
    pthread_mutex_destroy(&parking->lock);
    free(parking);
}

static void bad_arguments(void)
{
    struct machine vm;
    machine_init(&vm, 64, true);
    EXPECT_ERRNO(loam_stack_add(NULL, 64, NULL), NULL, EINVAL);
    EXPECT_ERRNO(loam_stack_add((void *)(UINTPTR_MAX - 63), 128, NULL), NULL, EINVAL);
    EXPECT_ERRNO(loam_stack_set(vm.stack, vm.slots - 8, 16), -1, EINVAL);
    EXPECT_ERRNO(loam_stack_set(vm.stack, vm.slots + 60, 64), -1, EINVAL);
    EXPECT_ERRNO(loam_stack_set(vm.stack, vm.slots + 64, 8), -1, EINVAL);
    EXPECT_ERRNO(loam_stack_set(vm.stack, vm.slots, SIZE_MAX), -1, EINVAL);
    EXPECT_EQ(loam_stack_set(vm.stack, vm.slots + 64, 0), 0); /* nothing live, at the very end */
    EXPECT_EQ(loam_stack_set(vm.stack, vm.slots, 64 * sizeof *vm.slots), 0);
    machine_end(&vm);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(interpreters);
    RUN(what_lies_above_the_top_dies);
    RUN(without_a_top_all_is_live);
    RUN(a_parked_stack_says_what_is_live);
    RUN(handed_between_threads);
    RUN(bad_arguments);
    return test_end();
}
