/* json.h - a strict reader of JSON (RFC 8259): what it takes any other takes.
 *
 * json_parse gives NULL, and where it stopped, for what is not one whole document. Strings are kept as they are written,
 * without quotes, escapes checked and not undone. Numbers keep their text. */
#ifndef TESTS_SUPPORT_JSON_H
#define TESTS_SUPPORT_JSON_H

#include "test.h"

enum json_kind { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json {
    enum json_kind kind;
    const char *text; /* of a number, a string, a name that stands before it; not ended by zero */
    size_t bytes;
    const char *key; /* in an object */
    size_t key_bytes;
    struct json *first, *next; /* children, in order */
};

struct json_reader {
    const char *at, *limit;
    struct json *nodes; /* a block of them; they are never freed */
    size_t free;
};

enum { JSON_DEPTH = 32, JSON_BLOCK = 4096 };

static inline struct json *json_node(struct json_reader *r, enum json_kind kind)
{
    if (r->free == 0) {
        r->nodes = (struct json *)calloc(JSON_BLOCK, sizeof *r->nodes);
        EXPECT_NOT_NULL(r->nodes);
        r->free = JSON_BLOCK;
    }
    struct json *j = &r->nodes[--r->free];
    j->kind = kind;
    return j;
}

static inline void json_space(struct json_reader *r)
{
    while (r->at < r->limit && strchr(" \t\r\n", *r->at) != NULL && *r->at != 0) {
        r->at++;
    }
}

static inline bool json_is(struct json_reader *r, char c)
{
    json_space(r);
    if (r->at == r->limit || *r->at != c) {
        return false;
    }
    r->at++;
    return true;
}

static inline size_t json_digits(struct json_reader *r)
{
    const char *from = r->at;
    while (r->at < r->limit && *r->at >= '0' && *r->at <= '9') {
        r->at++;
    }
    return (size_t)(r->at - from);
}

static inline bool json_next_is(struct json_reader *r, const char *any)
{
    bool is = r->at < r->limit && *r->at != 0 && strchr(any, *r->at) != NULL;
    r->at += is ? 1 : 0;
    return is;
}

static inline bool json_number(struct json_reader *r, struct json *j)
{
    j->text = r->at;
    (void)json_next_is(r, "-");
    const char *whole = r->at;
    size_t digits = json_digits(r);
    if (digits == 0 || (digits > 1 && *whole == '0')) {
        return false;
    }
    if (json_next_is(r, ".") && json_digits(r) == 0) {
        return false;
    }
    if (json_next_is(r, "eE")) {
        (void)json_next_is(r, "+-");
        if (json_digits(r) == 0) {
            return false;
        }
    }
    j->bytes = (size_t)(r->at - j->text);
    return true;
}

static inline bool json_string(struct json_reader *r, const char **text, size_t *bytes)
{
    *text = r->at;
    while (r->at < r->limit && *r->at != '"') {
        unsigned char c = (unsigned char)*r->at++;
        if (c < ' ') {
            return false;
        }
        if (c != '\\') {
            continue;
        }
        if (json_next_is(r, "u")) {
            for (int i = 0; i < 4; i++) {
                if (!json_next_is(r, "0123456789abcdefABCDEF")) {
                    return false;
                }
            }
        } else if (!json_next_is(r, "\"\\/bfnrt")) {
            return false;
        }
    }
    *bytes = (size_t)(r->at - *text);
    return json_next_is(r, "\"");
}

static inline struct json *json_value(struct json_reader *r, int depth);

static inline struct json *json_children(struct json_reader *r, enum json_kind kind, char end,
                                         int depth)
{
    struct json *j = json_node(r, kind);
    struct json **last = &j->first;
    if (json_is(r, end)) {
        return j;
    }
    do {
        const char *key = NULL;
        size_t key_bytes = 0;
        if (kind == JSON_OBJECT &&
            (!json_is(r, '"') || !json_string(r, &key, &key_bytes) || !json_is(r, ':'))) {
            return NULL;
        }
        struct json *child = json_value(r, depth + 1);
        if (child == NULL) {
            return NULL;
        }
        child->key = key;
        child->key_bytes = key_bytes;
        *last = child;
        last = &child->next;
    } while (json_is(r, ','));
    return json_is(r, end) ? j : NULL;
}

static inline struct json *json_word(struct json_reader *r, const char *word, enum json_kind kind)
{
    size_t n = strlen(word);
    if ((size_t)(r->limit - r->at) < n || memcmp(r->at, word, n) != 0) {
        return NULL;
    }
    struct json *j = json_node(r, kind);
    j->text = r->at;
    j->bytes = n;
    r->at += n;
    return j;
}

static inline struct json *json_value(struct json_reader *r, int depth)
{
    json_space(r);
    if (depth > JSON_DEPTH || r->at == r->limit) {
        return NULL;
    }
    switch (*r->at) {
    case '{':
        r->at++;
        return json_children(r, JSON_OBJECT, '}', depth);
    case '[':
        r->at++;
        return json_children(r, JSON_ARRAY, ']', depth);
    case '"': {
        struct json *j = json_node(r, JSON_STRING);
        r->at++;
        return json_string(r, &j->text, &j->bytes) ? j : NULL;
    }
    case 't':
        return json_word(r, "true", JSON_BOOL);
    case 'f':
        return json_word(r, "false", JSON_BOOL);
    case 'n':
        return json_word(r, "null", JSON_NULL);
    default: {
        struct json *j = json_node(r, JSON_NUMBER);
        return json_number(r, j) ? j : NULL;
    }
    }
}

static inline struct json *json_parse(const char *text, size_t bytes, size_t *stopped)
{
    struct json_reader r = {text, text + bytes, NULL, 0};
    struct json *j = json_value(&r, 0);
    json_space(&r);
    *stopped = (size_t)(r.at - text);
    return r.at == r.limit ? j : NULL;
}

/* A member of an object; NULL: it has none of this name. */
static inline const struct json *json_get(const struct json *object, const char *key)
{
    const struct json *j = object != NULL && object->kind == JSON_OBJECT ? object->first : NULL;
    while (j != NULL && (j->key_bytes != strlen(key) || memcmp(j->key, key, j->key_bytes) != 0)) {
        j = j->next;
    }
    return j;
}

static inline bool json_is_text(const struct json *j, const char *text)
{
    return j != NULL && j->kind == JSON_STRING && j->bytes == strlen(text) &&
           memcmp(j->text, text, j->bytes) == 0;
}

#endif
