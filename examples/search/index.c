/* index.c - the index: hash maps, words and posting lists, all garbage-collected.
 *
 * The shape is the one such a program has in Go. The map is cut into shards by the words' hashes.
 * Who changes a shard holds its mutex. Who only reads takes no lock at all: what can be seen is
 * never changed in place but replaced, by one LOAM_SET of the pointer that leads to it. A reader
 * goes on with what it has loaded, however old, and the collector finds out when nobody does.
 * Without a collector this needs hazard pointers, epochs or reference counts.
 *
 *     shards[] -> table -> term -> postings -> block -> document -> term ...
 *                               -> text
 *     documents -> document
 *
 * The two rules that a C program has to keep, and that Go's compiler keeps for its users:
 *
 *   - Types say where their pointers are: LOAM_TYPE and LOAM_TYPE_FLEX, in search.h.
 *   - A pointer goes into anything but a local variable with LOAM_SET (several with loam_copy),
 *     into a fresh object too. Integers are stored as always.
 */
#include "search.h"

#include <string.h>

enum {
    SHARDS = 64,      /* so many that two writers seldom meet */
    BLOCK_MAX = 64,   /* documents in a block: what is copied to change one */
    TABLE_FIRST = 256 /* slots of a new table */
};

typedef struct table { /* open addressing; a full one is replaced by a larger one */
    size_t slots;      /* a power of two */
    term *slot[];
} table;
LOAM_TYPE_FLEX(table, slot);

/* Globals are roots: nothing has to be registered. */
static struct shard {
    pthread_mutex_t lock;     /* for the writers */
    table *map;               /* replaced under the lock, read without it */
    size_t used;              /* its slots that are not NULL; all the rest is under the lock */
    size_t terms;             /* of these the ones that hold a term */
    size_t postings, dropped; /* pairs of word and document: there now, ever removed */
} shards[SHARDS];

static block *documents; /* by file number: the indexed version, or NULL */

static term gone; /* in the slot of a term that has left; no heap object, so of no interest to the
                     collector */

/* ---- posting lists ---- */

