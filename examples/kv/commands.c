/* commands.c - GET, SET and the others: what redis answers, in its words. */
#define _GNU_SOURCE
#include "kv.h"

#include <loam/stats.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SCAN_MAX = 10000 }; /* keys of one answer, roughly; COUNT is a hint */

/* A command gives the error that there is to tell, or NULL when it has replied. */
static const char syntax[] = "ERR syntax error";
static const char not_integer[] = "ERR value is not an integer or out of range";
static const char no_memory[] = "OOM command not allowed: out of memory";

static struct slice text_slice(const char *text)
{
    return (struct slice){text, strlen(text)};
}

static void reply_value(connection *c, const value *v)
{
    if (v == NULL)
        reply_null(c);
    else
        reply_bulk(c, (struct slice){v->bytes, v->length});
}

/* ---- strings ---- */

static const char *do_get(connection *c)
{
    reply_value(c, store_get(arg(c, 1), c->now));
    return NULL;
}

static const char *do_mget(connection *c)
{
    reply_array(c, c->argc - 1);
    for (size_t i = 1; i < c->argc; i++)
        reply_value(c, store_get(arg(c, i), c->now));
    return NULL;
}

/* The moment that is n units from now. */
static bool time_after(const connection *c, int64_t n, int64_t unit_ms, int64_t *at)
{
    return !__builtin_mul_overflow(n, unit_ms, &n) && !__builtin_add_overflow(n, c->now, at);
}

static const char *do_set(connection *c)
{
    bool if_absent = false, if_present = false;
    int64_t n, expires = 0;
    for (size_t i = 3; i < c->argc; i++) {
        bool seconds = same_word(arg(c, i), "EX"), milliseconds = same_word(arg(c, i), "PX");
        if ((seconds || milliseconds) && expires == 0 && i + 1 < c->argc) {
            if (!integer_parse(arg(c, ++i), &n))
                return not_integer;
            if (n <= 0 || !time_after(c, n, seconds ? 1000 : 1, &expires))
                return "ERR invalid expire time in 'set' command";
        } else if (same_word(arg(c, i), "NX")) {
            if_absent = true;
        } else if (same_word(arg(c, i), "XX")) {
            if_present = true;
        } else {
            return syntax;
        }
    }
    if (if_absent && if_present)
        return syntax;

    value *v = value_make(arg(c, 2));
    struct place p = place_open(arg(c, 1), c->now);
    bool wanted = p.link == NULL ? !if_present : !if_absent;
    bool done = wanted && place_put(&p, v, expires);
    place_close(&p);
    if (wanted && !done)
        return no_memory;
    keeper_help(&p);
    reply_line(c, done ? "+OK" : "$-1");
    return NULL;
}

/* Each key by itself: others may see some of them set and some not yet. */
static const char *do_mset(connection *c)
{
    if (c->argc % 2 == 0)
        return "ERR wrong number of arguments for 'mset' command";
    for (size_t i = 1; i < c->argc; i += 2) {
        value *v = value_make(arg(c, i + 1));
        struct place p = place_open(arg(c, i), c->now);
        bool done = place_put(&p, v, 0);
        place_close(&p);
        if (!done)
            return no_memory;
        keeper_help(&p);
    }
    reply_line(c, "+OK");
    return NULL;
}

static const char *add_to(struct place *p, int64_t n, int64_t *sum)
{
    char text[INTEGER_CHARS];
    const entry *e = place_entry(p);
    *sum = 0;
    if (e != NULL && !integer_parse((struct slice){e->value->bytes, e->value->length}, sum))
        return not_integer;
    if (__builtin_add_overflow(*sum, n, sum))
        return "ERR increment or decrement would overflow";
    value *v = value_make((struct slice){text, integer_print(*sum, text)});
    return place_put(p, v, e == NULL ? 0 : e->expires) ? NULL : no_memory;
}

