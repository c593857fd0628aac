/* __thread variables and pthread_setspecific values are ordinary C: plain stores, and they hold what they point to, on
 * every thread, for keys in the second level of the C library's table too, and until the destructors have run.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 90 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

enum { SLOTS = 300, KEYS = 100, EACH = SLOTS + KEYS };

static __thread item *slots[SLOTS];            /* .tbss */
static __thread item *initialised = (item *)8; /* .tdata */
static __thread char large[100000];
static __thread item *behind_large;
static pthread_key_t keys[KEYS];

static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

/* ---- plain use, while cycles run ---- */

static NOINLINE void change_one(struct rng *rng)
{
    size_t i = rng_below(rng, SLOTS);
    size_t k = rng_below(rng, KEYS);
    switch (rng_below(rng, 5)) {
    case 0:
        slots[i] = item_new(i, NULL);
        break;
    case 1: /* from TLS to TLS, with nothing else holding it meanwhile */
        if (slots[i] != NULL) {
            size_t to = rng_below(rng, SLOTS);
            item *carried = slots[i];
            slots[i] = slots[to];
            slots[to] = carried;
        }
        break;
    case 2:
        EXPECT_EQ(pthread_setspecific(keys[k], item_new(k, NULL)), 0);
        break;
    case 3: {
        item *carried = pthread_getspecific(keys[k]);
        EXPECT_EQ(pthread_setspecific(keys[k], slots[i]), 0);
        slots[i] = carried;
        break;
    }
    default:
        behind_large = item_new(i, NULL);
        initialised = behind_large;
        large[i] = 1;
    }
}

static NOINLINE void check_all(void)
{
    for (size_t i = 0; i < SLOTS; i++) {
        if (slots[i] != NULL) {
            item_check(slots[i]);
        }
    }
    for (size_t k = 0; k < KEYS; k++) {
        item *it = pthread_getspecific(keys[k]);
        if (it != NULL) {
            item_check(it);
        }
    }
    if (behind_large != NULL) {
        item_check(behind_large);
        item_check(initialised);
    }
}

static void *use_locals(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load(&stop)) {
        for (int i = 0; i < 200; i++) {
            change_one(&me->rng);
        }
        check_all();
    }
    return NULL;
}

