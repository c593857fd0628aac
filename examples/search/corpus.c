/* corpus.c - which files to read, and how text becomes words.
 *
 * All of this is ordinary C with malloc: the list of files lives as long as the process, so there
 * is nothing for a collector to find.
 */
#define _XOPEN_SOURCE 700
#include "search.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct corpus *walked; /* nftw passes no argument to its callback */
static size_t walked_room;

static void *checked(void *p)
{
    if (p == NULL) {
        fprintf(stderr, "search: out of memory\n");
        exit(1);
    }
    return p;
}

static int64_t modified_ns(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

static int visit(const char *path, const struct stat *st, int kind, struct FTW *where)
{
    (void)where;
    size_t length = strlen(path);
    bool packed = length > 3 && strcmp(path + length - 3, ".gz") == 0;
    if (kind != FTW_F || !S_ISREG(st->st_mode) || packed || st->st_size <= 0 ||
        st->st_size > FILE_MAX_BYTES)
        return 0;
    if (walked->count == walked_room) {
        walked_room = walked_room ? 2 * walked_room : 1024;
        walked->files = checked(realloc(walked->files, walked_room * sizeof *walked->files));
    }
    struct source *s = &walked->files[walked->count++];
    *s = (struct source){
        .path = checked(strdup(path)), .size = (size_t)st->st_size, .modified_ns = modified_ns(st)};
    return 0;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct source *)a)->path, ((const struct source *)b)->path);
}

/* Sort by path; a file that was reached through two folders stays once. Gives how many are left. */
static size_t drop_repeated(struct source *files, size_t count)
{
    size_t kept = 0;
    qsort(files, count, sizeof *files, by_path);
    for (size_t i = 0; i < count; i++)
        if (kept > 0 && strcmp(files[kept - 1].path, files[i].path) == 0)
            free(files[i].path);
        else
            files[kept++] = files[i];
    return kept;
}

/* Choose the plain text files of the folders, at random until max_bytes are together: the same ones
 * each time. Each is read to see whether it is text, which leaves it in the system's cache too. */
void corpus_load(struct corpus *c, const char *const folders[], size_t n, size_t max_bytes)
{
    *c = (struct corpus){0};
    walked = c;
    walked_room = 0;
    for (size_t i = 0; i < n; i++) {
        char *real = realpath(folders[i], NULL); /* the folder itself may be a link */
        if (real != NULL)
            nftw(real, visit, 32, FTW_PHYS); /* which follows no links, so never walks in circles */
        free(real);
    }
    if (c->count == 0)
        return;
    size_t found = drop_repeated(c->files, c->count);
    c->count = 0;

    uint64_t dice = 1;
    char *text = checked(malloc(FILE_MAX_BYTES));
    for (size_t i = 0; i < found; i++) {
        size_t pick = i + random_below(&dice, found - i);
        struct source s = c->files[pick];
        c->files[pick] = c->files[i];
        if (c->bytes + s.size > max_bytes || !source_read(&s, text) ||
            memchr(text, 0, s.size) != NULL) {
            free(s.path);
            continue;
        }
        c->bytes += s.size;
        c->files[c->count++] = s;
    }
    free(text);
}

/* Read a whole file. False if it is gone or no longer what it was when the corpus was chosen. */
bool source_read(const struct source *s, char *text)
{
    int fd = open(s->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    struct stat st;
    bool same = fstat(fd, &st) == 0 && (size_t)st.st_size == s->size &&
                modified_ns(&st) == s->modified_ns;
    size_t got = 0;
    while (same && got < s->size) {
        ssize_t n = read(fd, text + got, s->size - got);
        same = n > 0;
        got += n > 0 ? (size_t)n : 0;
    }
    close(fd);
    return same;
}

/* Letters, digits, '_' and everything beyond ASCII, so that UTF-8 words stay whole. Gives the lower
 * case, or 0 between words. */
static unsigned char letter(unsigned char c)
{
    if (c >= 'A' && c <= 'Z')
        return (unsigned char)(c | 0x20);
    bool inside = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c >= 0x80;
    return inside ? c : 0;
}

/* The next word from *at on; lowers it in place. False at the end of the text. */
bool word_next(char *text, size_t size, size_t *at, word *w)
{
    size_t i = *at;
    for (;;) {
        while (i < size && letter((unsigned char)text[i]) == 0)
            i++;
        if (i == size)
            return false;
        size_t start = i;
        uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
        for (unsigned char c; i < size && (c = letter((unsigned char)text[i])) != 0; i++) {
            text[i] = (char)c;
            hash = (hash ^ c) * 0x100000001b3u;
        }
        if (i - start < WORD_MIN || i - start > WORD_MAX)
            continue;
        hash ^= hash >> 32; /* FNV's low bits are its best: the maps use both ends */
        w->hash = hash * 0x9e3779b97f4a7c15u;
        w->start = (uint32_t)start;
        w->length = (uint32_t)(i - start);
        *at = i;
        return true;
    }
}

/* Remember which words a file has, apart from the index, so that answers can be checked against
 * something the collector never touched: three bits of at least two for each byte of text. */
void source_take_fingerprint(struct source *s, char *text)
{
    size_t words = 1;
    while (words * 32 < s->size)
        words *= 2;
    uint64_t *bits = checked(calloc(words, sizeof *bits));
    word w;
    for (size_t at = 0; word_next(text, s->size, &at, &w);)
        for (unsigned shift = 0; shift < 60; shift += 20) {
            uint64_t bit = (w.hash >> shift) & (words * 64 - 1);
            bits[bit / 64] |= (uint64_t)1 << bit % 64;
        }
    s->print_words = words;
    s->fingerprint = bits;
}

/* False: the word is certainly not in the file. True is right in more than 99 of 100 cases. */
bool source_may_contain(const struct source *s, uint64_t hash)
{
    for (unsigned shift = 0; shift < 60; shift += 20) {
        uint64_t bit = (hash >> shift) & (s->print_words * 64 - 1);
        if ((s->fingerprint[bit / 64] >> bit % 64 & 1) == 0)
            return false;
    }
    return true;
}