/* INCR and DECR. */
static const char *do_add(connection *c)
{
    int64_t sum;
    struct place p = place_open(arg(c, 1), c->now);
    const char *error = add_to(&p, same_word(arg(c, 0), "incr") ? 1 : -1, &sum);
    place_close(&p);
    if (error == NULL)
        reply_integer(c, sum);
    return error;
}

/* ---- keys ---- */

static const char *do_del(connection *c)
{
    int64_t n = 0;
    for (size_t i = 1; i < c->argc; i++) {
        struct place p = place_open(arg(c, i), c->now);
        if (p.link != NULL) {
            place_remove(&p);
            n++;
        }
        place_close(&p);
    }
    reply_integer(c, n);
    return NULL;
}

static const char *do_exists(connection *c)
{
    int64_t n = 0;
    for (size_t i = 1; i < c->argc; i++)
        n += store_get(arg(c, i), c->now) != NULL;
    reply_integer(c, n);
    return NULL;
}

static const char *do_expire(connection *c)
{
    int64_t seconds, at;
    if (!integer_parse(arg(c, 2), &seconds))
        return not_integer;
    if (!time_after(c, seconds, 1000, &at))
        return "ERR invalid expire time in 'expire' command";
    struct place p = place_open(arg(c, 1), c->now);
    bool there = p.link != NULL;
    if (there && seconds <= 0)
        place_remove(&p);
    else if (there)
        place_expire(&p, at);
    place_close(&p);
    reply_integer(c, there);
    return NULL;
}

/* TTL and PTTL. -1: it does not expire, -2: it is not there. */
static const char *do_ttl(connection *c)
{
    struct place p = place_open(arg(c, 1), c->now);
    const entry *e = place_entry(&p);
    int64_t left = e == NULL ? -2 : e->expires == 0 ? -1 : e->expires - c->now;
    place_close(&p);
    if (left > 0 && same_word(arg(c, 0), "ttl"))
        left = left / 1000 + (left % 1000 >= 500);
    reply_integer(c, left);
    return NULL;
}

/* The entries of a bucket are noted while its shard is locked, and sent when it is not: one that is
 * removed in between stays as it is for as long as it is noted. */
struct scan {
    const entry **found;
    size_t count, size;
    struct slice pattern;
    int64_t now;
    bool failed;
};

static void scan_visit(const entry *e, void *arg)
{
    struct scan *s = arg;
    if (entry_is_over(e, s->now) || !glob_match(s->pattern, (struct slice){e->key, e->length}))
        return;
    if (s->count == s->size) {
        const entry **found = loam_realloc(s->found, (s->size + 64) * 2 * sizeof *found);
        s->failed |= found == NULL;
        if (found == NULL)
            return;
        s->found = found; /* a local variable of this goroutine */
        s->size = (s->size + 64) * 2;
    }
    LOAM_SET(s->found[s->count++], e);
}

static const char *do_scan(connection *c)
{
    char text[INTEGER_CHARS];
    struct scan s = {.pattern = {"*", 1}, .now = c->now};
    int64_t cursor, count = 10;
    if (!integer_parse(arg(c, 1), &cursor) || cursor < 0)
        return "ERR invalid cursor";
    for (size_t i = 2; i < c->argc; i += 2) {
        bool match = same_word(arg(c, i), "MATCH");
        if (i + 1 == c->argc || (!match && !same_word(arg(c, i), "COUNT")))
            return syntax;
        if (match)
            s.pattern = arg(c, i + 1);
        else if (!integer_parse(arg(c, i + 1), &count))
            return not_integer;
    }
    if (count < 1)
        return syntax;
    int64_t enough = count < SCAN_MAX ? count : SCAN_MAX, looked = 0;
    do
        cursor = (int64_t)store_scan((uint64_t)cursor, scan_visit, &s);
    while (cursor != 0 && (int64_t)s.count < enough && ++looked < SHARDS + 10 * enough);
    if (s.failed)
        return no_memory;
    reply_array(c, 2);
    reply_bulk(c, (struct slice){text, integer_print(cursor, text)});
    reply_array(c, s.count);
    for (size_t i = 0; i < s.count; i++)
        reply_bulk(c, (struct slice){s.found[i]->key, s.found[i]->length});
    return NULL;
}

