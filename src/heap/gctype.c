/* gctype.c - interning of type descriptors.
 *
 * Purpose     Turns what LOAM_TYPE declares into the marker's form, once per content.
 * Invariants  [gctype.forever]  a gctype is never freed and never changes but for spanclass.
 * Locking     `types.lock` around the hash table; the result is published in the descriptor.
 * From Go     the mask of up to 64 words is Go's; arrays and long types repeat it by element.
 * Tests       tests/api/types.c
 */
#include "heap/gctype.h"

#include "heap/fixalloc.h"
#include "heap/mheap.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { WORD = sizeof(void *), NBUCKETS = 1024 };

struct gctype gctype_noscan = {
    .kind = SCAN_NONE, .id = 1, .size = 1, .align = 16, .name = "noscan", .field_names = ""};
struct gctype gctype_conservative = {
    .kind = SCAN_ALL, .id = 2, .size = WORD, .align = 16, .name = "untyped", .field_names = ""};

static struct {
    struct mutex lock;
    uint32_t next_id;
    _Atomic uint64_t bytes;
    struct gctype *buckets[NBUCKETS];
} types = {.next_id = 3};

static uint64_t hash_bytes(uint64_t h, const void *data, size_t n)
{
    const unsigned char *p = data; /* FNV-1a */
    for (size_t i = 0; i < n; i++) {
        h = (h ^ p[i]) * UINT64_C(0x100000001b3);
    }
    return h;
}

static uint64_t type_hash(const loam_type *t)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    h = hash_bytes(h, t->name, strlen(t->name));
    h = hash_bytes(h, t->fields, t->nfields * sizeof *t->fields);
    h = hash_bytes(h, &t->size, sizeof t->size);
    return h;
}

static bool same_type(const struct gctype *g, const loam_type *t)
{
    bool flex = (t->flags & LOAM_TYPE_IS_FLEX) != 0;
    return g->size == t->size && g->align == t->align && g->nfields == t->nfields &&
           g->flex == flex && g->tail_offset == t->tail_offset && g->tail_elem == t->tail_size &&
           g->tail_words == ((t->flags & LOAM_TYPE_TAIL_IS_POINTERS) != 0) && g->scan == t->scan &&
           strcmp(g->name, t->name) == 0 && strcmp(g->field_names, t->field_names) == 0 &&
           (t->nfields == 0 || memcmp(g->fields, t->fields, t->nfields * sizeof *t->fields) == 0);
}

static bool well_formed(const loam_type *t)
{
    if (t->size == 0 && !(t->flags & LOAM_TYPE_IS_FLEX)) {
        return false;
    }
    if (t->align > 16 || t->size > SIZE_MAX / 2 ||
        ((t->flags & LOAM_TYPE_IS_SCANNED) && t->scan == NULL)) {
        return false;
    }
    for (uint32_t i = 0; i < t->nfields; i++) {
        if (t->fields[i].offset % WORD != 0 ||
            t->fields[i].offset + (size_t)t->fields[i].words * WORD > t->size) {
            return false;
        }
    }
    return true;
}

static void choose_kind(struct gctype *g, const loam_type *t)
{
    if (t->flags & LOAM_TYPE_IS_SCANNED) {
        g->kind = SCAN_FN;
    } else if (g->flex) {
        g->kind = g->nfields == 0 && !g->tail_words ? SCAN_NONE : SCAN_FLEX;
    } else if ((t->flags & LOAM_TYPE_IS_NOSCAN) || g->nfields == 0) {
        g->kind = SCAN_NONE;
    } else if (g->size % WORD == 0 && g->size <= (size_t)64 * WORD) {
        g->kind = SCAN_MASK;
    } else {
        g->kind = SCAN_FIELDS;
    }
    if (g->kind == SCAN_MASK) {
        for (uint32_t i = 0; i < g->nfields; i++) {
            unsigned w = g->fields[i].offset / WORD;
            g->mask |= bit_range(w, w + g->fields[i].words);
        }
        if (g->mask == bit_range(0, (unsigned)(g->size / WORD))) {
            g->kind = SCAN_ALL;
        }
    }
}

static struct gctype *type_copy(const loam_type *t)
{
    size_t name = strlen(t->name) + 1;
    size_t field_names = strlen(t->field_names) + 1;
    size_t fields = t->nfields * sizeof *t->fields;
    struct gctype *g = persistentalloc(sizeof *g + fields + name + field_names, CACHE_LINE,
                                       &types.bytes);
    if (g == NULL) {
        return NULL;
    }
    char *p = (char *)(g + 1);
    if (fields != 0) {
        memcpy(p, t->fields, fields);
    }
    g->fields = (const void *)p;
    p += fields;
    g->name = memcpy(p, t->name, name);
    p += name;
    g->field_names = memcpy(p, t->field_names, field_names);
    g->nfields = t->nfields;
    g->size = t->size;
    g->align = (uint32_t)t->align;
    g->flex = (t->flags & LOAM_TYPE_IS_FLEX) != 0;
    g->tail_offset = t->tail_offset;
    g->tail_elem = t->tail_size;
    g->tail_words = (t->flags & LOAM_TYPE_TAIL_IS_POINTERS) != 0;
    g->scan = t->scan;
    choose_kind(g, t);
    g->descriptor = *t;
    g->descriptor.name = g->name;
    g->descriptor.field_names = g->field_names;
    g->descriptor.fields = g->fields;
    g->descriptor.interned = g;
    return g;
}

