/* writer.c - text for a descriptor.
 *
 * Model       A full buffer is written until all of it has gone, over interruptions and descriptors that do not wait. The
 *             first error stays, and what is put after it is dropped: who writes looks at it now and then.
 * Tests       tests/api/heapdump.c
 */
#include "observe/writer.h"

#include "os/os.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { BUFFER = 64 << 10, PATIENCE_NS = 1000000000 /* then it looks again */ };

int writer_init(struct writer *w, int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) {
        return EBADF;
    }
    *w = (struct writer){.fd = fd, .buffer = os_map(BUFFER)};
    return w->buffer == NULL ? ENOMEM : 0;
}

static void flush(struct writer *w)
{
    for (size_t done = 0; done < w->used && w->error == 0;) {
        int64_t n = os_write(w->fd, w->buffer + done, w->used - done, PATIENCE_NS);
        done += n > 0 ? (size_t)n : 0;
        w->error = n < 0 ? (int)-n : 0;
    }
    w->used = 0;
}

int writer_end(struct writer *w)
{
    flush(w);
    os_release(w->buffer, BUFFER);
    return w->error;
}

void writer_put(struct writer *w, const char *text, size_t n)
{
    while (n > BUFFER - w->used) {
        size_t part = BUFFER - w->used;
        memcpy(w->buffer + w->used, text, part);
        w->used = BUFFER;
        flush(w);
        text += part;
        n -= part;
    }
    memcpy(w->buffer + w->used, text, n);
    w->used += n;
}

void writer_text(struct writer *w, const char *text)
{
    writer_put(w, text, strlen(text));
}

void writer_number(struct writer *w, uint64_t n)
{
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + n % 10);
        n /= 10;
    } while (n != 0);
    writer_put(w, digits + at, sizeof digits - at);
}

void writer_format(struct writer *w, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n > 0) {
        writer_put(w, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
    }
}

/* Bytes of the character of UTF-8 that begins at p, which ends with a zero; 0: it is none. */
static size_t utf8_bytes(const unsigned char *p)
{
    size_t n = p[0] < 0x80                    ? 1
               : p[0] >= 0xc2 && p[0] <= 0xdf ? 2
               : p[0] >= 0xe0 && p[0] <= 0xef ? 3
               : p[0] >= 0xf0 && p[0] <= 0xf4 ? 4
                                              : 0;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    bool overlong = (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90);
    bool beyond = (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf4 && p[1] > 0x8f);
    return n > 1 && (overlong || beyond) ? 0 : n;
}

void writer_quoted(struct writer *w, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;
    writer_put(w, "\"", 1);
    while (*p != '\0') {
        size_t n = utf8_bytes(p);
        if (n == 0) {
            writer_text(w, "\\ufffd");
        } else if (*p == '"' || *p == '\\') {
            writer_put(w, "\\", 1);
            writer_put(w, (const char *)p, 1);
        } else if (*p < 0x20 || *p == 0x7f) {
            writer_format(w, "\\u%04x", *p);
        } else {
            writer_put(w, (const char *)p, n);
        }
        p += n == 0 ? 1 : n;
    }
    writer_put(w, "\"", 1);
}
