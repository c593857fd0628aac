/* connection.c - one client: input becomes commands, replies become output.
 *
 * The goroutine of a client reads where it needs something to go on with, and parks there; so the
 * parser keeps its state in local variables, as if there were nobody else. Replies are gathered,
 * and sent when all input that has been read is consumed, or when the buffer is full: there is
 * never more than this buffer for a client who does not read. While it waits for him it takes in
 * what he sends, up to a limit: he may be one who looks at replies only after his last command.
 *
 * While a command runs no buffer is moved in place. A larger one takes over, and the old one stays
 * as long as a local variable points into it.
 */
#define _GNU_SOURCE
#include "kv.h"

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BUFFER = 16 << 10,     /* bytes of the output, and of the input for small commands */
    TRUST_MAX = 1 << 20,   /* bytes for which there is a buffer before they have come */
    AHEAD_MAX = 64 << 20,  /* bytes of input that are taken in while the client does not read */
    INLINE_MAX = 64 << 10, /* bytes of an inline command, and of a number */
    ARGS_MAX = 1 << 20,    /* arguments of a command */
    ARGS_KEPT = 1 << 10,   /* from one command to the next */
    FAREWELL_MS = 1000     /* for a client to read why he is sent away */
};

atomic_uint_least64_t connections_now, connections_ever, commands_ever;

/* ---- input ---- */

static bool buffer_reserve(struct buffer *b, size_t n)
{
    if (b->size - b->used >= n)
        return true;
    size_t size = b->size < BUFFER ? BUFFER : b->size;
    while (size - b->used < n)
        size *= 2;
    char *bytes = loam_alloc_noscan(size);
    if (bytes == NULL)
        return false;
    if (b->used > 0)
        memcpy(bytes, b->bytes, b->used);
    LOAM_SET(b->bytes, bytes);
    b->size = size;
    return true;
}

/* After a large command. Who sends more like it keeps his buffer. */
static bool buffer_is_too_large(const struct buffer *b)
{
    return b->size > TRUST_MAX || (b->size > BUFFER && b->used < b->size / 4);
}

/* Reads behind what is there; so much is wanted. */
static bool input_take(connection *c, size_t wanted)
{
    ssize_t n = -1;
    if (buffer_reserve(&c->in, wanted < TRUST_MAX ? wanted : TRUST_MAX))
        do
            n = loam_read(c->fd, c->in.bytes + c->in.used, c->in.size - c->in.used);
        while (n < 0 && errno == EINTR);
    if (n > 0)
        c->in.used += (size_t)n;
    else
        c->ended = true;
    return n > 0;
}

static bool output_flush(connection *c);

static bool protocol_error(connection *c, const char *what)
{
    reply_error(c, "ERR Protocol error: %s", what);
    c->closing = true;
    return false;
}

/* More input for this command, when all replies are on their way. false: there is none. */
static bool input_more(connection *c, size_t wanted)
{
    atomic_fetch_add_explicit(&commands_ever, c->commands, memory_order_relaxed);
    c->commands = 0;
    if (!output_flush(c) || c->ended)
        return false;
    size_t rest = c->in.used - c->start;
    if (rest >= settings.command_max)
        return protocol_error(c, "command too large");
    if (rest == 0 && buffer_is_too_large(&c->in)) {
        LOAM_SET(c->in.bytes, NULL);
        c->in.size = 0;
    } else if (rest > 0 && c->start > 0) {
        memmove(c->in.bytes, c->in.bytes + c->start, rest);
    }
    c->in.used = rest;
    c->at -= c->start;
    c->start = 0;
    return input_take(c, wanted);
}

static bool input_there(connection *c, size_t n)
{
    for (size_t there; (there = c->in.used - c->at) < n;)
        if (!input_more(c, n - there))
            return false;
    return true;
}

/* ---- from input to commands ---- */

static struct slice slice_of(const connection *c, struct range r)
{
    return (struct slice){c->in.bytes + c->start + r.at, r.length};
}

struct slice arg(const connection *c, size_t i)
{
    return slice_of(c, c->args[i]);
}

static bool arg_add(connection *c, size_t at, size_t length)
{
    if (c->argc == c->args_size) {
        size_t size = c->args_size == 0 ? 16 : 2 * c->args_size;
        struct range *args = loam_alloc_noscan(size * sizeof *args);
        if (args == NULL)
            return protocol_error(c, "out of memory");
        if (c->argc > 0)
            memcpy(args, c->args, c->argc * sizeof *args);
        LOAM_SET(c->args, args);
        c->args_size = size;
    }
    c->args[c->argc++] = (struct range){at - c->start, length};
    return true;
}