static const char *do_dbsize(connection *c)
{
    reply_integer(c, (int64_t)store_count().entries);
    return NULL;
}

static const char *do_flushall(connection *c)
{
    store_clear();
    reply_line(c, "+OK");
    return NULL;
}

/* ---- the server ---- */

static const char *do_ping(connection *c)
{
    if (c->argc > 1)
        reply_bulk(c, arg(c, 1));
    else
        reply_line(c, "+PONG");
    return NULL;
}

static const char *do_echo(connection *c)
{
    reply_bulk(c, arg(c, 1));
    return NULL;
}

static const char *do_select(connection *c)
{
    int64_t n;
    if (!integer_parse(arg(c, 1), &n))
        return not_integer;
    if (n != 0)
        return "ERR DB index is out of range";
    reply_line(c, "+OK");
    return NULL;
}

static const char *do_quit(connection *c)
{
    reply_line(c, "+OK");
    c->closing = true;
    return NULL;
}

static int64_t memory_limit(void) /* 0: none */
{
    int64_t limit = loam_set_memory_limit(-1);
    return limit == INT64_MAX ? 0 : limit;
}

static bool any_matches(const connection *c, size_t first, const char *name)
{
    for (size_t i = first; i < c->argc; i++)
        if (glob_match(arg(c, i), text_slice(name)))
            return true;
    return false;
}

static const char *do_config(connection *c)
{
    char limit[INTEGER_CHARS + 1] = "", port[INTEGER_CHARS + 1] = "";
    integer_print(memory_limit(), limit);
    integer_print(settings.port, port);
    const char *known[][2] = {{"appendonly", "no"},
                              {"bind", settings.bind},
                              {"maxmemory", limit},
                              {"port", port},
                              {"save", ""}};
    enum { KNOWN = sizeof known / sizeof known[0] };
    if (!same_word(arg(c, 1), "GET") || c->argc < 3)
        return "ERR of CONFIG there is only GET pattern ...";
    size_t n = 0;
    for (size_t i = 0; i < KNOWN; i++)
        n += any_matches(c, 2, known[i][0]);
    reply_array(c, 2 * n);
    for (size_t i = 0; i < KNOWN; i++)
        if (any_matches(c, 2, known[i][0])) {
            reply_text(c, known[i][0]);
            reply_text(c, known[i][1]);
        }
    return NULL;
}

static uint64_t counter(atomic_uint_least64_t *n)
{
    return atomic_load_explicit(n, memory_order_relaxed);
}

static const char *do_info(connection *c)
{
    char text[1024];
    struct store_counts s = store_count();
    loam_memstats m;
    loam_read_memstats(&m);
    int length = snprintf(
        text, sizeof text,
        "# Server\r\nprocess_id:%d\r\ntcp_port:%d\r\nuptime_in_seconds:%" PRId64 "\r\n"
        "\r\n# Clients\r\nconnected_clients:%" PRIu64 "\r\n"
        "\r\n# Memory\r\nused_memory:%" PRIu64 "\r\nused_memory_dataset:%" PRIu64 "\r\n"
        "maxmemory:%" PRId64 "\r\nmem_from_system:%" PRIu64 "\r\ngc_cycles:%" PRIu32 "\r\n"
        "\r\n# Stats\r\ntotal_connections_received:%" PRIu64 "\r\n"
        "total_commands_processed:%" PRIu64 "\r\nexpired_keys:%" PRIu64 "\r\n"
        "evicted_keys:%" PRIu64 "\r\nkeyspace_hits:%" PRIu64 "\r\nkeyspace_misses:%" PRIu64 "\r\n"
        "\r\n# Keyspace\r\ndb0:keys=%" PRIu64 ",expires=%" PRIu64 "\r\n",
        (int)getpid(), settings.port, (c->now - settings.started) / 1000, counter(&connections_now),
        m.heap_alloc, s.bytes, memory_limit(), m.sys - m.heap_released, m.num_gc,
        counter(&connections_ever), counter(&commands_ever), s.expired, s.evicted, s.hits, s.misses,
        s.entries, s.expiring);
    reply_bulk(c, (struct slice){text, (size_t)length});
    return NULL;
}

