/* Random programs over channels behave as the sequential model says. One goroutine alone: like queues, operation for
 * operation. Many: every element arrives exactly once, whole; of one sender, through one channel, at one receiver, in
 * the order in which it was sent; no channel ever holds more than it may.
 *
 * --seconds N, --programs N (at most so many)
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | --seconds 4 | 90
 * TEST_RUN: one_proc | GOMAXPROCS=1 | --seconds 3 | 90 | stress
 * TEST_RUN: four_procs | GOMAXPROCS=4 GOGC=5 | --seconds 4 | 90
 * TEST_RUN: gcstress | GODEBUG=gcstress=20,clobberfree=1 | --seconds 4 | 90 | stress
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 GOGC=5 | --seconds 4 | 90
 * TEST_RUN: stress | GOGC=5 | --seconds 30 | 180 | stress
 * TEST_RUN: stress_long | GOMAXPROCS=4 GODEBUG=clobberfree=1 GOGC=5 | --seconds 300 | 900 | long */
#include "../support/test.h"

#include <loam/sched.h>

#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

static _Atomic(uint64_t) programs_run, elements_sent;

static double seconds_given(void)
{
    return (double)test_number("seconds", 4);
}

/* ---- alone: an exact model ---- */

enum { MODELS = 6, MODEL_ROOM = 9 };

struct model { /* what a channel should be */
    uint64_t queue[MODEL_ROOM];
    size_t length, capacity;
    bool closed;
};

static loam_chan *modelled[MODELS];

static void model_make(struct rng *rng, struct model *m, size_t i)
{
    *m = (struct model){{0}, 0, rng_below(rng, MODEL_ROOM), false};
    LOAM_SET(modelled[i], loam_chan_make_bytes(8, m->capacity));
    EXPECT_NOT_NULL(modelled[i]);
}

static bool model_can(const struct model *m, enum loam_select_direction direction)
{
    return direction == LOAM_SEND ? m->length < m->capacity : m->length > 0 || m->closed;
}

static uint64_t model_take(struct model *m)
{
    uint64_t value = m->queue[0];
    m->length--;
    memmove(m->queue, m->queue + 1, m->length * sizeof m->queue[0]);
    return value;
}

static void model_step(struct rng *rng, struct model *m)
{
    enum { CASES = 5 };
    loam_select_case cases[CASES];
    size_t of[CASES];
    uint64_t value[CASES];
    size_t n = rng_below(rng, CASES + 1);
    bool any = false;
    for (size_t k = 0; k < n; k++) {
        of[k] = rng_below(rng, MODELS + 1);
        bool none = of[k] == MODELS;
        bool sends = rng_below(rng, 2) == 0 && (none || !m[of[k]].closed);
        value[k] = rng_next(rng);
        cases[k] = (loam_select_case){none ? NULL : modelled[of[k]], sends ? LOAM_SEND : LOAM_RECV,
                                      &value[k], false};
        any = any || (!none && model_can(&m[of[k]], cases[k].direction));
    }
    int i = loam_select(cases, n, any && rng_below(rng, 2) == 0);
    if (!any) {
        EXPECT_EQ(i, (uint64_t)-1);
        return;
    }
    EXPECT_MSG(i >= 0 && (size_t)i < n, "select of %zu gave %d", n, i);
    struct model *chosen = &m[of[i]];
    EXPECT(model_can(chosen, cases[i].direction));
    if (cases[i].direction == LOAM_SEND) {
        chosen->queue[chosen->length++] = value[i];
    } else {
        bool there = chosen->length > 0;
        EXPECT_EQ(cases[i].received, there);
        EXPECT_EQ(value[i], there ? model_take(chosen) : 0);
    }
}

static void model_plain_step(struct rng *rng, struct model *m, size_t i)
{
    uint64_t value = rng_next(rng);
    uint64_t got = 1;
    switch (rng_below(rng, 8)) {
    case 0:
        if (!m->closed && rng_below(rng, 4) == 0) {
            loam_chan_close(modelled[i]);
            m->closed = true;
        }
        break;
    case 1:
        if (m->closed && rng_below(rng, 4) == 0) {
            model_make(rng, m, i);
        }
        break;
    case 2:
    case 3:
    case 4:
        if (!m->closed && m->length < m->capacity) {
            loam_chan_send(modelled[i], &value);
            m->queue[m->length++] = value;
        }
        break;
    default:
        if (m->length > 0) {
            EXPECT(loam_chan_recv(modelled[i], &got));
            EXPECT_EQ(got, model_take(m));
        } else if (m->closed) {
            EXPECT(!loam_chan_recv(modelled[i], &got));
            EXPECT_EQ(got, 0);
        }
    }
    EXPECT_EQ(loam_chan_len(modelled[i]), m->length);
    EXPECT_EQ(loam_chan_cap(modelled[i]), m->capacity);
}