/* The next line without its end. */
static bool line_read(connection *c, struct range *line, const char *too_long)
{
    for (size_t looked = 0;;) {
        size_t there = c->in.used - c->at;
        char *from = c->in.bytes + c->at;
        char *end = there > looked ? memchr(from + looked, '\n', there - looked) : NULL;
        if (end != NULL ? end - from > INLINE_MAX : there > INLINE_MAX)
            return protocol_error(c, too_long);
        if (end != NULL) {
            size_t length = (size_t)(end - from);
            *line = (struct range){c->at - c->start, length - (length > 0 && end[-1] == '\r')};
            c->at += length + 1;
            return true;
        }
        looked = there;
        if (!input_more(c, 1))
            return false;
    }
}

/* A character and a number: what RESP begins everything with. */
static bool header_read(connection *c, int64_t max, int64_t *n, const char *too_long,
                        const char *bad)
{
    struct range line;
    if (!line_read(c, &line, too_long))
        return false;
    struct range number = {line.at + 1, line.length - 1};
    return (integer_parse(slice_of(c, number), n) && *n <= max) || protocol_error(c, bad);
}

/* An argument: `$3\r\nfoo\r\n`. */
static bool bulk_read(connection *c)
{
    static const char bad[] = "invalid bulk length";
    int64_t length;
    if (!input_there(c, 1))
        return false;
    if (c->in.bytes[c->at] != '$')
        return protocol_error(c, "expected '$' before an argument");
    if (!header_read(c, VALUE_MAX, &length, "too big bulk count string", bad))
        return false;
    if (length < 0)
        return protocol_error(c, bad);
    if (!input_there(c, (size_t)length + 2))
        return false;
    if (memcmp(c->in.bytes + c->at + length, "\r\n", 2) != 0)
        return protocol_error(c, "expected the end of a line behind an argument");
    if (!arg_add(c, c->at, (size_t)length))
        return false;
    c->at += (size_t)length + 2;
    return true;
}

static bool array_read(connection *c)
{
    int64_t n;
    if (!header_read(c, ARGS_MAX, &n, "too big mbulk count string", "invalid multibulk length"))
        return false;
    while (n > 0 && bulk_read(c))
        n--;
    return n <= 0;
}

