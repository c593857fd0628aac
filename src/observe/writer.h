/* writer.h - bytes for a descriptor, buffered, without the C library's streams: a copy of the process may not use them. */
#ifndef OBSERVE_WRITER_H
#define OBSERVE_WRITER_H

#include "base/compiler.h"

struct writer {
    int fd;
    int error; /* the first that came; nothing is written after it */
    size_t used;
    char *buffer;
};

int writer_init(struct writer *w, int fd); /* 0, or an errno value */
int writer_end(struct writer *w);          /* all is written: 0, or an errno value */

void writer_put(struct writer *w, const char *text, size_t n);
void writer_text(struct writer *w, const char *text);
void writer_number(struct writer *w, uint64_t n);
void writer_quoted(struct writer *w, const char *text); /* as JSON: what is no UTF-8 is replaced */
PRINTF_LIKE(2, 3)
void writer_format(struct writer *w, const char *fmt, ...); /* 255 bytes at most */

#endif
