/* query.c - the thread that asks, and how answers are checked.
 *
 * Queries arrive by the clock, one each millisecond, and latency counts from the moment a query was
 * due, not from when the thread got round to it. So a stretch in which nothing runs shows as what
 * it is to those who wait: one slow answer for each query that came meanwhile.
 */
#define _GNU_SOURCE
#include "search.h"

#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

enum { PERIOD_NS = 1000000, SHOWN_MAX = 8 };

/* One word, or two that must both be there; one word is the same word twice. Lives on the stack. */
struct query {
    struct asked {
        char text[WORD_MAX + 1];
        size_t length;
        uint64_t hash;
    } words[2];
    bool two;
    const document *from; /* a document it was drawn from */
};

static block *query_answer(const struct query *q)
{
    const struct asked *w = q->words;
    const postings *first = index_find(w[0].text, w[0].length, w[0].hash);
    if (!q->two)
        return index_both(first, first);
    return index_both(first, index_find(w[1].text, w[1].length, w[1].hash));
}

static void ask(struct asked *w, const char *text, size_t length, uint64_t hash)
{
    memcpy(w->text, text, length);
    w->text[length] = 0;
    w->length = length;
    w->hash = hash;
}

/* A query for words of some document that is indexed now. */
static bool query_draw(struct query *q, size_t files, uint64_t *dice)
{
    q->from = index_document((uint32_t)random_below(dice, files));
    if (q->from == NULL || q->from->count == 0)
        return false;
    q->two = random_below(dice, 2) == 0;
    for (int i = 0; i < 2; i++) {
        const term *t = q->from->terms[random_below(dice, q->from->count)];
        ask(&q->words[i], t->text, t->length, t->hash);
    }
    if (!q->two)
        q->words[1] = q->words[0];
    return true;
}

static void fail(const struct query *q, const char *what, const char *path)
{
    fprintf(stderr, "\nsearch: wrong answer to '%s'%s%s%s: %s: %s\n", q->words[0].text,
            q->two ? " and '" : "", q->two ? q->words[1].text : "", q->two ? "'" : "", what, path);
    exit(1);
}

/* What can be said of an answer while documents come and go: each document has (or had) the words,
 * none comes twice, and one that stayed in the index all the time is not missing. */
static void query_verify(const struct query *q, const block *answer, const struct corpus *c)
{
    bool found = false;
    for (size_t i = 0; i < answer->count; i++) {
        const document *doc = answer->docs[i];
        const struct source *s = &c->files[doc->file];
        if (!source_may_contain(s, q->words[0].hash) || !source_may_contain(s, q->words[1].hash))
            fail(q, "a document without the word", s->path);
        if (i > 0 && doc->file <= answer->docs[i - 1]->file)
            fail(q, "documents out of order", s->path);
        found |= doc == q->from;
    }
    /* A document leaves this table before it leaves the first list. */
    if (!found && index_document(q->from->file) == q->from)
        fail(q, "a document is missing", c->files[q->from->file].path);
}

void *searcher_main(void *arg)
{
    struct searcher *s = arg;
    uint64_t dice = 2;
    loam_attach(); /* allocating would do it too, but pointers are held here before that */
    prctl(PR_SET_TIMERSLACK, 1UL); /* wake up on time: the system would add 50 microseconds */
    for (uint64_t due = now_ns(); !atomic_load_explicit(&s->stop, memory_order_relaxed);) {
        struct query q;
        while (!query_draw(&q, s->corpus->count, &dice)) {
            if (atomic_load_explicit(&s->stop, memory_order_relaxed))
                return NULL;
            if (atomic_load_explicit(&s->queries, memory_order_relaxed) == 0) {
                due = now_ns() + PERIOD_NS; /* nothing is indexed yet */
                sleep_until(due);
            }
        }
        due += PERIOD_NS;
        sleep_until(due);
        block *answer = query_answer(&q);
        histogram_add(s->latency, now_ns() - due);
        atomic_fetch_add_explicit(&s->queries, 1, memory_order_relaxed);
        query_verify(&q, answer, s->corpus);
    }
    return NULL;
}

/* ---- the last check: the index against a plain scan of the files ---- */

static void *room(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size);
    if (p == NULL) {
        fprintf(stderr, "search: out of memory\n");
        exit(1);
    }
    return p;
}

/* Words at random from one file, each as likely as any other; false if there are none. Drawn from
 * the text, not from the index, so that dropped files are asked for too. */
