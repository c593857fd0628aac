/* Channels hand over every element once, whole and in order, from whoever sends to whoever receives, goroutine or plain
 * thread; closed ones give what is left, then false and zeroes; elements with pointers are alive wherever they wait;
 * what a program must not do ends it with a message.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: one_proc | GOMAXPROCS=1 | | 90
 * TEST_RUN: four_procs | GOMAXPROCS=4 | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | | 90
 * TEST_RUN: stress | GODEBUG=gcstress=1,clobberfree=1 | | 90 | stress */
#include "../support/test.h"

#include <loam/sched.h>

#include "../support/child.h"
#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

static loam_chan *chan_bytes(size_t elem_size, size_t capacity)
{
    loam_chan *c = loam_chan_make_bytes(elem_size, capacity);
    EXPECT_MSG(c != NULL, "a channel of %zu times %zu: %s", capacity, elem_size, strerror(errno));
    EXPECT_EQ(loam_chan_len(c), 0);
    EXPECT_EQ(loam_chan_cap(c), capacity);
    return c;
}

/* Globals are searched: the channel of the running case. */
static loam_chan *chan, *answers;

static void chans_make(size_t elem_size, size_t capacity)
{
    LOAM_SET(chan, chan_bytes(elem_size, capacity));
    LOAM_SET(answers, chan_bytes(elem_size, capacity));
}

/* ---- making ---- */

typedef struct row {
    uint64_t count;
    void *items[];
} row;
LOAM_TYPE_FLEX(row, items);

typedef struct pixel {
    uint8_t r, g, b;
} pixel;
LOAM_TYPE_NOSCAN(pixel);

static void what_cannot_be(void)
{
    /* volatile: the compiler must not know */
    static volatile size_t huge[] = {SIZE_MAX, SIZE_MAX - 7, SIZE_MAX / 2 + 1, (size_t)1 << 62};
    for (size_t i = 0; i < COUNT_OF(huge); i++) {
        errno = 0;
        EXPECT_NULL(loam_chan_make_bytes(huge[i], 2));
        EXPECT(errno == EINVAL || errno == ENOMEM);
        errno = 0;
        EXPECT_NULL(loam_chan_make_bytes(8, huge[i]));
        EXPECT(errno == EINVAL || errno == ENOMEM);
        errno = 0;
        EXPECT_NULL(loam_chan_make(LOAM_TYPEOF(pixel), huge[i]));
        EXPECT(errno == EINVAL || errno == ENOMEM);
        errno = 0;
        EXPECT_NULL(loam_chan_make(LOAM_TYPEOF(item), SIZE_MAX / sizeof(item) + 1 + i));
        EXPECT(errno == EINVAL || errno == ENOMEM);
        /* Without bytes as many as one likes; or it is refused. */
        errno = 0;
        loam_chan *c = loam_chan_make_bytes(0, huge[i]);
        if (c != NULL) {
            EXPECT_EQ(loam_chan_cap(c), huge[i]);
            loam_chan_send(c, NULL);
            EXPECT_EQ(loam_chan_len(c), 1);
            EXPECT(loam_chan_recv(c, NULL));
        } else {
            EXPECT(errno == EINVAL || errno == ENOMEM);
        }
    }
    EXPECT_ERRNO(loam_chan_make(LOAM_TYPEOF(row), 0), NULL, EINVAL);
    EXPECT_ERRNO(loam_chan_make(LOAM_TYPEOF(row), 5), NULL, EINVAL);
}

static void lengths(void)
{
    uint32_t value = 7;
    EXPECT_EQ(loam_chan_len(NULL), 0);
    EXPECT_EQ(loam_chan_cap(NULL), 0);
    loam_chan *c = chan_bytes(4, 3);
    for (size_t i = 0; i < 3; i++) {
        EXPECT_EQ(loam_chan_len(c), i);
        loam_chan_send(c, &value);
    }
    EXPECT_EQ(loam_chan_len(c), 3);
    EXPECT_EQ(loam_chan_cap(c), 3);
    EXPECT(!chan_try_send(c, &value));
    EXPECT(loam_chan_recv(c, &value));
    EXPECT_EQ(loam_chan_len(c), 2);
    loam_chan_close(c);
    EXPECT_EQ(loam_chan_len(c), 2);
    EXPECT_EQ(loam_chan_cap(c), 3);
    EXPECT(loam_chan_recv(c, NULL));
    EXPECT(loam_chan_recv(c, NULL));
    EXPECT(!loam_chan_recv(c, NULL));
    EXPECT_EQ(loam_chan_len(c), 0);
}

