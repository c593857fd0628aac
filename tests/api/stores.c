/* Every kind of store stores what it says, once, and loses nothing while cycles run: LOAM_SET, loam_store,
 * loam_exchange, loam_compare_exchange, loam_store_as.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | | 90 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct node {
    struct node *next;
    uint64_t id;
    uint64_t check;
} node;
LOAM_TYPE(node, next);

typedef struct mixed {
    node *plain;
    const node *to_const;
    node *volatile is_volatile;
    _Atomic(node *) is_atomic;
    uintptr_t word;
    void *untyped;
} mixed;
LOAM_TYPE(mixed, plain, to_const, is_volatile, is_atomic, word, untyped);

static node *node_new(uint64_t id)
{
    node *n = LOAM_NEW(node);
    EXPECT_NOT_NULL(n);
    n->id = id;
    n->check = rng_mix(id);
    return n;
}

static void node_check(const node *n)
{
    EXPECT_EQ(n->check, rng_mix(n->id));
}

static void set_takes_every_lvalue_and_gives_the_value(void)
{
    mixed *m = LOAM_NEW(mixed);
    node *n = node_new(1);
    static node *in_static;

    EXPECT_PTR_EQ(LOAM_SET(m->plain, n), n);
    EXPECT_PTR_EQ(LOAM_SET(m->to_const, n), n);
    EXPECT_PTR_EQ(LOAM_SET(m->is_volatile, n), n);
    EXPECT_PTR_EQ(LOAM_SET(m->is_atomic, n), n);
    EXPECT_EQ(LOAM_SET(m->word, (uintptr_t)n | 3), (uintptr_t)n | 3);
    EXPECT_PTR_EQ(LOAM_SET(m->untyped, n), n);
    EXPECT_PTR_EQ(LOAM_SET(in_static, n), n);
    EXPECT_PTR_EQ(m->plain, n);
    EXPECT_PTR_EQ(m->to_const, n);
    EXPECT_PTR_EQ(m->is_volatile, n);
    EXPECT_PTR_EQ(atomic_load(&m->is_atomic), n);
    EXPECT_EQ(m->word, (uintptr_t)n | 3);
    EXPECT_PTR_EQ(m->untyped, n);
    LOAM_SET(m->plain, NULL);
    EXPECT_NULL(m->plain);
    node *a = NULL;
    node *b = LOAM_SET(a, LOAM_SET(m->plain, n)); /* an expression; on the stack too */
    EXPECT_PTR_EQ(b, n);
    EXPECT_PTR_EQ(a, n);
    LOAM_SET(in_static, NULL);
}

static void set_evaluates_once(void)
{
    node **table = LOAM_NEW_POINTERS(node, 8);
    uint64_t made = 0;
    size_t i = 0;
    while (i < 8) {
        LOAM_SET(table[i++], node_new(made++));
    }
    EXPECT_EQ(made, 8);
    for (i = 0; i < 8; i++) {
        EXPECT_EQ(table[i]->id, i);
    }
}