static bool query_draw_from_text(struct query *q, char *text, size_t size, uint64_t *dice)
{
    size_t seen = 0;
    word w;
    for (size_t at = 0; word_next(text, size, &at, &w); seen++)
        for (int i = 0; i < 2; i++)
            if (random_below(dice, seen + 1) == 0)
                ask(&q->words[i], text + w.start, w.length, w.hash);
    q->two = random_below(dice, 2) == 0;
    if (!q->two)
        q->words[1] = q->words[0];
    return seen > 0;
}

/* Which of the asked words a text has: has[2 * query + i]. */
static void scan_text(char *text, size_t size, const struct query *queries, size_t n, char *has)
{
    enum { CHAINS = 1024 };
    static size_t first[CHAINS], *next; /* words by hash; 0 ends a chain, so all are one higher */
    if (next == NULL) {
        next = room(2 * n + 1, sizeof *next);
        for (size_t i = 2 * n; i > 0; i--) {
            size_t chain = (size_t)queries[(i - 1) / 2].words[(i - 1) % 2].hash % CHAINS;
            next[i] = first[chain];
            first[chain] = i;
        }
    }
    word w;
    memset(has, 0, 2 * n);
    for (size_t at = 0; word_next(text, size, &at, &w);)
        for (size_t i = first[(size_t)w.hash % CHAINS]; i != 0; i = next[i]) {
            const struct asked *a = &queries[(i - 1) / 2].words[(i - 1) % 2];
            if (a->length == w.length && memcmp(a->text, text + w.start, w.length) == 0)
                has[i - 1] = 1;
        }
}

static void show(const char *who, const char *expected, const struct corpus *c)
{
    size_t n = 0;
    for (size_t f = 0; f < c->count; f++)
        if (expected[f] && n++ < SHOWN_MAX)
            fprintf(stderr, "  %s: %s\n", who, c->files[f].path);
    fprintf(stderr, "  %s: %zu documents\n", who, n);
}

static void compare(const struct query *q, const char *scan, const char *readable,
                    const struct corpus *c)
{
    char *found = room(c->count, 1);
    const block *answer = query_answer(q);
    for (size_t i = 0; i < answer->count; i++)
        found[answer->docs[i]->file] = readable[answer->docs[i]->file];
    for (size_t f = 0; f < c->count; f++)
        if (found[f] != scan[f]) {
            show("index", found, c);
            show("scan ", scan, c);
            fail(q, "index and plain scan disagree", c->files[f].path);
        }
    free(found);
}

/* Whatever was dropped has left: there are as many postings as the indexed documents have words. */
static void check_postings(size_t files)
{
    struct index_counts counts;
    size_t words = 0;
    index_count(&counts);
    for (size_t f = 0; f < files; f++) {
        const document *doc = index_document((uint32_t)f);
        words += doc != NULL ? doc->count : 0;
    }
    if (counts.postings != words) {
        fprintf(stderr, "search: %zu postings for %zu words\n", counts.postings, words);
        exit(1);
    }
}

/* With the writers stopped, index and scan must agree exactly, also about the documents that were
 * dropped. Gives how many queries were compared; a difference ends the program. */
size_t check_against_scan(const struct corpus *c, size_t queries)
{
    struct query *asked = room(queries, sizeof *asked);
    char *text = room(1, FILE_MAX_BYTES), *has = room(2 * queries, 1);
    char *scan = room(queries * c->count, 1), *readable = room(c->count, 1);
    uint64_t dice = 3;
    size_t n = 0;
    check_postings(c->count);
    for (size_t tries = 0; n < queries && tries < 4 * queries; tries++) {
        const struct source *s = &c->files[random_below(&dice, c->count)];
        n += source_read(s, text) && query_draw_from_text(&asked[n], text, s->size, &dice);
    }
    for (size_t f = 0; f < c->count; f++) {
        /* A file that somebody has changed meanwhile says nothing about the index. */
        readable[f] = source_read(&c->files[f], text);
        if (!readable[f] || index_document((uint32_t)f) == NULL)
            continue;
        scan_text(text, c->files[f].size, asked, n, has);
        for (size_t q = 0; q < n; q++)
            scan[q * c->count + f] = has[2 * q] & has[2 * q + 1];
    }
    for (size_t q = 0; q < n; q++)
        compare(&asked[q], scan + q * c->count, readable, c);
    free(asked);
    free(text);
    free(has);
    free(scan);
    free(readable);
    return n;
}