static const char *do_command(connection *c);

/* ---- which there are ---- */

static const struct command {
    char name[8]; /* no 0 behind eight */
    const char *(*run)(connection *c);
    int arity;                         /* arguments, the name among them; -n: at least n */
    int first_key, last_key, key_step; /* which are keys; last -1: up to the last one */
} commands[] = {
    {"get", do_get, 2, 1, 1, 1},        {"set", do_set, -3, 1, 1, 1},
    {"incr", do_add, 2, 1, 1, 1},       {"decr", do_add, 2, 1, 1, 1},
    {"mget", do_mget, -2, 1, -1, 1},    {"mset", do_mset, -3, 1, -1, 2},
    {"del", do_del, -2, 1, -1, 1},      {"exists", do_exists, -2, 1, -1, 1},
    {"expire", do_expire, 3, 1, 1, 1},  {"ttl", do_ttl, 2, 1, 1, 1},
    {"pttl", do_ttl, 2, 1, 1, 1},       {"scan", do_scan, -2, 0, 0, 0},
    {"dbsize", do_dbsize, 1, 0, 0, 0},  {"flushall", do_flushall, -1, 0, 0, 0},
    {"ping", do_ping, -1, 0, 0, 0},     {"echo", do_echo, 2, 0, 0, 0},
    {"select", do_select, 2, 0, 0, 0},  {"info", do_info, -1, 0, 0, 0},
    {"config", do_config, -2, 0, 0, 0}, {"command", do_command, -1, 0, 0, 0},
    {"quit", do_quit, -1, 0, 0, 0},
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static struct slice command_name(const struct command *k)
{
    return (struct slice){k->name, strnlen(k->name, sizeof k->name)};
}

static const char *do_command(connection *c)
{
    if (c->argc > 1)
        return "ERR COMMAND has no subcommands";
    reply_array(c, COMMANDS);
    for (const struct command *k = commands; k < commands + COMMANDS; k++) {
        reply_array(c, 6);
        reply_bulk(c, command_name(k));
        reply_integer(c, k->arity);
        reply_array(c, 0); /* flags */
        reply_integer(c, k->first_key);
        reply_integer(c, k->last_key);
        reply_integer(c, k->key_step);
    }
    return NULL;
}

/* A name compares as one number. */
static const struct command *command_find(struct slice name)
{
    uint64_t word = 0, other;
    if (name.length > sizeof word)
        return NULL;
    for (size_t i = 0; i < name.length; i++)
        ((char *)&word)[i] = (char)(name.at[i] | 0x20);
    for (const struct command *k = commands; k < commands + COMMANDS; k++)
        if (memcpy(&other, k->name, sizeof other), word == other)
            return k;
    return NULL;
}

void command_run(connection *c)
{
    if (c->argc == 0)
        return; /* an empty line */
    c->commands++;
    c->now = now_ms();
    struct slice name = arg(c, 0);
    const struct command *k = command_find(name);
    size_t least = k == NULL ? 0 : (size_t)(k->arity < 0 ? -k->arity : k->arity);
    const char *error;
    if (k == NULL)
        reply_error(c, "ERR unknown command '%.*s'", (int)(name.length < 64 ? name.length : 64),
                    name.at);
    else if (c->argc < least || (k->arity > 0 && c->argc > least))
        reply_error(c, "ERR wrong number of arguments for '%.8s' command", k->name);
    else if ((error = k->run(c)) != NULL)
        reply_error(c, "%s", error);
}
