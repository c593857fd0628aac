/* search.h - what the files of the demo share.
 *
 * The program keeps an inverted index of a folder of text: from each word to the documents that
 * contain it. Two threads build and rebuild the index, a third answers queries, and none waits for
 * the garbage collector. Read index.c first: it is where the library is used.
 *
 *     index.c      the index: hash maps, words and posting lists, all garbage-collected
 *     query.c      the thread that asks, and how answers are checked
 *     run.c        one measured run: starts the threads, watches the collector
 *     corpus.c     which files to read, and how text becomes words
 *     histogram.c  latencies, counted without allocating
 *     main.c       options; runs the same thing twice and prints both side by side
 */
#ifndef SEARCH_H
#define SEARCH_H

#include <loam.h>
#include <loam/stats.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ---- corpus.c: plain files and plain words ---- */

enum { WORD_MIN = 2, WORD_MAX = 40 }; /* bytes; what is shorter or longer is not indexed */

/* A word as it stands in a text, in lower case. Integers only: nothing for the collector. */
typedef struct word {
    uint64_t hash;
    uint32_t start; /* offset in the text */
    uint32_t length;
} word;
LOAM_TYPE_NOSCAN(word);

enum { FILE_MAX_BYTES = 1 << 20 }; /* what is larger is rarely prose */

struct source {
    char *path;
    size_t size;
    int64_t modified_ns;   /* a file that changes while we run drops out of the corpus */
    size_t print_words;    /* a power of two */
    uint64_t *fingerprint; /* a Bloom filter of its words; set once, before its first indexing */
};

struct corpus {
    struct source *files;
    size_t count;
    size_t bytes;
};

void corpus_load(struct corpus *c, const char *const folders[], size_t n, size_t max_bytes);
bool source_read(const struct source *s, char *text);
void source_take_fingerprint(struct source *s, char *text);
bool source_may_contain(const struct source *s, uint64_t hash);
bool word_next(char *text, size_t size, size_t *at, word *w);

/* ---- index.c ---- */

/* One version of one file. A document that is dropped stays readable for a query that found it just
 * before; nobody has to count who still looks at it. */
typedef struct document {
    uint32_t file;        /* its number in the corpus; posting lists are in this order */
    uint32_t count;       /* of words */
    struct term *terms[]; /* the distinct words in it */
} document;
LOAM_TYPE_FLEX(document, terms);

/* A run of a posting list, also used for an answer: never changed once it can be seen. */
typedef struct block {
    size_t count;
    document *docs[];
} block;
LOAM_TYPE_FLEX(block, docs);

/* A posting list: all documents with one word. Immutable too: to add or remove a document, a new
 * list is made that shares all blocks but one with the old. */
typedef struct postings {
    size_t documents;
    size_t count; /* of blocks; none is empty */
    block *blocks[];
} postings;
LOAM_TYPE_FLEX(postings, blocks);

/* An entry of the map. The index is full of cycles (term, list, block, document, term), which
 * reference counts would never free. */
typedef struct term {
    uint64_t hash;
    size_t length;
    char *text;
    postings *list; /* NULL once the last document with the word is gone */
} term;
LOAM_TYPE(term, text, list);

/* A pointer that another thread may replace at any moment. For the collector a plain load would do;
 * this one also tells the compiler that it must load only once. Pairs with LOAM_SET. */
#define SNAPSHOT(lvalue) __atomic_load_n(&(lvalue), __ATOMIC_ACQUIRE)

struct index_counts {
    size_t documents, terms, postings, dropped;
};

void index_init(size_t files);
void index_add(uint32_t file, char *text, size_t size);
void index_drop(uint32_t file);
document *index_document(uint32_t file);
const postings *index_find(const char *text, size_t length, uint64_t hash);
block *index_both(const postings *a, const postings *b);
void index_count(struct index_counts *counts);

/* ---- histogram.c ---- */

enum { HISTOGRAM_BUCKETS = 58 * 64 + 64 };

struct histogram {
    uint64_t total;
    uint64_t max;
    uint64_t counts[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, uint64_t value);
uint64_t histogram_quantile(const struct histogram *h, double q);

/* ---- query.c ---- */

struct searcher {
    const struct corpus *corpus;
    struct histogram *latency;
    atomic_bool stop;
    atomic_uint_least64_t queries;
};

void *searcher_main(void *searcher);
size_t check_against_scan(const struct corpus *c, size_t queries);

/* ---- run.c ---- */

struct options {
    int seconds;
    int threads;
    int max_mb;
    bool json;
    int figures_fd; /* in a child: where its figures go; -1 in the parent */
    const char *const *folders;
    size_t folder_count;
};

/* What a run found out: travels through a pipe, so it holds no pointers. */
struct figures {
    struct index_counts counts;
    uint64_t queries, checked;
    uint64_t p50_ns, p99_ns, p999_ns, max_ns;
    uint64_t objects_per_second, bytes_per_second;
    uint64_t cycles, longest_stop_ns;
    uint64_t live_bytes, goal_bytes;
    uint64_t peak_rss_bytes;
    double worst_overshoot; /* the highest heap / goal that was seen */
};

void run(const struct options *o, struct figures *out);

/* ---- small things ---- */

uint64_t now_ns(void);
void sleep_until(uint64_t when_ns);

static inline uint64_t random_next(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline size_t random_below(uint64_t *state, size_t limit)
{
    return (size_t)(random_next(state) % limit);
}

#endif
