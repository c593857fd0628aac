/* store.c - keys and values: sharded hash tables, expiry, eviction.
 *
 *     shards[] -> segments[] -> segment -> entry -> next entry of its bucket
 *                                                -> value
 *
 * A shard has a mutex: a goroutine that waits for it parks, and its thread runs others. The tables
 * grow by linear hashing (Litwin 1980): an entry too many splits one bucket, an entry too few joins
 * two, so no command has to wait while millions of entries move. What is removed is only unlinked.
 * A client that still sends the value has it in a local variable, and the collector finds out when
 * nobody does any more.
 *
 * A pointer is stored with LOAM_SET, into the globals below as into entries; numbers as always.
 */
#include "kv.h"

#include <string.h>

enum {
    SEGMENT = 64,      /* buckets that are allocated at a time */
    JOIN_STEP = 8,     /* buckets that one removal joins at most */
    EXPIRE_STEP = 16,  /* buckets that are looked through at a time */
    EVICT_SAMPLE = 8,  /* entries, of which the one unused for longest goes */
    EVICT_BUCKETS = 64 /* looked into for these at most */
};

typedef struct segment {
    entry *bucket[SEGMENT];
} segment;
LOAM_TYPE(segment, bucket);

/* Globals are roots: nothing has to be registered. */
static struct shard {
    loam_mutex lock;
    segment **segments;
    size_t room;    /* for segments */
    size_t buckets; /* from these on none is in use */
    size_t swept;   /* where expiry goes on */
    struct store_counts counts;
} shards[SHARDS] __attribute__((aligned(64)));

/* ---- buckets ---- */

/* One less than the power of two that all bucket numbers are below. */
static uint64_t shard_mask(const struct shard *s)
{
    return s->buckets < 2 ? 0 : UINT64_MAX >> __builtin_clzll(s->buckets - 1);
}

/* Where what belongs to i in a larger table is now: bucket i, or the one it has not yet been split
 * from. */
static size_t shard_index(const struct shard *s, uint64_t i)
{
    uint64_t mask = shard_mask(s);
    return (i & mask) < s->buckets ? i & mask : i & mask >> 1;
}

static entry **shard_bucket(const struct shard *s, size_t i)
{
    return &s->segments[i / SEGMENT]->bucket[i % SEGMENT];
}

static bool shard_add_segment(struct shard *s)
{
    size_t n = s->buckets / SEGMENT;
    if (n == s->room) {
        size_t room = n == 0 ? 1 : 2 * n;
        segment **segments = LOAM_NEW_POINTERS(segment, room);
        if (segments == NULL)
            return false;
        if (n > 0)
            loam_copy(segments, s->segments, n * sizeof *segments);
        LOAM_SET(s->segments, segments);
        s->room = room;
    }
    return LOAM_SET(s->segments[n], LOAM_NEW(segment)) != NULL;
}

/* One bucket more: it takes its part of another one's entries. */
static void shard_split(struct shard *s)
{
    if (s->buckets % SEGMENT == 0 && !shard_add_segment(s))
        return; /* no memory: the chains become longer */
    size_t fresh = s->buckets++;
    entry **link = shard_bucket(s, fresh & shard_mask(s) >> 1), **end = shard_bucket(s, fresh);
    for (entry *e; fresh > 0 && (e = *link) != NULL;) {
        if (shard_index(s, e->hash) != fresh) {
            link = &e->next;
            continue;
        }
        LOAM_SET(*link, e->next);
        LOAM_SET(e->next, NULL);
        LOAM_SET(*end, e);
        end = &e->next;
    }
}

/* One less: its entries go to the end of the bucket that it was split from. */
static void shard_join(struct shard *s)
{
    size_t last = s->buckets - 1;
    entry **from = shard_bucket(s, last), **link = shard_bucket(s, last & shard_mask(s) >> 1);
    while (*link != NULL)
        link = &(*link)->next;
    LOAM_SET(*link, *from);
    LOAM_SET(*from, NULL);
    s->buckets = last;
    if (last % SEGMENT == 0)
        LOAM_SET(s->segments[last / SEGMENT], NULL);
}