/* ---- meeting ---- */

static _Atomic(size_t) passed;

static void send_and_tell(void *arg)
{
    loam_chan_send(chan, arg);
    atomic_fetch_add(&passed, 1);
}

static void recv_and_tell(void *arg)
{
    EXPECT(loam_chan_recv(chan, arg));
    atomic_fetch_add(&passed, 1);
}

static void unbuffered_waits_for_both(void)
{
    for (int where = ON_GOROUTINE; where <= ON_THREAD; where++) {
        static struct crew crew;
        static uint64_t value, got;
        chans_make(8, 0);
        atomic_store(&passed, 0);
        value = 42;
        crew_start(&crew, (enum where)where, send_and_tell, &value);
        loam_sleep(MILLISECONDS(20));
        EXPECT_EQ(atomic_load(&passed), 0);
        EXPECT_EQ(loam_chan_len(chan), 0);
        got = 0;
        EXPECT(loam_chan_recv(chan, &got));
        EXPECT_EQ(got, 42);
        crew_join(&crew);

        got = 0;
        crew_start(&crew, (enum where)where, recv_and_tell, &got);
        loam_sleep(MILLISECONDS(20));
        EXPECT_EQ(atomic_load(&passed), 1);
        value = 43;
        loam_chan_send(chan, &value);
        value = 0; /* it was copied */
        crew_join(&crew);
        EXPECT_EQ(got, 43);
        EXPECT_EQ(atomic_load(&passed), 2);
    }
}

static void buffered_waits_when_full(void)
{
    for (int where = ON_GOROUTINE; where <= ON_THREAD; where++) {
        static struct crew crew;
        static uint64_t value;
        uint64_t got = 0;
        chans_make(8, 2);
        atomic_store(&passed, 0);
        value = 9;
        for (int i = 0; i < 5; i++) {
            crew_start(&crew, (enum where)where, send_and_tell, &value);
        }
        PARK_UNTIL(20, atomic_load(&passed) == 2);
        loam_sleep(MILLISECONDS(10));
        EXPECT_EQ(atomic_load(&passed), 2);
        for (size_t i = 0; i < 5; i++) {
            EXPECT(loam_chan_recv(chan, &got));
            EXPECT_EQ(got, 9);
            PARK_UNTIL(20, atomic_load(&passed) == (i + 3 < 5 ? i + 3 : 5));
        }
        crew_join(&crew);
        EXPECT_EQ(loam_chan_len(chan), 0);
    }
}

/* Parked senders and receivers are served in the order in which they came. */
static void send_number(void *arg)
{
    uint64_t number = (uintptr_t)arg;
    atomic_fetch_add(&passed, 1);
    loam_chan_send(chan, &number);
}

static void first_come_first_served(void)
{
    enum { QUEUE = 8 };
    for (size_t capacity = 0; capacity < 3; capacity += 2) {
        static struct crew crew;
        chans_make(8, capacity);
        atomic_store(&passed, 0);
        for (uintptr_t i = 0; i < QUEUE; i++) {
            crew_start(&crew, i % 3 == 0 ? ON_THREAD : ON_GOROUTINE, send_number, (void *)i);
            PARK_UNTIL(20, atomic_load(&passed) == i + 1);
            loam_sleep(MILLISECONDS(TEST_SANITIZED || emulated() ? 60 : 25)); /* he is parked */
        }
        for (uint64_t i = 0; i < QUEUE; i++) {
            uint64_t got = 0;
            EXPECT(loam_chan_recv(chan, &got));
            EXPECT_EQ(got, i);
        }
        crew_join(&crew);
    }
}

/* ---- sizes ---- */

enum { BIGGEST = 70000 };