struct gctype *gctype_intern(const loam_type *type)
{
    if (!well_formed(type)) {
        errno = EINVAL;
        return NULL;
    }
    mutex_lock(&types.lock);
    struct gctype **bucket = &types.buckets[type_hash(type) % NBUCKETS];
    struct gctype *g = *bucket;
    while (g != NULL && !same_type(g, type)) {
        g = g->next;
    }
    if (g == NULL && (g = type_copy(type)) != NULL) {
        g->id = types.next_id++;
        g->next = *bucket;
        *bucket = g;
    }
    mutex_unlock(&types.lock);
    if (g == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    /* release: the finished copy; pairs with gctype_known. The descriptor itself is never const. */
    __atomic_store_n((struct gctype **)(uintptr_t)&type->interned, g, __ATOMIC_RELEASE);
    return g;
}

static void field_swap(loam_field *a, loam_field *b)
{
    loam_field t = *a;
    *a = *b;
    *b = t;
}

static void sift_down(loam_field *f, size_t i, size_t n)
{
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && f[child].offset < f[child + 1].offset;
        if (f[i].offset >= f[child].offset) {
            return;
        }
        field_swap(&f[i], &f[child]);
    }
}

/* Ascending, each once: what the same words are named by is one type. Not qsort, which calls malloc.
 * Gives how many are left. */
static size_t sort_fields(loam_field *f, size_t n)
{
    size_t kept = 0;
    for (size_t i = n / 2; i-- > 0;) {
        sift_down(f, i, n);
    }
    for (size_t i = n; i-- > 1;) {
        field_swap(&f[0], &f[i]);
        sift_down(f, 0, i);
    }
    for (size_t i = 0; i < n; i++) {
        if (kept == 0 || f[kept - 1].offset != f[i].offset) {
            f[kept++] = f[i];
        }
    }
    return kept;
}

const loam_type *gctype_make(const char *name, size_t size, const size_t offsets[], size_t n)
{
    size_t bytes = sizeof(loam_type) + n * sizeof(loam_field);
    loam_type *t = metaalloc(bytes);
    if (t == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    loam_field *fields = (loam_field *)(t + 1);
    for (size_t i = 0; i < n; i++) {
        if (offsets[i] % WORD != 0 || size < WORD || offsets[i] > size - WORD) {
            metafree(t, bytes);
            errno = EINVAL;
            return NULL;
        }
        fields[i] = (loam_field){.offset = (uint32_t)offsets[i], .words = 1};
    }
    *t = (loam_type){
        .name = name,
        .field_names = "",
        .size = size,
        .align = size % 16 == 0 ? 16 : 8,
        .fields = fields,
        .nfields = (uint32_t)sort_fields(fields, n),
        .flags = n == 0 ? LOAM_TYPE_IS_NOSCAN : 0,
    };
    struct gctype *g = gctype_intern(t);
    metafree(t, bytes);
    return g != NULL ? &g->descriptor : NULL;
}

/* The i-th name of "left, pos.next, kids", without blanks. */
static int nth_name(const char *names, size_t n, const char **start)
{
    const char *p = names;
    for (; n > 0 && *p != '\0'; p++) {
        n -= *p == ',';
    }
    p += strspn(p, " \t\n");
    *start = p;
    return (int)strcspn(p, ", \t\n");
}

void gctype_field_name(const struct gctype *t, size_t off, char *buf, size_t len)
{
    const char *name;
    if (t->flex && t->tail_elem != 0 && off >= t->tail_offset) {
        int n = nth_name(t->field_names, 0, &name);
        snprintf(buf, len, "%s.%.*s[%zu]", t->name, n, name, (off - t->tail_offset) / t->tail_elem);
        return;
    }
    size_t in_elem = t->size == 0 ? off : off % t->size;
    for (uint32_t i = 0; i < t->nfields; i++) {
        size_t from = t->fields[i].offset;
        if (in_elem >= from && in_elem < from + t->fields[i].words * (size_t)WORD) {
            int n = nth_name(t->field_names, i + (t->flex ? 1 : 0), &name);
            if (t->fields[i].words == 1) {
                snprintf(buf, len, "%s.%.*s", t->name, n, name);
            } else {
                snprintf(buf, len, "%s.%.*s[word %zu]", t->name, n, name, (in_elem - from) / WORD);
            }
            return;
        }
    }
    snprintf(buf, len, "%s+%zu", t->name, off);
}