/* ---- entries ---- */

static size_t entry_bytes(const entry *e)
{
    return sizeof *e + e->length + sizeof *e->value + e->value->length;
}

bool entry_is_over(const entry *e, int64_t now)
{
    return e->expires != 0 && e->expires <= now;
}

static void shard_remove(struct shard *s, entry **link)
{
    s->counts.entries--;
    s->counts.expiring -= (*link)->expires != 0;
    s->counts.bytes -= entry_bytes(*link);
    LOAM_SET(*link, (*link)->next);
}

static void shard_shrink(struct shard *s)
{
    for (int n = 0; n < JOIN_STEP && s->buckets > 1 && s->counts.entries < s->buckets / 4; n++)
        shard_join(s);
}

struct place place_open(struct slice key, int64_t now)
{
    uint64_t hash = hash_of(key);
    struct shard *s = &shards[hash % SHARDS];
    hash /= SHARDS;
    struct place p = {.shard = s, .key = key, .hash = hash, .now = now};
    loam_mutex_lock(&s->lock);
    if (s->buckets == 0)
        return p;
    for (entry **link = shard_bucket(s, shard_index(s, hash)), *e; (e = *link) != NULL;
         link = &e->next)
        if (e->hash == hash && e->length == key.length && memcmp(e->key, key.at, key.length) == 0) {
            p.link = link;
            e->used = (uint32_t)now;
            if (entry_is_over(e, now)) {
                s->counts.expired++;
                place_remove(&p);
            }
            break;
        }
    return p;
}

void place_close(struct place *p)
{
    loam_mutex_unlock(&p->shard->lock);
}

void place_remove(struct place *p)
{
    shard_remove(p->shard, p->link);
    p->link = NULL;
    shard_shrink(p->shard);
}

void place_expire(struct place *p, int64_t expires)
{
    entry *e = *p->link;
    p->shard->counts.expiring += (size_t)(expires != 0) - (size_t)(e->expires != 0);
    e->expires = expires;
}

/* A new entry is whole before others can find it. */
static bool place_insert(struct place *p, value *v)
{
    struct shard *s = p->shard;
    if (s->counts.entries >= s->buckets)
        shard_split(s);
    entry *e = s->buckets == 0 ? NULL : LOAM_NEW_FLEX(entry, p->key.length);
    if (e == NULL)
        return false;
    e->hash = p->hash;
    e->used = (uint32_t)p->now;
    e->length = (uint32_t)p->key.length;
    memcpy(e->key, p->key.at, p->key.length);
    LOAM_SET(e->value, v);
    p->link = shard_bucket(s, shard_index(s, p->hash));
    LOAM_SET(e->next, *p->link);
    LOAM_SET(*p->link, e);
    s->counts.entries++;
    p->grown = (int64_t)entry_bytes(e);
    return true;
}

bool place_put(struct place *p, value *v, int64_t expires)
{
    entry *e = place_entry(p);
    if (v == NULL || (e == NULL && !place_insert(p, v)))
        return false;
    if (e != NULL) {
        p->grown = (int64_t)v->length - (int64_t)e->value->length;
        LOAM_SET(e->value, v);
    }
    p->shard->counts.bytes += (uint64_t)p->grown;
    place_expire(p, expires);
    return true;
}

value *value_make(struct slice bytes)
{
    value *v = loam_alloc_noscan(sizeof *v + bytes.length);
    if (v != NULL) {
        v->length = bytes.length;
        memcpy(v->bytes, bytes.at, bytes.length);
    }
    return v;
}

value *store_get(struct slice key, int64_t now)
{
    struct place p = place_open(key, now);
    value *v = p.link == NULL ? NULL : (*p.link)->value;
    p.shard->counts.hits += v != NULL;
    p.shard->counts.misses += v == NULL;
    place_close(&p);
    return v;
}

/* ---- all of them ---- */

/* However much there is: it is only let go of. */
void store_clear(void)
{
    for (struct shard *s = shards; s < shards + SHARDS; s++) {
        loam_mutex_lock(&s->lock);
        LOAM_SET(s->segments, NULL);
        s->room = s->buckets = 0;
        s->counts.entries = s->counts.expiring = s->counts.bytes = 0;
        loam_mutex_unlock(&s->lock);
    }
}