static uint8_t byte_of(size_t number, size_t at)
{
    return (uint8_t)rng_mix(number * 1000003 + at / 8);
}

static size_t size_of_elements;
enum { ELEMENTS = 12 };

static void send_elements(void *arg)
{
    uint8_t *elem = malloc(size_of_elements + 1);
    (void)arg;
    for (size_t n = 0; n < ELEMENTS; n++) {
        for (size_t i = 0; i < size_of_elements; i++) {
            elem[i] = byte_of(n, i);
        }
        loam_chan_send(chan, size_of_elements > 0 || n % 2 == 0 ? elem : NULL);
        memset(elem, 0xEE, size_of_elements);
        if (n % 3 == 0) {
            loam_sleep(MICROSECONDS(200));
        }
    }
    loam_chan_close(chan);
    free(elem);
}

/* Nothing beside the element is written. */
static void recv_elements(uint8_t *buffer)
{
    size_t n = 0;
    for (;; n++) {
        memset(buffer, 0xA5, size_of_elements + 32);
        uint8_t *elem = buffer + 16;
        if (n % 5 == 4 && loam_chan_recv(chan, NULL)) { /* dropped */
            continue;
        }
        bool received = loam_chan_recv(chan, elem);
        for (size_t i = 0; i < 16; i++) {
            EXPECT_EQ(buffer[i], 0xA5);
            EXPECT_EQ(elem[size_of_elements + i], 0xA5);
        }
        for (size_t i = 0; i < size_of_elements; i++) {
            EXPECT_EQ(elem[i], received ? byte_of(n, i) : 0);
        }
        if (!received) {
            break;
        }
        if (n % 4 == 0) {
            loam_sleep(MICROSECONDS(200));
        }
    }
    EXPECT_EQ(n, ELEMENTS);
}

static void element_sizes(void)
{
    static const size_t sizes[] = {0, 1, 2, 3, 7, 8, 13, 16, 24, 100, 4096, 65536, 69999};
    static const size_t capacities[] = {0, 1, 5, 100};
    static struct crew crew;
    uint8_t *plain = malloc(BIGGEST + 64);
    uint8_t *in_heap = loam_alloc_noscan(BIGGEST + 64);
    for (size_t s = 0; s < COUNT_OF(sizes); s++) {
        for (size_t c = 0; c < COUNT_OF(capacities); c++) {
            size_of_elements = sizes[s];
            chans_make(sizes[s], capacities[c]);
            crew_start(&crew, (s + c) % 2 == 0 ? ON_GOROUTINE : ON_THREAD, send_elements, NULL);
            recv_elements(c % 2 == 0 ? plain : in_heap);
            crew_join(&crew);
        }
    }
    free(plain);
}

/* ---- closing ---- */

static _Atomic(size_t) ended;

static void recv_the_end(void *arg)
{
    uint64_t value[3] = {1, 2, 3};
    (void)arg;
    EXPECT(!loam_chan_recv(chan, &value[1]));
    EXPECT_EQ(value[0], 1);
    EXPECT_EQ(value[1], 0);
    EXPECT_EQ(value[2], 3);
    EXPECT(!loam_chan_recv(chan, NULL));
    atomic_fetch_add(&ended, 1);
}

static void close_wakes_all(void)
{
    for (size_t capacity = 0; capacity < 4; capacity += 3) {
        static struct crew crew;
        chans_make(8, capacity);
        atomic_store(&ended, 0);
        for (size_t i = 0; i < 40; i++) {
            crew_start(&crew, i % 4 == 0 ? ON_THREAD : ON_GOROUTINE, recv_the_end, NULL);
        }
        loam_sleep(MILLISECONDS(5));
        EXPECT_EQ(atomic_load(&ended), 0);
        loam_chan_close(chan);
        crew_join(&crew);
        EXPECT_EQ(atomic_load(&ended), 40);
    }
}