/* Where a file stands or would stand: the last block that begins at or before it. */
static size_t postings_search(const postings *list, uint32_t file)
{
    size_t low = 0, high = list->count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (list->blocks[middle]->docs[0]->file <= file)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* loam_copy is memcpy for pointers: what the target held before and what it holds now, the
 * collector hears of both. */
static block *block_of(document *const docs[], size_t count)
{
    block *b = LOAM_NEW_FLEX(block, count);
    b->count = count;
    loam_copy(b->docs, docs, count * sizeof docs[0]);
    return b;
}

/* A list in which block `at` has given way to n others; the rest is shared with the old list. */
static postings *postings_replace(const postings *old, size_t at, block *const fresh[], size_t n)
{
    size_t after = old->count - at - 1;
    postings *list = LOAM_NEW_FLEX(postings, at + n + after);
    list->count = at + n + after;
    loam_copy(list->blocks, old->blocks, at * sizeof fresh[0]);
    loam_copy(list->blocks + at, fresh, n * sizeof fresh[0]);
    loam_copy(list->blocks + at + n, old->blocks + at + 1, after * sizeof fresh[0]);
    return list;
}

static postings *postings_with(const postings *old, document *doc)
{
    if (old == NULL) {
        postings *list = LOAM_NEW_FLEX(postings, 1);
        list->documents = list->count = 1;
        LOAM_SET(list->blocks[0], block_of(&doc, 1));
        return list;
    }
    size_t at = postings_search(old, doc->file);
    const block *b = old->blocks[at];
    document *docs[BLOCK_MAX + 1]; /* a local: plain stores will do */
    size_t n = 0, from = 0;
    while (from < b->count && b->docs[from]->file < doc->file)
        docs[n++] = b->docs[from++];
    docs[n++] = doc;
    while (from < b->count)
        docs[n++] = b->docs[from++];

    size_t left = n <= BLOCK_MAX ? n : n / 2;
    block *fresh[2] = {block_of(docs, left)};
    if (left < n)
        fresh[1] = block_of(docs + left, n - left);
    postings *list = postings_replace(old, at, fresh, left < n ? 2 : 1);
    list->documents = old->documents + 1;
    return list;
}

/* NULL when the last document leaves. */
static postings *postings_without(const postings *old, const document *doc)
{
    if (old->documents == 1)
        return NULL;
    size_t at = postings_search(old, doc->file), n = 0;
    const block *b = old->blocks[at];
    document *docs[BLOCK_MAX];
    for (size_t i = 0; i < b->count; i++)
        if (b->docs[i] != doc)
            docs[n++] = b->docs[i];
    block *fresh[1] = {n > 0 ? block_of(docs, n) : NULL};
    postings *list = postings_replace(old, at, fresh, n > 0 ? 1 : 0);
    list->documents = old->documents - 1;
    return list;
}

/* ---- the map from words to terms ---- */

static struct shard *shard_of(uint64_t hash)
{
    return &shards[hash >> 58];
}

/* Safe without the lock: a slot goes from NULL to a term, and between terms and `gone`, each by one
 * store. Never back to NULL, so that what stands behind it is still found. */
static term *table_find(const table *map, const char *text, size_t length, uint64_t hash)
{
    size_t mask = map->slots - 1;
    for (size_t i = (size_t)hash & mask;; i = (i + 1) & mask) {
        term *t = SNAPSHOT(map->slot[i]);
        if (t == NULL)
            return NULL;
        if (t != &gone && t->hash == hash && t->length == length &&
            memcmp(t->text, text, length) == 0)
            return t;
    }
}

/* Put t where it belongs; it is known not to be there. True if that took a fresh slot. */
static bool table_put(table *map, term *t)
{
    size_t mask = map->slots - 1, i = (size_t)t->hash & mask;
    while (map->slot[i] != NULL && map->slot[i] != &gone)
        i = (i + 1) & mask;
    bool fresh = map->slot[i] == NULL;
    LOAM_SET(map->slot[i], t);
    return fresh;
}

/* Replace the map by one that is at most three eighths full. Who reads the old one is unharmed. */
static void shard_rebuild(struct shard *s)
{
    const table *old = s->map;
    size_t slots = TABLE_FIRST;
    while (slots * 3 < s->terms * 8)
        slots *= 2;
    table *map = LOAM_NEW_FLEX(table, slots);
    map->slots = slots;
    s->used = 0;
    for (size_t i = 0; i < old->slots; i++)
        if (old->slot[i] != NULL && old->slot[i] != &gone)
            s->used += table_put(map, old->slot[i]);
    LOAM_SET(s->map, map); /* only now can anybody see it */
}

static term *term_make(const char *text, const word *w)
{
    char copy[WORD_MAX + 1];
    memcpy(copy, text + w->start, w->length);
    copy[w->length] = 0;
    term *t = LOAM_NEW(term);
    t->hash = w->hash;
    t->length = w->length;
    /* A pointer into the text would do, but it would keep the whole text alive. */
    LOAM_SET(t->text, loam_strdup(copy));
    return t;
}

/* Enter doc in the list of one word. */
static term *term_add(const char *text, const word *w, document *doc)
{
    struct shard *s = shard_of(w->hash);
    pthread_mutex_lock(&s->lock);
    term *t = table_find(s->map, text + w->start, w->length, w->hash);
    if (t == NULL) {
        if ((s->used + 1) * 4 > s->map->slots * 3)
            shard_rebuild(s);
        t = term_make(text, w);
        s->used += table_put(s->map, t);
        s->terms++;
    }
    LOAM_SET(t->list, postings_with(t->list, doc)); /* the old one is garbage without readers */
    s->postings++;
    pthread_mutex_unlock(&s->lock);
    return t;
}

static void term_remove(term *t, const document *doc)
{
    struct shard *s = shard_of(t->hash);
    pthread_mutex_lock(&s->lock);
    LOAM_SET(t->list, postings_without(t->list, doc));
    if (t->list == NULL) { /* nobody has the word any more */
        size_t mask = s->map->slots - 1, i = (size_t)t->hash & mask;
        while (s->map->slot[i] != t)
            i = (i + 1) & mask;
        LOAM_SET(s->map->slot[i], &gone);
        s->terms--;
    }
    s->postings--;
    s->dropped++;
    pthread_mutex_unlock(&s->lock);
}

/* ---- the distinct words of a text ---- */

/* A hash set. It is never stored anywhere, so it is an ordinary local; its slots are in the heap,
 * declared to hold no pointers, and never freed by hand. */
struct word_set {
    size_t slots; /* a power of two */
    size_t count;
    word *slot; /* length 0: empty */
};

static struct word_set word_set_make(size_t slots)
{
    return (struct word_set){.slots = slots, .slot = LOAM_NEW_ARRAY(word, slots)};
}

static void word_set_add(struct word_set *set, const char *text, const word *w)
{
    size_t mask = set->slots - 1, i = (size_t)(w->hash >> 20) & mask;
    for (; set->slot[i].length != 0; i = (i + 1) & mask) {
        const word *other = &set->slot[i];
        if (other->hash == w->hash && other->length == w->length &&
            memcmp(text + other->start, text + w->start, w->length) == 0)
            return;
    }
    set->slot[i] = *w;
    set->count++;
}

static struct word_set words_of(char *text, size_t size)
{
    struct word_set set = word_set_make(128);
    word w;
    for (size_t at = 0; word_next(text, size, &at, &w);) {
        if (set.count * 4 >= set.slots * 3) {
            struct word_set larger = word_set_make(set.slots * 2);
            for (size_t i = 0; i < set.slots; i++)
                if (set.slot[i].length != 0)
                    word_set_add(&larger, text, &set.slot[i]);
            set = larger;
        }
        word_set_add(&set, text, &w);
    }
    return set;
}

/* ---- what the rest of the program calls ---- */

void index_init(size_t files)
{
    LOAM_SET(documents, LOAM_NEW_FLEX(block, files)); /* a global: LOAM_SET */
    documents->count = files;
    for (size_t i = 0; i < SHARDS; i++) {
        struct shard *s = &shards[i];
        pthread_mutex_init(&s->lock, NULL);
        LOAM_SET(s->map, LOAM_NEW_FLEX(table, TABLE_FIRST));
        s->map->slots = TABLE_FIRST;
    }
}

/* A file is always added and dropped by the same thread, so the two never cross. */
void index_add(uint32_t file, char *text, size_t size)
{
    const struct word_set set = words_of(text, size);
    document *doc = LOAM_NEW_FLEX(document, set.count);
    doc->file = file;
    for (size_t i = 0; i < set.slots; i++)
        if (set.slot[i].length != 0) {
            LOAM_SET(doc->terms[doc->count], term_add(text, &set.slot[i], doc));
            doc->count++;
        }
    LOAM_SET(documents->docs[file], doc); /* from here on it must be found by all its words */
}

void index_drop(uint32_t file)
{
    document *doc = documents->docs[file];
    if (doc == NULL)
        return;
    LOAM_SET(documents->docs[file], NULL);
    for (uint32_t i = 0; i < doc->count; i++)
        term_remove(doc->terms[i], doc);
}

/* The version of a file that is indexed now, or NULL. */
document *index_document(uint32_t file)
{
    return SNAPSHOT(documents->docs[file]);
}

/* The posting list of a word as it is now, or NULL. It never changes; it may soon be history. */
const postings *index_find(const char *text, size_t length, uint64_t hash)
{
    const term *t = table_find(SNAPSHOT(shard_of(hash)->map), text, length, hash);
    return t != NULL ? SNAPSHOT(t->list) : NULL;
}

/* The documents in both lists (in `a` if it is the same list twice), in the order of the files. Two
 * versions of one file are two documents: the lists may be of different moments. */
block *index_both(const postings *a, const postings *b)
{
    if (a == NULL || b == NULL)
        return LOAM_NEW_FLEX(block, 0);
    block *answer = LOAM_NEW_FLEX(block, a->documents < b->documents ? a->documents : b->documents);
    size_t at = 0, in = 0; /* the block of b, and the place in it */
    for (size_t i = 0; i < a->count; i++)
        for (size_t j = 0; j < a->blocks[i]->count; j++) {
            document *doc = a->blocks[i]->docs[j];
            while (at + 1 < b->count && b->blocks[at + 1]->docs[0]->file <= doc->file)
                at++, in = 0;
            const block *other = b->blocks[at];
            while (in < other->count && other->docs[in]->file < doc->file)
                in++;
            if (in < other->count && other->docs[in] == doc) {
                LOAM_SET(answer->docs[answer->count], doc);
                answer->count++;
            }
        }
    return answer;
}

void index_count(struct index_counts *counts)
{
    *counts = (struct index_counts){0};
    for (size_t i = 0; i < documents->count; i++)
        counts->documents += SNAPSHOT(documents->docs[i]) != NULL;
    for (size_t i = 0; i < SHARDS; i++) {
        struct shard *s = &shards[i];
        pthread_mutex_lock(&s->lock);
        counts->terms += s->terms;
        counts->postings += s->postings;
        counts->dropped += s->dropped;
        pthread_mutex_unlock(&s->lock);
    }
}