static void alone_like_queues(void)
{
    static struct model m[MODELS];
    struct rng rng = rng_stream(1);
    for (size_t i = 0; i < MODELS; i++) {
        model_make(&rng, &m[i], i);
    }
    for (size_t n = 0; n < go_scaled(200000); n++) {
        size_t i = rng_below(&rng, MODELS);
        if (rng_below(&rng, 2) == 0) {
            model_step(&rng, m);
        } else {
            model_plain_step(&rng, &m[i], i);
        }
    }
}

/* ---- many ----
 *
 * A program has channels, senders and receivers. Each channel has a receiver that takes from it until it is closed, so
 * every send comes to an end; who sends may also receive, in a select. The last sender closes all. */

typedef struct element {
    item *it;
    uint32_t sender, channel;
    uint64_t number; /* among those of the sender in the channel */
} element;
LOAM_TYPE(element, it);

enum { CHANNELS_MAX = 8, SENDERS_MAX = 40, QUOTA_MAX = 400 };

static struct program {
    size_t channels, senders, receivers;
    size_t quota; /* of each sender */
    size_t senders_left;
    loam_mutex mu; /* senders_left */
    uint64_t seed;
    uint64_t sent[SENDERS_MAX][CHANNELS_MAX]; /* written by the sender alone */
    _Atomic(uint8_t) seen[SENDERS_MAX][CHANNELS_MAX][QUOTA_MAX];
    _Atomic(uint64_t) dropped, received;
} program;

static loam_chan *channels[CHANNELS_MAX];

/* What one receiver has seen: the next number must be higher. */
struct view {
    uint64_t next[SENDERS_MAX][CHANNELS_MAX];
};

static uint64_t id_of(const element *e)
{
    return ((uint64_t)e->sender << 48) ^ ((uint64_t)e->channel << 40) ^ e->number;
}

static void take(struct view *v, const element *e, size_t channel)
{
    item *it = e->it;
    item_check(it);
    EXPECT_EQ(it->id, id_of(e));
    EXPECT_EQ(e->channel, channel);
    EXPECT_MSG(v->next[e->sender][channel] <= e->number,
               "number %" PRIu64 " of sender %u in channel %zu after %" PRIu64, e->number,
               e->sender, channel, v->next[e->sender][channel] - 1);
    v->next[e->sender][channel] = e->number + 1;
    EXPECT_EQ(atomic_fetch_add(&program.seen[e->sender][channel][e->number], 1), 0);
    atomic_fetch_add(&program.received, 1);
}

static element next_element(size_t sender, size_t channel)
{
    element e = {NULL, (uint32_t)sender, (uint32_t)channel, program.sent[sender][channel]};
    e.it = item_new(id_of(&e), NULL);
    return e;
}

static void look_at(struct rng *rng)
{
    loam_chan *c = channels[rng_below(rng, program.channels)];
    EXPECT_LE(loam_chan_len(c), loam_chan_cap(c));
}

/* One select with sends and receives; true: one of the sends was done. */
static bool select_some(struct rng *rng, size_t sender, struct view *v, bool block)
{
    enum { CASES = 6 };
    loam_select_case cases[CASES];
    element e[CASES];
    size_t of[CASES];
    size_t n = rng_between(rng, 1, CASES);
    for (size_t k = 0; k < n; k++) {
        of[k] = rng_below(rng, program.channels);
        bool sends = k == 0 || rng_below(rng, 3) == 0;
        if (sends) {
            e[k] = next_element(sender, of[k]);
        }
        cases[k] = (loam_select_case){channels[of[k]], sends ? LOAM_SEND : LOAM_RECV, &e[k], false};
    }
    for (size_t k = n; k > 1; k--) {
        size_t j = rng_below(rng, k);
        loam_select_case kept = cases[k - 1];
        cases[k - 1] = cases[j];
        cases[j] = kept;
    }
    int i = loam_select(cases, n, block);
    if (i < 0) {
        EXPECT(!block);
        return false;
    }
    const element *chosen = cases[i].elem;
    size_t channel = of[chosen - e];
    EXPECT_PTR_EQ(cases[i].chan, channels[channel]);
    if (cases[i].direction == LOAM_SEND) {
        program.sent[sender][channel]++;
        return true;
    }
    EXPECT(cases[i].received); /* none is closed: a sender is left */
    take(v, chosen, channel);
    return false;
}

static void send_program(void *arg)
{
    size_t me = (uintptr_t)arg;
    struct rng rng = {program.seed + me};
    struct view *v = calloc(1, sizeof *v);
    for (size_t done = 0; done < program.quota;) {
        size_t channel = rng_below(&rng, program.channels);
        element e;
        switch (rng_below(&rng, 8)) {
        case 0:
        case 1:
            e = next_element(me, channel);
            loam_chan_send(channels[channel], &e);
            program.sent[me][channel]++;
            done++;
            break;
        case 2:
            e = next_element(me, channel);
            if (chan_try_send(channels[channel], &e)) {
                program.sent[me][channel]++;
                done++;
            }
            break;
        case 3:
        case 4:
        case 5:
            done += select_some(&rng, me, v, true);
            break;
        case 6:
            done += select_some(&rng, me, v, false);
            break;
        default:
            look_at(&rng);
            if (rng_below(&rng, 8) == 0) {
                loam_sleep((int64_t)rng_below(&rng, 100000));
            } else {
                loam_yield();
            }
        }
    }
    atomic_fetch_add(&elements_sent, program.quota);
    loam_mutex_lock(&program.mu);
    bool last = --program.senders_left == 0;
    loam_mutex_unlock(&program.mu);
    for (size_t i = 0; last && i < program.channels; i++) {
        loam_chan_close(channels[i]);
    }
    free(v);
}