static void closed_gives_what_is_left(void)
{
    uint64_t value;
    loam_chan *c = chan_bytes(8, 10);
    for (value = 1; value <= 10; value++) {
        loam_chan_send(c, &value);
    }
    loam_chan_close(c);
    for (uint64_t i = 1; i <= 10; i++) {
        EXPECT(loam_chan_recv(c, &value));
        EXPECT_EQ(value, i);
    }
    for (int i = 0; i < 5; i++) {
        value = 99;
        EXPECT(!loam_chan_recv(c, &value));
        EXPECT_EQ(value, 0);
    }
}

/* ---- order ---- */

static size_t to_send;

static void send_counting(void *arg)
{
    loam_chan *c = arg;
    for (uint64_t i = 0; i < to_send; i++) {
        loam_chan_send(c, &i);
    }
    loam_chan_close(c);
}

static void in_order(void)
{
    static const size_t capacities[] = {0, 1, 2, 7, 128};
    for (int where = ON_GOROUTINE; where <= ON_THREAD; where++) {
        to_send = go_scaled(where == ON_GOROUTINE ? 50000 : 10000);
        for (size_t c = 0; c < COUNT_OF(capacities); c++) {
            static struct crew crew;
            uint64_t got = 0;
            uint64_t expected = 0;
            chans_make(8, capacities[c]);
            crew_start(&crew, (enum where)where, send_counting, chan);
            while (loam_chan_recv(chan, &got)) {
                EXPECT_EQ(got, expected);
                expected++;
            }
            EXPECT_EQ(expected, to_send);
            crew_join(&crew);
        }
    }
}

/* A ring of goroutines hands one token around: each hop is one park and one wake. */
static void hop(void *arg)
{
    loam_chan **pair = arg;
    loam_chan *from = pair[0];
    loam_chan *to = pair[1];
    uint64_t token;
    while (loam_chan_recv(from, &token)) {
        token++;
        loam_chan_send(to, &token);
    }
    loam_chan_close(to);
}

static void around_a_ring(void)
{
    size_t members = go_most(test_scaled(1000));
    loam_chan **ring = LOAM_NEW_POINTERS(loam_chan, members + 1);
    EXPECT_NOT_NULL(ring);
    for (size_t i = 0; i <= members; i++) {
        LOAM_SET(ring[i], chan_bytes(8, i % 3 == 0));
    }
    for (size_t i = 0; i < members; i++) {
        go(hop, &ring[i]);
    }
    uint64_t token = 0;
    for (size_t round = 0; round < go_scaled(20); round++) {
        uint64_t before = token;
        loam_chan_send(ring[0], &token);
        EXPECT(loam_chan_recv(ring[members], &token));
        EXPECT_EQ(token, before + members);
    }
    loam_chan_close(ring[0]);
    EXPECT(!loam_chan_recv(ring[members], &token));
}

/* ---- many to many ----
 *
 * Each element names its sender and its number there. Every receiver sees the numbers of one sender rise; all together
 * see each exactly once. */

enum { SENDERS_MAX = 64 };

typedef struct parcel {
    uint32_t sender, number;
    uint64_t check;
} parcel;
LOAM_TYPE_NOSCAN(parcel);

static _Atomic(uint8_t) *seen;
static size_t per_sender;
static _Atomic(size_t) senders_left;

static void send_parcels(void *arg)
{
    parcel p = {(uint32_t)(uintptr_t)arg, 0, 0};
    for (; p.number < per_sender; p.number++) {
        p.check = rng_mix(((uint64_t)p.sender << 32) + p.number);
        loam_chan_send(chan, &p);
    }
    if (atomic_fetch_sub(&senders_left, 1) == 1) {
        loam_chan_close(chan);
    }
}

static void recv_parcels(void *arg)
{
    int64_t last[SENDERS_MAX];
    size_t count = 0;
    parcel p;
    memset(last, 0xFF, sizeof last);
    while (loam_chan_recv(chan, &p)) {
        EXPECT_EQ(p.check, rng_mix(((uint64_t)p.sender << 32) + p.number));
        EXPECT_MSG(last[p.sender] < (int64_t)p.number, "%u of sender %u after %" PRId64, p.number,
                   p.sender, last[p.sender]);
        last[p.sender] = p.number;
        EXPECT_EQ(atomic_exchange(&seen[p.sender * per_sender + p.number], 1), 0);
        count++;
    }
    EXPECT_EQ(p.check, 0);
    atomic_fetch_add((_Atomic(size_t) *)arg, count);
}

