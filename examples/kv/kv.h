/* kv.h - what the files of the key-value server share.
 *
 * A server that speaks the protocol of redis (RESP2). Each client has a goroutine, which reads,
 * looks things up and answers, one command after the other, in plain sequential code. Keys and
 * values lie in the collected heap: who has loaded a value may go on reading it when another client
 * has replaced it, without a copy, a count or a lock, and nobody frees anything. Read store.c
 * first, then connection.c.
 *
 *     store.c       keys and values: sharded hash tables, expiry, eviction
 *     connection.c  one client: input becomes commands, replies become output
 *     commands.c    GET, SET and the others
 *     keeper.c      two goroutines in the background: one expires keys, one evicts them
 *     text.c        numbers, patterns, chance; nothing of the library
 *     main.c        options, the socket, the beginning and the end
 */
#ifndef KV_H
#define KV_H

#include <loam.h>
#include <loam/sched.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that lie in somebody else's memory; as a local variable it keeps that alive. */
struct slice {
    const char *at;
    size_t length;
};

/* ---- text.c ---- */

enum { INTEGER_CHARS = 20 }; /* of INT64_MIN */

bool integer_parse(struct slice text, int64_t *n); /* as it would be printed, nothing around it */
size_t integer_print(int64_t n, char text[INTEGER_CHARS]); /* gives the length */
bool same_word(struct slice a, const char *word);          /* whatever the case */
bool glob_match(struct slice pattern, struct slice text);  /* * ? [a-z] [^a-z] \x */
void hash_init(void);
uint64_t hash_of(struct slice text);
uint64_t random_next(uint64_t *state);
int64_t now_ms(void); /* CLOCK_MONOTONIC */

/* ---- store.c ---- */

enum { SHARDS = 256, VALUE_MAX = 512 << 20 /* bytes of a key or of a value */ };

/* In noscan memory. Never changed once it is in an entry: somebody may be sending it. */
typedef struct value {
    size_t length;
    char bytes[];
} value;

typedef struct entry {
    struct entry *next; /* in its bucket */
    value *value;
    uint64_t hash;
    int64_t expires; /* in now_ms's time; 0: never */
    uint32_t used;   /* when last: of now_ms the low half */
    uint32_t length; /* of its key */
    char key[];
} entry;
LOAM_TYPE_FLEX(entry, key, next, value); /* a tail of bytes is not searched */

/* A key's place. From place_open to place_close its shard is locked: nothing is sent to a client
 * meanwhile, others would wait for him. */
struct place {
    struct shard *shard;
    struct slice key;
    uint64_t hash;
    int64_t now;
    entry **link;  /* what points to the entry; NULL: there is none */
    int64_t grown; /* bytes that place_put has brought */
};

struct place place_open(struct slice key, int64_t now);
void place_close(struct place *p);
bool place_put(struct place *p, value *v, int64_t expires); /* false: no memory, or v is NULL */
void place_expire(struct place *p, int64_t expires);        /* of these two: the entry is there */
void place_remove(struct place *p);
static inline entry *place_entry(const struct place *p)
{
    return p->link == NULL ? NULL : *p->link;
}
bool entry_is_over(const entry *e, int64_t now);

value *value_make(struct slice bytes); /* NULL: no memory */
value *store_get(struct slice key, int64_t now);
void store_clear(void);

/* Calls visit for the entries of one bucket, its shard locked. Gives the cursor to go on with, at
 * last 0: who began with 0 has then seen all that was there all the time, some perhaps twice. */
uint64_t store_scan(uint64_t cursor, void (*visit)(const entry *e, void *arg), void *arg);

struct store_counts {
    uint64_t entries, expiring, bytes; /* there now */
    uint64_t hits, misses, expired, evicted;
};
struct store_counts store_count(void);

bool store_expire_some(size_t shard, int64_t now); /* true: there is more to be had here */
size_t store_evict_one(void);                      /* its bytes; 0: there is none */

/* ---- connection.c ---- */

struct buffer {
    char *bytes; /* noscan; replaced by a larger one, never moved: see buffer_reserve */
    size_t used, size;
};

struct range { /* of the input, from where the command begins */
    size_t at, length;
};

typedef struct connection {
    int fd;
    bool broken;  /* nothing can be sent any more */
    bool ended;   /* nothing will come any more */
    bool closing; /* after this command */
    struct buffer in, out;
    size_t start, at;   /* of the input: where this command begins, how far it is read */
    struct range *args; /* of this command, noscan; the first is its name */
    size_t argc, args_size;
    int64_t now;       /* of this command */
    uint64_t commands; /* not yet in the sum of all */
} connection;
LOAM_TYPE(connection, in.bytes, out.bytes, args);

void connection_main(void *connection); /* a goroutine; closes fd */

extern atomic_uint_least64_t connections_now, connections_ever, commands_ever;

struct slice arg(const connection *c, size_t i); /* until the next command is read */

void reply_line(connection *c, const char *line); /* with its first character: "+OK" */
void reply_error(connection *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
void reply_integer(connection *c, int64_t n);
void reply_array(connection *c, size_t n); /* n replies follow */
void reply_bulk(connection *c, struct slice bytes);
void reply_text(connection *c, const char *text);
void reply_null(connection *c);

/* ---- commands.c, keeper.c, main.c ---- */

void command_run(connection *c);

int keeper_start(void);                  /* 0, or -1 and errno */
void keeper_help(const struct place *p); /* by who has put something there, after place_close */

struct settings {
    const char *bind;
    int port;
    int64_t started;    /* in now_ms's time */
    size_t command_max; /* bytes that a command may take while it is read */
};
extern struct settings settings;

#endif