/* Its own channel until that is closed and empty; others' too, now and then. */
static void recv_program(void *arg)
{
    size_t mine = (uintptr_t)arg % program.channels;
    struct rng rng = {program.seed * 31 + (uintptr_t)arg};
    struct view *v = calloc(1, sizeof *v);
    element *in_heap = LOAM_NEW_ARRAY(element, 2);
    bool drops = program.seed % 4 == 0;
    for (bool open = true; open;) {
        element e;
        size_t other = rng_below(&rng, program.channels);
        switch (rng_below(&rng, 6)) {
        case 0:
            open = loam_chan_recv(channels[mine], &in_heap[0]);
            if (open) {
                take(v, &in_heap[0], mine);
            }
            break;
        case 1: {
            loam_select_case cases[] = {
                {channels[mine], LOAM_RECV, &e, false},
                {channels[other], LOAM_RECV, &in_heap[1], false},
                {NULL, LOAM_RECV, &e, false},
            };
            int i = loam_select(cases, 3, true);
            EXPECT(i == 0 || i == 1);
            if (cases[i].received) {
                take(v, cases[i].elem, i == 0 ? mine : other);
            }
            break;
        }
        case 2:
            if (drops) {
                open = loam_chan_recv(channels[mine], NULL);
                atomic_fetch_add(&program.dropped, open);
            }
            break;
        case 3:
            look_at(&rng);
            loam_yield();
            break;
        default:
            open = loam_chan_recv(channels[mine], &e);
            if (open) {
                take(v, &e, mine);
            } else {
                EXPECT_NULL(e.it);
                EXPECT_EQ(e.number, 0);
            }
        }
    }
    free(v);
}

static void run_program(struct rng *rng)
{
    static struct crew crew;
    memset(&program, 0, sizeof program);
    program.channels = rng_between(rng, 1, CHANNELS_MAX);
    program.senders = rng_between(rng, 1, rng_below(rng, 2) == 0 ? 4 : SENDERS_MAX);
    program.receivers = program.channels + rng_below(rng, 30);
    program.quota = rng_between(rng, 1, go_scaled(QUOTA_MAX));
    program.senders_left = program.senders;
    program.seed = rng_next(rng);
    bool threads = rng_below(rng, 4) == 0;
    for (size_t i = 0; i < program.channels; i++) {
        size_t capacity = rng_below(rng, 3) == 0 ? 0 : rng_below(rng, 20);
        LOAM_SET(channels[i], loam_chan_make(LOAM_TYPEOF(element), capacity));
        EXPECT_NOT_NULL(channels[i]);
    }
    size_t actors = program.senders + program.receivers;
    for (size_t i = 0; i < actors; i++) {
        enum where where = threads && rng_below(rng, 8) == 0 ? ON_THREAD : ON_GOROUTINE;
        bool sends = i < program.senders;
        crew_start(&crew, where, sends ? send_program : recv_program,
                   (void *)(sends ? i : i - program.senders));
    }
    crew_join(&crew);
    uint64_t missing = 0;
    for (size_t s = 0; s < program.senders; s++) {
        for (size_t c = 0; c < program.channels; c++) {
            for (size_t k = 0; k < QUOTA_MAX; k++) {
                bool seen = atomic_load(&program.seen[s][c][k]) != 0;
                EXPECT(!seen || k < program.sent[s][c]);
                missing += k < program.sent[s][c] && !seen;
            }
        }
    }
    EXPECT_EQ(missing, atomic_load(&program.dropped));
    EXPECT_EQ(atomic_load(&program.received) + missing, program.senders * program.quota);
    for (size_t i = 0; i < program.channels; i++) {
        EXPECT_EQ(loam_chan_len(channels[i]), 0);
    }
    atomic_fetch_add(&programs_run, 1);
}

static void many_like_the_model(void)
{
    struct rng rng = rng_stream(2);
    uint64_t start = now_ns();
    uint64_t most = test_number("programs", UINT64_MAX);
    while (seconds_since(start) < seconds_given() / 2 && most-- > 0) {
        run_program(&rng);
    }
    printf("  %" PRIu64 " programs, %" PRIu64 " elements\n", atomic_load(&programs_run),
           atomic_load(&elements_sent));
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    start_watching();
    RUN_BOTH(alone_like_queues);
    RUN_BOTH(many_like_the_model);
    go_all_ended();
    return test_end();
}