static void many_to_many(void)
{
    static const struct {
        size_t senders, receivers, capacity;
        enum where sends, receives;
    } kinds[] = {
        {8, 8, 0, ON_GOROUTINE, ON_GOROUTINE},  {60, 3, 5, ON_GOROUTINE, ON_GOROUTINE},
        {3, 60, 1, ON_GOROUTINE, ON_GOROUTINE}, {4, 4, 0, ON_THREAD, ON_GOROUTINE},
        {4, 4, 3, ON_GOROUTINE, ON_THREAD},     {4, 4, 0, ON_THREAD, ON_THREAD},
        {3, 3, 16, ON_THREAD, ON_THREAD},       {50, 50, 100, ON_GOROUTINE, ON_GOROUTINE},
        {1, 40, 0, ON_THREAD, ON_GOROUTINE},    {40, 1, 0, ON_GOROUTINE, ON_THREAD},
    };
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        static struct crew crew;
        static _Atomic(size_t) received;
        bool threads = kinds[k].sends == ON_THREAD || kinds[k].receives == ON_THREAD;
        size_t total = go_scaled(threads ? 8000 : 30000);
        per_sender = total / kinds[k].senders + 1;
        seen = calloc(kinds[k].senders * per_sender, 1);
        atomic_store(&received, 0);
        atomic_store(&senders_left, kinds[k].senders);
        LOAM_SET(chan, loam_chan_make(LOAM_TYPEOF(parcel), kinds[k].capacity));
        EXPECT_NOT_NULL(chan);
        for (size_t i = 0; i < kinds[k].receivers; i++) {
            crew_start(&crew, kinds[k].receives, recv_parcels, (void *)&received);
        }
        for (size_t i = 0; i < kinds[k].senders; i++) {
            crew_start(&crew, kinds[k].sends, send_parcels, (void *)i);
        }
        crew_join(&crew);
        EXPECT_EQ(atomic_load(&received), kinds[k].senders * per_sender);
        free((void *)seen);
    }
}

/* ---- pointers ---- */

typedef struct pair {
    item *first;
    uint64_t number;
    item *second;
} pair;
LOAM_TYPE(pair, first, second);

typedef struct hidden { /* its scan function finds what no field names */
    uint64_t number;
    uintptr_t tagged; /* an item's address, and one */
} hidden;

SCANS static void hidden_scan(const void *obj, size_t bytes, loam_marker *m)
{
    const hidden *h = obj;
    for (size_t i = 0; i < bytes / sizeof *h; i++) {
        loam_mark(m, (const void *)h[i].tagged);
    }
}
LOAM_TYPE_SCANNED(hidden, hidden_scan);

static NOINLINE pair pair_new(uint64_t number, struct watch *w)
{
    pair p = {item_new(2 * number, NULL), number, item_new(2 * number + 1, NULL)};
    if (w != NULL) {
        watch_set(w, number, p.second);
    }
    return p;
}

static NOINLINE void pair_check(const pair *p, uint64_t number)
{
    item *first = LOAD_SLOT(((pair *)(uintptr_t)p)->first);
    item *second = LOAD_SLOT(((pair *)(uintptr_t)p)->second);
    EXPECT_EQ(p->number, number);
    item_check(first);
    item_check(second);
    EXPECT_EQ(first->id, 2 * number);
    EXPECT_EQ(second->id, 2 * number + 1);
}

enum { PAIRS = 500 };

static void fill_chan(void *arg)
{
    for (uint64_t i = 0; i < PAIRS; i++) {
        pair p = pair_new(i, arg);
        loam_chan_send(chan, &p);
    }
}

static NOINLINE void drain_chan(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        pair p;
        EXPECT(loam_chan_recv(chan, &p));
        pair_check(&p, i);
    }
}

static void drain_all(void *arg)
{
    (void)arg;
    drain_chan(PAIRS);
}

