/* snapshot.h - a heap dump, read strictly: JSON as it should be, counts that are right, edges that lead to nodes. */
#ifndef TESTS_SUPPORT_SNAPSHOT_H
#define TESTS_SUPPORT_SNAPSHOT_H

#include "test.h"

#include <ctype.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <loam/stats.h>

enum { NODE_FIELDS = 7, EDGE_FIELDS = 3 };
enum { NODE_TYPE, NODE_NAME, NODE_ID, NODE_SELF_SIZE, NODE_EDGE_COUNT };
enum { EDGE_TYPE, EDGE_NAME, EDGE_TO };
enum { EDGE_ELEMENT = 1 };

struct numbers {
    uint64_t *at;
    size_t count;
};

struct snapshot {
    struct numbers nodes, edges;
    char **strings;
    size_t nstrings;
    size_t nnodes;
    uint64_t node_count, edge_count; /* as the head says */
    size_t *first_edge;              /* of each node; one more */
    const char *text, *p;            /* while it is read */
};

#define JSON_EXPECT(s, cond) \
    EXPECT_MSG(cond, "at byte %zu: %.60s", (size_t)((s)->p - (s)->text), (s)->p)

static inline void json_blanks(struct snapshot *s)
{
    s->p += strspn(s->p, " \t\r\n");
}

static inline bool json_is(struct snapshot *s, char c)
{
    json_blanks(s);
    bool is = *s->p == c;
    s->p += is ? 1 : 0;
    return is;
}

static inline void json_must(struct snapshot *s, char c)
{
    JSON_EXPECT(s, json_is(s, c));
}

/* As UTF-8 where it is ASCII, else as '?'. */
static inline char *json_string(struct snapshot *s)
{
    json_must(s, '"');
    size_t n = 0;
    char *text = malloc(strcspn(s->p, "\"") * 2 + 512);
    while (*s->p != '"') {
        unsigned char c = (unsigned char)*s->p++;
        JSON_EXPECT(s, c >= 0x20);
        if (c == '\\') {
            c = (unsigned char)*s->p++;
            JSON_EXPECT(s, c != '\0' && strchr("\"\\/bfnrtu", c) != NULL);
            for (int i = 0; c == 'u' && i < 4; i++) {
                JSON_EXPECT(s, isxdigit((unsigned char)*s->p));
                s->p++;
            }
            c = c == 'u' ? '?' : c;
        }
        text[n++] = (char)c;
        EXPECT_LT(n, 4000);
        if (n % 256 == 0) {
            text = realloc(text, n + 512);
        }
    }
    s->p++;
    text[n] = '\0';
    return text;
}

static inline uint64_t json_number(struct snapshot *s)
{
    json_blanks(s);
    JSON_EXPECT(s, isdigit((unsigned char)*s->p) &&
                       (*s->p != '0' || !isdigit((unsigned char)s->p[1])));
    uint64_t n = 0;
    while (isdigit((unsigned char)*s->p)) {
        n = n * 10 + (uint64_t)(*s->p++ - '0');
    }
    return n;
}

static inline void json_value(struct snapshot *s);

/* Members of an object; fn reads the value, or false: anybody may. */
static inline void json_object(struct snapshot *s, bool (*fn)(struct snapshot *s, const char *key))
{
    json_must(s, '{');
    if (json_is(s, '}')) {
        return;
    }
    do {
        char *key = json_string(s);
        json_must(s, ':');
        if (!fn(s, key)) {
            json_value(s);
        }
        free(key);
    } while (json_is(s, ','));
    json_must(s, '}');
}

static inline bool json_nobody(struct snapshot *s, const char *key)
{
    (void)s, (void)key;
    return false;
}

static inline void json_value(struct snapshot *s)
{
    json_blanks(s);
    if (*s->p == '{') {
        json_object(s, json_nobody);
    } else if (*s->p == '"') {
        free(json_string(s));
    } else if (json_is(s, '[')) {
        if (!json_is(s, ']')) {
            do {
                json_value(s);
            } while (json_is(s, ','));
            json_must(s, ']');
        }
    } else {
        (void)json_number(s);
    }
}

static inline struct numbers json_numbers(struct snapshot *s)
{
    struct numbers v = {NULL, 0};
    size_t room = 0;
    json_must(s, '[');
    if (json_is(s, ']')) {
        return v;
    }
    do {
        if (v.count == room) {
            room = room == 0 ? 1024 : 2 * room;
            v.at = realloc(v.at, room * sizeof *v.at);
        }
        v.at[v.count++] = json_number(s);
    } while (json_is(s, ','));
    json_must(s, ']');
    return v;
}

static inline void json_strings(struct snapshot *s)
{
    size_t room = 0;
    json_must(s, '[');
    do {
        if (s->nstrings == room) {
            room = room == 0 ? 1024 : 2 * room;
            s->strings = realloc(s->strings, room * sizeof *s->strings);
        }
        s->strings[s->nstrings++] = json_string(s);
    } while (json_is(s, ','));
    json_must(s, ']');
}

static inline bool snapshot_head_member(struct snapshot *s, const char *key)
{
    bool nodes = strcmp(key, "node_count") == 0;
    if (nodes || strcmp(key, "edge_count") == 0) {
        *(nodes ? &s->node_count : &s->edge_count) = json_number(s);
        return true;
    }
    return false;
}

static inline bool snapshot_member(struct snapshot *s, const char *key)
{
    if (strcmp(key, "snapshot") == 0) {
        json_object(s, snapshot_head_member);
    } else if (strcmp(key, "nodes") == 0) {
        s->nodes = json_numbers(s);
    } else if (strcmp(key, "edges") == 0) {
        s->edges = json_numbers(s);
    } else if (strcmp(key, "strings") == 0) {
        json_strings(s);
    } else {
        return false;
    }
    return true;
}