static void used_while_cycles_run(void)
{
    static struct team team;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, use_locals, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

/* ---- what they hold, and when it dies ---- */

static struct watch in_slots, in_keys;
static _Atomic(size_t) filled;
static _Atomic(int) stage;

static void fill_locals(void *arg)
{
    size_t index = *(size_t *)arg;
    for (size_t i = 0; i < SLOTS; i++) {
        slots[i] = item_new(i, NULL);
        watch_set(&in_slots, index * SLOTS + i, slots[i]);
    }
    for (size_t k = 0; k < KEYS; k++) {
        item *it = item_new(k, NULL);
        watch_set(&in_keys, index * KEYS + k, it);
        EXPECT_EQ(pthread_setspecific(keys[k], it), 0);
    }
}

static void *hold_in_locals(void *arg)
{
    struct team_member *me = arg;
    size_t index = me->index;
    call_deep(fill_locals, &index);
    atomic_fetch_add(&filled, 1);
    WAIT_FOR(60, atomic_load(&stage) >= 1);
    check_all();
    if (index % 2 == 0) { /* half let go by hand, half by ending */
        memset(slots, 0, sizeof slots);
        for (size_t k = 0; k < KEYS; k++) {
            EXPECT_EQ(pthread_setspecific(keys[k], NULL), 0);
        }
        scrub_stack();
        atomic_fetch_add(&filled, 1);
        WAIT_FOR(60, atomic_load(&stage) >= 2);
    }
    return NULL;
}

static void held_until_cleared_or_ended(void)
{
    enum { MEMBERS = 6 };
    static struct team team;
    atomic_store(&filled, 0);
    atomic_store(&stage, 0);
    watch_init(&in_slots, MEMBERS * SLOTS);
    watch_init(&in_keys, MEMBERS * KEYS);
    team_start(&team, MEMBERS, hold_in_locals, NULL);
    WAIT_FOR(20, atomic_load(&filled) == MEMBERS);
    for (int i = 0; i < 3; i++) {
        EXPECT_ALL_LIVE(&in_slots);
        EXPECT_ALL_LIVE(&in_keys);
    }
    atomic_store(&stage, 1);
    WAIT_FOR(20, atomic_load(&filled) == MEMBERS + MEMBERS / 2);
    for (size_t i = 1; i < MEMBERS; i += 2) {
        thread_join(team.thread[i]);
    }
    EXPECT_MOST_DIE(&in_slots);
    EXPECT_MOST_DIE(&in_keys);
    atomic_store(&stage, 2);
    for (size_t i = 0; i < MEMBERS; i += 2) {
        thread_join(team.thread[i]);
    }
}

/* On the main thread, whose block the loader made. */
static void on_the_main_thread(void)
{
    size_t index = 0;
    watch_init(&in_slots, SLOTS);
    watch_init(&in_keys, KEYS);
    call_deep(fill_locals, &index);
    EXPECT_ALL_LIVE(&in_slots);
    EXPECT_ALL_LIVE(&in_keys);
    check_all();
    memset(slots, 0, sizeof slots);
    for (size_t k = 0; k < KEYS; k++) {
        EXPECT_EQ(pthread_setspecific(keys[k], NULL), 0);
    }
    EXPECT_MOST_DIE(&in_slots);
    EXPECT_MOST_DIE(&in_keys);
}

/* ---- attached only, never allocating ---- */

static void *attach_and_hold(void *arg)
{
    EXPECT_EQ(loam_attach(), 0);
    slots[7] = arg;
    EXPECT_EQ(pthread_setspecific(keys[KEYS - 1], ((item *)arg)->next), 0);
    atomic_store(&stage, 1);
    WAIT_FOR(60, atomic_load(&stage) == 2);
    item_check(slots[7]);
    item_check(pthread_getspecific(keys[KEYS - 1]));
    return NULL;
}

static void held_by_a_thread_that_only_attached(void)
{
    atomic_store(&stage, 0);
    item *it = loam_pin(item_new(1, NULL));
    LOAM_SET(it->next, item_new(2, NULL));
    pthread_t t = thread_start(attach_and_hold, it);
    WAIT_FOR(20, atomic_load(&stage) == 1);
    LOAM_SET(it->next, NULL);
    loam_unpin(it);
    it = NULL;
    scrub_stack();
    for (int i = 0; i < 3; i++) {
        loam_gc();
        for (uint64_t k = 0; k < 1000; k++) {
            item_new(k, NULL);
        }
    }
    atomic_store(&stage, 2);
    thread_join(t);
}

/* ---- destructors ---- */

static pthread_key_t ending[KEYS];
static _Atomic(size_t) ended;

/* The C library has already cleared the slot: from here on this frame holds the value. */
static void check_at_end(void *value)
{
    item *it = value;
    item_check(it);
    for (uint64_t i = 0; i < 20; i++) {
        item_check(item_new(i, NULL)); /* a destructor may allocate */
    }
    item_check(it);
    EXPECT_EQ(it->next->id, it->id + 1);
    item_check(it->next);
    atomic_fetch_add(&ended, 1);
}

static void *set_and_end(void *arg)
{
    struct team_member *me = arg;
    for (size_t k = 0; k < KEYS; k++) {
        item *it = item_new(rng_next(&me->rng) >> 1, NULL);
        LOAM_SET(it->next, item_new(it->id + 1, NULL));
        EXPECT_EQ(pthread_setspecific(ending[k], it), 0);
    }
    return NULL;
}

static void destructors_find_their_values(void)
{
    static struct team team;
    size_t rounds = test_scaled(25);
    atomic_store(&stop, false);
    atomic_store(&ended, 0);
    for (size_t k = 0; k < KEYS; k++) {
        EXPECT_EQ(pthread_key_create(&ending[k], check_at_end), 0);
    }
    pthread_t collector = thread_start(collect_until_stop, NULL);
    for (size_t i = 0; i < rounds; i++) {
        team_start(&team, 4, set_and_end, NULL);
        team_join(&team);
    }
    atomic_store(&stop, true);
    thread_join(collector);
    EXPECT_EQ(atomic_load(&ended), rounds * 4 * KEYS);
    for (size_t k = 0; k < KEYS; k++) {
        EXPECT_EQ(pthread_key_delete(ending[k]), 0);
    }
}

/* ---- signals ---- */

/* Of the rounds of destructors the one in which the library lets go of the thread: the last, or with the
 * sanitizer, which ends the thread in it, the one before. */
#ifndef PTHREAD_DESTRUCTOR_ITERATIONS
#define PTHREAD_DESTRUCTOR_ITERATIONS 4 /* POSIX asks for as many at least */
#endif
enum { LAST_ROUND = PTHREAD_DESTRUCTOR_ITERATIONS - (TEST_TSAN ? 1 : 0) };

static pthread_key_t behind_ours; /* made later: its destructor runs later in a round */
static __thread item *mine_in_handler;
static __thread int round_of_mine;
static _Atomic(int) rounds_seen, handled_in[LAST_ROUND + 1];

static void use_mine(int signo)
{
    (void)signo;
    item_check(mine_in_handler);
    item_check(mine_in_handler->next);
    mine_in_handler = item_new(1, item_new(2, NULL));
    atomic_fetch_add(&handled_in[round_of_mine], 1);
}

static void signal_in_each_round(void *value)
{
    if (++round_of_mine < LAST_ROUND) {
        EXPECT_EQ(pthread_setspecific(behind_ours, value), 0);
    }
    atomic_store(&rounds_seen, round_of_mine);
    WAIT_FOR(20, atomic_load(&stage) == round_of_mine);
    EXPECT_EQ(raise(SIGUSR1), 0);
}

static void *signal_and_end(void *arg)
{
    mine_in_handler = item_new(1, item_new(2, NULL));
    EXPECT_EQ(pthread_setspecific(behind_ours, arg), 0);
    return NULL;
}

/* While what a handler finds in the thread's locals may be collected, none runs. */
static void handlers_find_them_until_signals_are_blocked(void)
{
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = use_mine;
    EXPECT_EQ(sigaction(SIGUSR1, &sa, NULL), 0);
    EXPECT_EQ(pthread_key_create(&behind_ours, signal_in_each_round), 0);
    atomic_store(&stage, 0);
    pthread_t t = thread_start(signal_and_end, &stage);
    for (int round = 1; round <= LAST_ROUND; round++) {
        WAIT_FOR(20, atomic_load(&rounds_seen) == round);
        loam_gc();
        for (uint64_t k = 0; k < 1000; k++) {
            item_new(k, NULL);
        }
        atomic_store(&stage, round);
    }
    thread_join(t);
    for (int round = 1; round <= LAST_ROUND; round++) {
        EXPECT_EQ(atomic_load(&handled_in[round]), round < LAST_ROUND ? 1 : 0);
    }
    EXPECT_EQ(pthread_key_delete(behind_ours), 0);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    for (size_t k = 0; k < KEYS; k++) {
        EXPECT_EQ(pthread_key_create(&keys[k], NULL), 0);
    }
    RUN(used_while_cycles_run);
    RUN(held_until_cleared_or_ended);
    RUN(on_the_main_thread);
    RUN(held_by_a_thread_that_only_attached);
    RUN(destructors_find_their_values);
    RUN(handlers_find_them_until_signals_are_blocked);
    return test_end();
}