/* Alive while they are in the buffer and nowhere else; afterwards not because of it. */
static void alive_in_the_buffer(void)
{
    struct watch w;
    watch_init(&w, PAIRS);
    LOAM_SET(chan, loam_chan_make(LOAM_TYPEOF(pair), PAIRS));
    EXPECT_NOT_NULL(chan);
    call_deep(fill_chan, &w);
    EXPECT_ALL_LIVE(&w);
    list_new(test_scaled(3000));
    EXPECT_ALL_LIVE(&w);
    call_deep(drain_all, NULL);
    EXPECT_EQ(loam_chan_len(chan), 0);
    EXPECT_MOST_DIE(&w);
    loam_keep_alive(chan);
}

/* A channel that nobody has goes with all that is in it. */
static void dies_with_its_buffer(void)
{
    struct watch w;
    watch_init(&w, PAIRS);
    LOAM_SET(chan, loam_chan_make(LOAM_TYPEOF(pair), PAIRS));
    call_deep(fill_chan, &w);
    EXPECT_ALL_LIVE(&w);
    LOAM_SET(chan, NULL);
    EXPECT_MOST_DIE(&w);
}

static void drop_all(void *arg)
{
    (void)arg;
    for (uint64_t i = 0; i < PAIRS; i++) {
        EXPECT(loam_chan_recv(chan, NULL));
    }
}

static void dropped_ones_die(void)
{
    struct watch w;
    watch_init(&w, PAIRS);
    LOAM_SET(chan, loam_chan_make(LOAM_TYPEOF(pair), PAIRS));
    call_deep(fill_chan, &w);
    call_deep(drop_all, NULL);
    EXPECT_MOST_DIE(&w);
    loam_keep_alive(chan);
}

static void scanned_elements(void)
{
    LOAM_SET(chan, loam_chan_make(LOAM_TYPEOF(hidden), 100));
    EXPECT_NOT_NULL(chan);
    for (uint64_t round = 0; round < 5; round++) { /* around the end of the ring, too */
        for (uint64_t i = 0; i < 70; i++) {
            hidden h = {i, (uintptr_t)item_new(i, NULL) + 1};
            loam_chan_send(chan, &h);
        }
        scrub_stack();
        loam_gc();
        list_new(test_scaled(2000));
        for (uint64_t i = 0; i < 70; i++) {
            hidden h;
            EXPECT(loam_chan_recv(chan, &h));
            EXPECT_EQ(h.number, i);
            item_check((const item *)(h.tagged - 1)); /* NOLINT: so it is tagged */
        }
    }
}

/* In a parked sender's local, and nowhere else. */
static void send_new_pair(void *arg)
{
    pair p = pair_new((uintptr_t)arg, NULL);
    scrub_registers();
    loam_chan_send(chan, &p);
}

static void alive_with_a_parked_sender(void)
{
    static struct crew crew;
    LOAM_SET(chan, loam_chan_make(LOAM_TYPEOF(pair), 0));
    for (uintptr_t i = 0; i < 100; i++) {
        crew_start(&crew, i % 10 == 0 ? ON_THREAD : ON_GOROUTINE, send_new_pair, (void *)i);
    }
    loam_sleep(MILLISECONDS(10));
    for (int i = 0; i < 3; i++) {
        loam_gc();
        list_new(test_scaled(3000));
    }
    for (int i = 0; i < 100; i++) {
        pair p;
        EXPECT(loam_chan_recv(chan, &p));
        EXPECT_LT(p.number, 100);
        pair_check(&p, p.number);
    }
    crew_join(&crew);
}

/* Straight from the sender's local into a parked receiver's, on another stack; and straight into heap objects. */
static void *collect_until_stop(void *arg)
{
    while (!atomic_load((_Atomic(bool) *)arg)) {
        loam_gc();
    }
    return NULL;
}

static uint64_t pairs_to_send;

static void send_new_pairs(void *arg)
{
    (void)arg;
    for (uint64_t i = 0; i < pairs_to_send; i++) {
        pair p = pair_new(i, NULL);
        loam_chan_send(chan, &p);
    }
    loam_chan_close(chan);
}