struct store_counts store_count(void)
{
    struct store_counts all = {0};
    for (struct shard *s = shards; s < shards + SHARDS; s++) {
        loam_mutex_lock(&s->lock);
        struct store_counts c = s->counts;
        loam_mutex_unlock(&s->lock);
        all.entries += c.entries;
        all.expiring += c.expiring;
        all.bytes += c.bytes;
        all.hits += c.hits;
        all.misses += c.misses;
        all.expired += c.expired;
        all.evicted += c.evicted;
    }
    return all;
}

/* The next bucket, counted from the top bit down. Those that one is split into agree with it in the
 * low bits: in this order they are neighbours, so a cursor stays right however the table grows and
 * shrinks. */
static uint64_t bucket_after(uint64_t i, uint64_t mask)
{
    uint64_t bit = (mask >> 1) + 1;
    for (; bit > 0 && (i & bit) != 0; bit >>= 1)
        i -= bit;
    return mask == 0 ? 0 : i | bit;
}

/* A cursor is a bucket, and in its low byte the shard. */
uint64_t store_scan(uint64_t cursor, void (*visit)(const entry *e, void *arg), void *arg)
{
    size_t number = cursor % SHARDS;
    struct shard *s = &shards[number];
    uint64_t i = 0;
    loam_mutex_lock(&s->lock);
    if (s->counts.entries > 0) {
        i = shard_index(s, cursor / SHARDS);
        for (const entry *e = *shard_bucket(s, i); e != NULL; e = e->next)
            visit(e, arg);
        do
            i = bucket_after(i, shard_mask(s));
        while (i >= s->buckets); /* not yet split: was part of the one before */
    }
    loam_mutex_unlock(&s->lock);
    if (i == 0)
        number++;
    return number == SHARDS ? 0 : i * SHARDS + number;
}

bool store_expire_some(size_t shard, int64_t now)
{
    struct shard *s = &shards[shard];
    size_t expiring = 0, expired = 0;
    loam_mutex_lock(&s->lock);
    for (size_t n = 0; n < EXPIRE_STEP && s->counts.expiring > 0; n++) {
        s->swept = s->swept + 1 < s->buckets ? s->swept + 1 : 0;
        for (entry **link = shard_bucket(s, s->swept), *e; (e = *link) != NULL;) {
            expiring += e->expires != 0;
            if (entry_is_over(e, now)) {
                shard_remove(s, link);
                expired++;
            } else {
                link = &e->next;
            }
        }
        shard_shrink(s);
    }
    s->counts.expired += expired;
    loam_mutex_unlock(&s->lock);
    return expired > expiring / 4;
}

/* Of a few entries the one unused for longest. */
static entry **shard_oldest(const struct shard *s, uint64_t random)
{
    entry **oldest = NULL;
    size_t seen = 0;
    for (int n = 0; n < EVICT_BUCKETS && s->buckets > 0 && seen < EVICT_SAMPLE; n++)
        for (entry **link = shard_bucket(s, random_next(&random) % s->buckets); *link != NULL;
             link = &(*link)->next, seen++)
            if (oldest == NULL || (int32_t)((*link)->used - (*oldest)->used) < 0)
                oldest = link;
    return oldest;
}

size_t store_evict_one(void)
{
    static atomic_uint_least64_t chance;
    uint64_t random = atomic_fetch_add_explicit(&chance, 1, memory_order_relaxed) << 32;
    size_t bytes = 0, first = random_next(&random) % SHARDS;
    for (size_t i = 0; i < SHARDS && bytes == 0; i++) {
        struct shard *s = &shards[(first + i) % SHARDS];
        loam_mutex_lock(&s->lock);
        entry **oldest = shard_oldest(s, random);
        if (oldest != NULL) {
            bytes = entry_bytes(*oldest);
            s->counts.evicted++;
            shard_remove(s, oldest);
            shard_shrink(s);
        }
        loam_mutex_unlock(&s->lock);
    }
    return bytes;
}
