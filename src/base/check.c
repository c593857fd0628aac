/* check.c - the failure path: no allocation, no lock, one write per message. */
#include "base/check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static PRINTF_LIKE(2, 0) void print_line(const char *prefix, const char *fmt, va_list ap)
{
    char line[1024];
    int n = snprintf(line, sizeof line, "%s", prefix);
    n += vsnprintf(line + n, sizeof line - (size_t)n, fmt, ap);
    size_t len = (size_t)n < sizeof line - 1 ? (size_t)n : sizeof line - 2;
    line[len++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, len);
    (void)ignored;
}

void throwf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    print_line("loam: fatal: ", fmt, ap);
    va_end(ap);
    abort();
}

void warnf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    print_line("loam: ", fmt, ap);
    va_end(ap);
}