static void recv_into_locals(void *arg)
{
    pair p;
    (void)arg;
    for (uint64_t i = 0; loam_chan_recv(chan, &p); i++) {
        pair_check(&p, i);
        if (i % 16 == 0) {
            loam_yield();
        }
        pair_check(&p, i);
    }
    EXPECT_NULL(p.first);
}

static void recv_into_heap(void *arg)
{
    pair *ring = LOAM_NEW_ARRAY(pair, 64);
    uint64_t i = 0;
    (void)arg;
    EXPECT_NOT_NULL(ring);
    for (; loam_chan_recv(chan, &ring[i % 64]); i++) {
        if (i >= 40) {
            pair_check(&ring[(i - 40) % 64], i - 40);
        }
    }
    EXPECT_NULL(ring[i % 64].first);
    for (uint64_t k = i > 63 ? i - 63 : 0; k < i; k++) {
        pair_check(&ring[k % 64], k);
    }
}

static pair in_static[64];

static void recv_into_statics(void *arg)
{
    uint64_t i = 0;
    (void)arg;
    for (; loam_chan_recv(chan, &in_static[i % 64]); i++) {
        if (i >= 40) {
            pair_check(&in_static[(i - 40) % 64], i - 40);
        }
    }
}

/* Into a local of another goroutine's: the barrier runs in the receiver. */
static void handed_over_while_cycles_run(void)
{
    static void (*const receivers[])(void *) = {recv_into_locals, recv_into_heap,
                                                recv_into_statics};
    static _Atomic(bool) stop;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, (void *)&stop);
    pairs_to_send = go_scaled(4000);
    for (size_t capacity = 0; capacity < 9; capacity += 4) {
        for (size_t r = 0; r < COUNT_OF(receivers); r++) {
            for (int where = ON_GOROUTINE; where <= ON_THREAD; where++) {
                static struct crew crew;
                LOAM_SET(chan, loam_chan_make(LOAM_TYPEOF(pair), capacity));
                EXPECT_NOT_NULL(chan);
                crew_start(&crew, (enum where)where, receivers[r], NULL);
                crew_start(&crew, r % 2 == 0 ? ON_GOROUTINE : (enum where)where, send_new_pairs,
                           NULL);
                crew_join(&crew);
            }
        }
    }
    atomic_store(&stop, true);
    thread_join(collector);
}

/* The only pointer to a channel is on the stack of one who is parked in it. */
static loam_weak *weak_chan;
static _Atomic(bool) let_go;

static void hold_the_channel(void *arg)
{
    loam_chan *c = loam_chan_make(LOAM_TYPEOF(pair), 4);
    (void)arg;
    LOAM_SET(weak_chan, loam_weak_make(c));
    pair p;
    EXPECT(loam_chan_recv(c, &p));
    pair_check(&p, 77);
    atomic_store(&let_go, true);
}

static void alive_with_a_parked_receiver(void)
{
    for (int where = ON_GOROUTINE; where <= ON_THREAD; where++) {
        static struct crew crew;
        LOAM_SET(weak_chan, NULL);
        crew_start(&crew, (enum where)where, hold_the_channel, NULL);
        PARK_UNTIL(20, __atomic_load_n(&weak_chan, __ATOMIC_SEQ_CST) != NULL);
        loam_sleep(MILLISECONDS(20));
        for (int i = 0; i < 3; i++) {
            scrub_stack();
            loam_gc();
            list_new(test_scaled(1000));
        }
        loam_chan *c = loam_weak_value(weak_chan);
        EXPECT_NOT_NULL(c);
        pair p = pair_new(77, NULL);
        loam_chan_send(c, &p);
        crew_join(&crew);
        EXPECT(atomic_load(&let_go));
    }
}

/* Channels of channels, as in Go. */
typedef struct request {
    loam_chan *answer;
    uint64_t question;
} request;
LOAM_TYPE(request, answer);

static void serve(void *arg)
{
    request r;
    (void)arg;
    while (loam_chan_recv(chan, &r)) {
        uint64_t answer = rng_mix(r.question);
        loam_chan_send(r.answer, &answer);
    }
}