/* Outside the heap the stores store as well. */
static void other_memory(void)
{
    node **plain = calloc(4, sizeof *plain);
    node *n = node_new(1);
    node *m = node_new(2);
    node *found = NULL;

    loam_store(&plain[0], n);
    EXPECT_PTR_EQ(plain[0], n);
    EXPECT_PTR_EQ(loam_exchange(&plain[0], m), n);
    EXPECT(!loam_compare_exchange(&plain[0], &found, n));
    EXPECT_PTR_EQ(found, m);
    EXPECT(loam_compare_exchange(&plain[0], &found, n));
    EXPECT_PTR_EQ(plain[0], n);
    EXPECT_PTR_EQ(found, m); /* unchanged by success */
    LOAM_SET(plain[1], m);
    loam_copy(&plain[2], &plain[0], 2 * sizeof *plain);
    EXPECT_PTR_EQ(plain[3], m);
    loam_clear(plain, 4 * sizeof *plain);
    EXPECT_NULL(plain[2]);
    loam_store_as(&plain[0], 12345, NULL, NULL);
    EXPECT_EQ((uintptr_t)plain[0], 12345);
    free(plain);
    loam_keep_alive(n);
    loam_keep_alive(m);
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

static void run_team_while_collecting(size_t count, void *(*fn)(void *))
{
    static struct team team;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, count, fn, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

/* A token is never lost nor doubled: each thread swaps its own for whatever lies in a random slot. */
enum { SLOTS = 97, TRADERS = 6 };
static node *_Atomic table[SLOTS];
static node *in_hand[TRADERS];

static void *trade(void *arg)
{
    struct team_member *me = arg;
    node *mine = node_new(SLOTS + me->index);
    while (!atomic_load(&stop)) {
        for (int i = 0; i < 100; i++) {
            mine = loam_exchange(&table[rng_below(&me->rng, SLOTS)], mine);
            node_check(mine);
            EXPECT_PTR_EQ(loam_base(mine), mine);
        }
        node_new(0); /* the price of a collection */
    }
    LOAM_SET(in_hand[me->index], mine);
    return NULL;
}

static void exchange_conserves(void)
{
    bool seen[SLOTS + TRADERS] = {false};
    for (size_t i = 0; i < SLOTS; i++) {
        LOAM_SET(table[i], node_new(i));
    }
    run_team_while_collecting(TRADERS, trade);
    for (size_t i = 0; i < SLOTS + TRADERS; i++) {
        node *n = i < SLOTS ? atomic_load(&table[i]) : in_hand[i - SLOTS];
        node_check(n);
        EXPECT_LT(n->id, SLOTS + TRADERS);
        EXPECT_MSG(!seen[n->id], "token %" PRIu64 " is in two places", n->id);
        seen[n->id] = true;
    }
}

/* A lock-free stack, without the ABA problem because memory is collected.  Every pushed id is popped once. */
static node *_Atomic stack_top;
static _Atomic(uint64_t) pushed_sum, popped_sum;

static void push(node *n)
{
    node *top = atomic_load(&stack_top);
    do {
        LOAM_SET(n->next, top);
    } while (!loam_compare_exchange(&stack_top, &top, n));
}

static node *pop(void)
{
    node *top = atomic_load(&stack_top);
    while (top != NULL) {
        node_check(top);
        node *next = LOAD_SLOT(top->next);
        if (loam_compare_exchange(&stack_top, &top, next)) {
            return top;
        }
    }
    return NULL;
}

static void *push_and_pop(void *arg)
{
    struct team_member *me = arg;
    uint64_t next_id = me->index;
    while (!atomic_load(&stop)) {
        for (size_t i = rng_below(&me->rng, 30); i > 0; i--) {
            node *n = node_new(next_id);
            next_id += me->count;
            atomic_fetch_add(&pushed_sum, n->check);
            push(n);
        }
        for (size_t i = rng_below(&me->rng, 30); i > 0; i--) {
            node *n = pop();
            if (n != NULL) {
                node_check(n);
                atomic_fetch_add(&popped_sum, n->check);
            }
        }
    }
    return NULL;
}

static void compare_exchange_makes_a_stack(void)
{
    run_team_while_collecting(6, push_and_pop);
    for (node *n = pop(); n != NULL; n = pop()) {
        atomic_fetch_add(&popped_sum, n->check);
    }
    EXPECT_EQ(atomic_load(&popped_sum), atomic_load(&pushed_sum));
}

/* The hiding game that a snapshot barrier must win: a pointer is read into a local and its only slot overwritten,
 * then it is put back somewhere else, over and over. */
static void *hide(void *arg)
{
    enum { WIDTH = 64 };
    struct team_member *me = arg;
    node **slots = LOAM_NEW_POINTERS(node, WIDTH);
    for (size_t i = 0; i < WIDTH; i++) {
        LOAM_SET(slots[i], node_new(i));
    }
    while (!atomic_load(&stop)) {
        size_t from = rng_below(&me->rng, WIDTH);
        size_t to = (from + rng_between(&me->rng, 1, WIDTH - 1)) % WIDTH;
        node *hidden = slots[from];
        LOAM_SET(slots[from], NULL);
        if (hidden != NULL && rng_below(&me->rng, 8) == 0) {
            node *fresh = node_new(hidden->id); /* a fresh, black object takes an old, white one */
            LOAM_SET(fresh->next, hidden);
            hidden = fresh->next;
        }
        node *other = slots[to];
        LOAM_SET(slots[to], hidden);
        LOAM_SET(slots[from], other);
        if (hidden != NULL) {
            node_check(hidden);
        }
    }
    for (size_t i = 0; i < WIDTH; i++) {
        EXPECT_NOT_NULL(slots[i]);
        node_check(slots[i]);
    }
    return NULL;
}

static void hiding_in_a_local(void)
{
    run_team_while_collecting(4, hide);
}

/* A release store: the reader never sees an unfinished object. */
static node *_Atomic published[16];

static void *publish_and_read(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load(&stop)) {
        size_t i = rng_below(&me->rng, COUNT_OF(published));
        if (me->index % 2 == 0) {
            LOAM_SET(published[i], node_new(rng_next(&me->rng)));
        } else {
            node *n = atomic_load_explicit(&published[i], memory_order_acquire);
            if (n != NULL) {
                node_check(n);
            }
        }
    }
    return NULL;
}

static void publication(void)
{
    run_team_while_collecting(4, publish_and_read);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(set_takes_every_lvalue_and_gives_the_value);
    RUN(set_evaluates_once);
    RUN(other_memory);
    RUN(exchange_conserves);
    RUN(compare_exchange_makes_a_stack);
    RUN(hiding_in_a_local);
    RUN(publication);
    return test_end();
}