static int hex_digit(char c)
{
    return !isxdigit((unsigned char)c) ? -1 : c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

/* The character at *p of a quoted argument; *p moves behind it. */
static char unescape(const char **p, const char *end, char quote)
{
    static const char named[] = "n\nr\rt\tb\ba\a";
    char c = *(*p)++;
    if (c != '\\' || *p == end || (quote == '\'' && **p != quote))
        return c;
    c = *(*p)++;
    if (c == 'x' && end - *p >= 2 && hex_digit((*p)[0]) >= 0 && hex_digit((*p)[1]) >= 0) {
        *p += 2;
        return (char)(hex_digit((*p)[-2]) << 4 | hex_digit((*p)[-1]));
    }
    for (const char *name = named; *name != 0; name += 2)
        if (*name == c && quote == '"')
            return name[1];
    return c;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

/* A command as one types it: words, or strings in quotes. They are unescaped where they lie. */
static bool inline_read(connection *c)
{
    struct range line;
    if (!line_read(c, &line, "too big inline request"))
        return false;
    const char *p = slice_of(c, line).at, *end = p + line.length;
    for (;;) {
        while (p < end && is_blank(*p))
            p++;
        if (p == end)
            return true;
        size_t at = (size_t)(p - c->in.bytes);
        char *out = c->in.bytes + at, quote = 0;
        while (p < end && (quote != 0 || !is_blank(*p))) {
            if (quote == 0 && (*p == '"' || *p == '\''))
                quote = *p++;
            else if (quote == 0)
                *out++ = *p++;
            else if (*p != quote)
                *out++ = unescape(&p, end, quote);
            else if (++p == end || is_blank(*p))
                quote = 0;
            else
                break; /* nothing may stand behind the end of a string */
        }
        if (quote != 0)
            return protocol_error(c, "unbalanced quotes in request");
        if (!arg_add(c, at, (size_t)(out - c->in.bytes) - at))
            return false;
    }
}

/* false: there is none any more. */
static bool command_read(connection *c)
{
    c->start = c->at;
    c->argc = 0;
    if (c->args_size > ARGS_KEPT) {
        LOAM_SET(c->args, NULL);
        c->args_size = 0;
    }
    if (!input_there(c, 1))
        return false;
    return c->in.bytes[c->at] == '*' ? array_read(c) : inline_read(c);
}

/* ---- replies ---- */

static void output_wait(connection *c)
{
    size_t rest = c->in.used - c->start;
    bool ahead = !c->ended && rest < AHEAD_MAX && rest < settings.command_max;
    int events = loam_wait_fd(c->fd, POLLOUT | (ahead ? POLLIN : 0), -1);
    if (events < 0)
        c->broken = true;
    else if (ahead && (events & POLLIN) != 0)
        input_take(c, 1);
}

static bool output_send(connection *c, const char *bytes, size_t n)
{
    while (n > 0 && !c->broken) {
        ssize_t sent = send(c->fd, bytes, n, MSG_NOSIGNAL);
        if (sent >= 0) {
            bytes += sent;
            n -= (size_t)sent;
        } else if (errno == EAGAIN) {
            output_wait(c);
        } else if (errno != EINTR) {
            c->broken = true;
        }
    }
    return !c->broken;
}

static bool output_flush(connection *c)
{
    size_t n = c->out.used;
    c->out.used = 0;
    return output_send(c, c->out.bytes, n);
}

/* What is larger than the buffer goes out from where it lies. */
static void output(connection *c, const char *bytes, size_t n)
{
    if (n > BUFFER - c->out.used && !output_flush(c))
        return;
    if (n > BUFFER) {
        output_send(c, bytes, n);
    } else if (n > 0) {
        memcpy(c->out.bytes + c->out.used, bytes, n);
        c->out.used += n;
    }
}

static void output_number(connection *c, char kind, int64_t n)
{
    char text[1 + INTEGER_CHARS + 2] = {kind};
    size_t end = 1 + integer_print(n, text + 1);
    text[end++] = '\r';
    text[end++] = '\n';
    output(c, text, end);
}

void reply_line(connection *c, const char *line)
{
    output(c, line, strlen(line));
    output(c, "\r\n", 2);
}

/* What a client has said may be part of it: it stays one line. */
void reply_error(connection *c, const char *format, ...)
{
    char text[512] = "-";
    va_list more;
    va_start(more, format);
    vsnprintf(text + 1, sizeof text - 1, format, more);
    va_end(more);
    for (char *p = text; *p != 0; p++)
        if (*p == '\r' || *p == '\n')
            *p = ' ';
    reply_line(c, text);
}

void reply_integer(connection *c, int64_t n)
{
    output_number(c, ':', n);
}

void reply_array(connection *c, size_t n)
{
    output_number(c, '*', (int64_t)n);
}

void reply_bulk(connection *c, struct slice bytes)
{
    output_number(c, '$', (int64_t)bytes.length);
    output(c, bytes.at, bytes.length);
    output(c, "\r\n", 2);
}

void reply_text(connection *c, const char *text)
{
    reply_bulk(c, (struct slice){text, strlen(text)});
}

void reply_null(connection *c)
{
    reply_line(c, "$-1");
}

/* ---- the goroutine ---- */

/* Closing while there is input would throw away what the client has not yet read of the replies. */
static void connection_say_farewell(connection *c)
{
    int64_t deadline = now_ms() + FAREWELL_MS;
    if (shutdown(c->fd, SHUT_WR) != 0)
        return;
    while (!c->ended && now_ms() < deadline &&
           loam_wait_fd(c->fd, POLLIN, deadline * 1000000) > 0) {
        c->in.used = c->start = 0;
        input_take(c, 1);
    }
}

void connection_main(void *arg)
{
    connection *c = arg;
    atomic_fetch_add_explicit(&connections_now, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&connections_ever, 1, memory_order_relaxed);
    if (buffer_reserve(&c->out, BUFFER))
        while (!c->broken && !c->closing && command_read(c))
            command_run(c);
    if (output_flush(c) && c->closing)
        connection_say_farewell(c);
    atomic_fetch_sub_explicit(&connections_now, 1, memory_order_relaxed);
    close(c->fd);
}