static void ask(void *arg)
{
    for (size_t i = 0; i < go_scaled(500); i++) {
        request r = {chan_bytes(8, i % 2), (uintptr_t)arg * 1000 + i};
        uint64_t answer = 0;
        loam_chan_send(chan, &r);
        EXPECT(loam_chan_recv(r.answer, &answer));
        EXPECT_EQ(answer, rng_mix(r.question));
    }
}

static void channels_of_channels(void)
{
    static struct crew clients;
    static struct crew servers;
    LOAM_SET(chan, loam_chan_make(LOAM_TYPEOF(request), 2));
    for (size_t i = 0; i < 4; i++) {
        crew_start(&servers, i == 3 ? ON_THREAD : ON_GOROUTINE, serve, NULL);
    }
    for (uintptr_t i = 0; i < 20; i++) {
        crew_start(&clients, i % 10 == 0 ? ON_THREAD : ON_GOROUTINE, ask, (void *)i);
    }
    crew_join(&clients);
    loam_chan_close(chan);
    crew_join(&servers);
}

/* ---- what ends the program ---- */

static void child_close_twice(void)
{
    loam_chan *c = chan_bytes(8, 1);
    loam_chan_close(c);
    loam_chan_close(c);
}

static void child_close_null(void)
{
    static loam_chan *volatile none;
    loam_chan_close(none);
}

static void child_send_closed(void)
{
    uint64_t value = 1;
    loam_chan *c = chan_bytes(8, 1);
    loam_chan_close(c);
    loam_chan_send(c, &value);
}

static void child_close_under_sender(void)
{
    static uint64_t value;
    chans_make(8, 0);
    go(send_and_tell, &value);
    loam_sleep(MILLISECONDS(20));
    loam_chan_close(chan);
    loam_sleep(MILLISECONDS(2000));
}

static void child_close_under_sending_thread(void)
{
    static uint64_t value;
    static struct crew crew;
    chans_make(8, 0);
    crew_start(&crew, ON_THREAD, send_and_tell, &value);
    loam_sleep(MILLISECONDS(20));
    loam_chan_close(chan);
    crew_join(&crew);
}

static void run_close_twice(void *arg)
{
    (void)arg;
    child_close_twice();
}

static void child_close_twice_go(void)
{
    go_run(run_close_twice, NULL);
}

static const struct child_case children[] = {
    {"close_twice", child_close_twice},
    {"close_twice_go", child_close_twice_go},
    {"close_null", child_close_null},
    {"send_closed", child_send_closed},
    {"close_under_sender", child_close_under_sender},
    {"close_under_sending_thread", child_close_under_sending_thread},
};

static void what_ends_the_program(void)
{
    static const char *const says[] = {"clos", "clos", "NULL", "clos", "clos", "clos"};
    struct child c;
    for (size_t i = 0; i < COUNT_OF(children); i++) {
        child_run(&c, children[i].name, NULL, 30);
        EXPECT_CHILD_ABORTED(&c);
        EXPECT_CONTAINS(c.text, "loam: ");
        EXPECT_MSG(strstr(c.text, says[i]) != NULL || strstr(c.text, "nil") != NULL,
                   "%s: it said: %s", children[i].name, c.text);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    start_watching();
    RUN_BOTH(what_cannot_be);
    RUN_BOTH(lengths);
    RUN_BOTH(unbuffered_waits_for_both);
    RUN_BOTH(buffered_waits_when_full);
    RUN_BOTH(first_come_first_served);
    RUN_BOTH(element_sizes);
    RUN_BOTH(close_wakes_all);
    RUN_BOTH(closed_gives_what_is_left);
    RUN_BOTH(in_order);
    RUN_BOTH(around_a_ring);
    RUN_BOTH(many_to_many);
    RUN_BOTH(alive_in_the_buffer);
    RUN_BOTH(dies_with_its_buffer);
    RUN_BOTH(dropped_ones_die);
    RUN_BOTH(scanned_elements);
    RUN_BOTH(alive_with_a_parked_sender);
    RUN_BOTH(handed_over_while_cycles_run);
    RUN_BOTH(alive_with_a_parked_receiver);
    RUN_BOTH(channels_of_channels);
    RUN(what_ends_the_program);
    go_all_ended();
    return test_end();
}