static inline uint64_t snapshot_node(const struct snapshot *s, size_t node, int field)
{
    return s->nodes.at[node * NODE_FIELDS + (size_t)field];
}

static inline uint64_t snapshot_edge(const struct snapshot *s, size_t edge, int field)
{
    return s->edges.at[edge * EDGE_FIELDS + (size_t)field];
}

static inline const char *snapshot_name(const struct snapshot *s, size_t node)
{
    return s->strings[snapshot_node(s, node, NODE_NAME)];
}

static inline size_t snapshot_target(const struct snapshot *s, size_t edge)
{
    return snapshot_edge(s, edge, EDGE_TO) / NODE_FIELDS;
}

static inline void snapshot_check_edges(struct snapshot *s)
{
    s->first_edge = calloc(s->nnodes + 1, sizeof *s->first_edge);
    for (size_t i = 0; i < s->nnodes; i++) {
        EXPECT_LT(snapshot_node(s, i, NODE_TYPE), 15);
        EXPECT_LT(snapshot_node(s, i, NODE_NAME), s->nstrings);
        s->first_edge[i + 1] = s->first_edge[i] + (size_t)snapshot_node(s, i, NODE_EDGE_COUNT);
    }
    EXPECT_EQ(s->first_edge[s->nnodes], s->edge_count);
    for (size_t i = 0; i < s->edge_count; i++) {
        EXPECT_LT(snapshot_edge(s, i, EDGE_TYPE), 7);
        EXPECT(snapshot_edge(s, i, EDGE_TYPE) == EDGE_ELEMENT ||
               snapshot_edge(s, i, EDGE_NAME) < s->nstrings);
        EXPECT_EQ(snapshot_edge(s, i, EDGE_TO) % NODE_FIELDS, 0);
        EXPECT_LT(snapshot_target(s, i), s->nnodes);
    }
}

/* Each node is reached from the first. */
static inline void snapshot_check_reached(const struct snapshot *s)
{
    bool *seen = calloc(s->nnodes, sizeof *seen);
    size_t *queue = calloc(s->nnodes, sizeof *queue);
    size_t n = 1;
    seen[0] = true;
    for (size_t i = 0; i < n; i++) {
        for (size_t e = s->first_edge[queue[i]]; e < s->first_edge[queue[i] + 1]; e++) {
            size_t to = snapshot_target(s, e);
            if (!seen[to]) {
                seen[to] = true;
                queue[n++] = to;
            }
        }
    }
    EXPECT_EQ(n, s->nnodes);
    free(seen);
    free(queue);
}

static inline void snapshot_parse(struct snapshot *s, const char *text)
{
    memset(s, 0, sizeof *s);
    s->text = s->p = text;
    json_object(s, snapshot_member);
    json_blanks(s);
    JSON_EXPECT(s, *s->p == '\0');
    EXPECT_EQ(s->nodes.count % NODE_FIELDS, 0);
    s->nnodes = s->nodes.count / NODE_FIELDS;
    EXPECT_EQ(s->node_count, s->nnodes);
    EXPECT_EQ(s->edges.count, s->edge_count * EDGE_FIELDS);
    snapshot_check_edges(s);
    snapshot_check_reached(s);
}

/* What a file without a name holds. */
static inline char *snapshot_read_file(int fd)
{
    struct stat st;
    EXPECT_EQ(fstat(fd, &st), 0);
    char *text = malloc((size_t)st.st_size + 1);
    for (size_t done = 0; done < (size_t)st.st_size;) {
        ssize_t n = pread(fd, text + done, (size_t)st.st_size - done, (off_t)done);
        EXPECT_GT(n, 0);
        done += (size_t)n;
    }
    text[st.st_size] = '\0';
    return text;
}

static inline void snapshot_take(struct snapshot *s)
{
    int fd = memfd_create("dump", MFD_CLOEXEC);
    EXPECT_GE(fd, 0);
    EXPECT_MSG(loam_write_heap_dump(fd) == 0, "loam_write_heap_dump: %s", strerror(errno));
    char *text = snapshot_read_file(fd);
    snapshot_parse(s, text);
    free(text);
    close(fd);
}

static inline void snapshot_free(struct snapshot *s)
{
    for (size_t i = 0; i < s->nstrings; i++) {
        free(s->strings[i]);
    }
    free(s->strings);
    free(s->nodes.at);
    free(s->edges.at);
    free(s->first_edge);
}

/* How many nodes have the name; *node is the last. */
static inline size_t snapshot_named(const struct snapshot *s, const char *name, size_t *node)
{
    size_t n = 0;
    for (size_t i = 0; i < s->nnodes; i++) {
        if (strcmp(snapshot_name(s, i), name) == 0) {
            *node = i;
            n++;
        }
    }
    return n;
}

/* The target of node's edge with this name, or with this index where name is NULL; 0: there is none. */
static inline size_t snapshot_follow(const struct snapshot *s, size_t node, const char *name,
                                     uint64_t index)
{
    for (size_t e = s->first_edge[node]; e < s->first_edge[node + 1]; e++) {
        bool element = snapshot_edge(s, e, EDGE_TYPE) == EDGE_ELEMENT;
        uint64_t said = snapshot_edge(s, e, EDGE_NAME);
        if (name == NULL ? element && said == index
                         : !element && strncmp(s->strings[said], name, strlen(name)) == 0) {
            return snapshot_target(s, e);
        }
    }
    return 0;
}

#endif
