/* gctype.h - layouts: the library's own copy of what LOAM_TYPE declares.
 *
 * Descriptors of equal content are one gctype, copied at first use, so a library that declares
 * them may be unloaded. A gctype lives for ever.
 */
#ifndef HEAP_GCTYPE_H
#define HEAP_GCTYPE_H

#include "base/atomics.h"
#include "heap/sizeclasses.h"

#include <loam.h>

/* How the marker finds the pointers of an object. */
enum scan_kind {
    SCAN_NONE,   /* no pointers */
    SCAN_ALL,    /* every word: untyped memory */
    SCAN_MASK,   /* elements of at most 64 words, bit i of mask: word i is searched */
    SCAN_FIELDS, /* elements with a list of fields */
    SCAN_FLEX,   /* one head (fields), then every word from tail_offset on if tail_words */
    SCAN_FN,     /* the program's function, or the library's */
};

struct gctype {
    enum scan_kind kind;
    uint32_t id;
    uint32_t nfields;
    uint32_t align;
    size_t size; /* bytes of an element, or of the head; > 0 */
    uint64_t mask;
    const loam_field *fields;
    size_t tail_offset;
    size_t tail_elem;
    bool tail_words;
    bool flex;
    void (*scan)(const void *obj, size_t bytes, loam_marker *m);
    const char *name;
    const char *field_names;
    loam_type descriptor;    /* what loam_type_make gives */
    struct gctype *next;     /* in its hash bucket */
    _Atomic uint32_t single; /* span class of one object; 0: not yet made, or large */
    _Atomic uint32_t spanclass[NUM_SIZE_CLASSES]; /* by heap_spanclass; 0: not yet made */
};

extern HIDDEN struct gctype gctype_noscan;       /* loam_alloc_noscan */
extern HIDDEN struct gctype gctype_conservative; /* loam_alloc */

/* The library's copy of a descriptor; NULL and errno: no memory, or a malformed descriptor (EINVAL). */
struct gctype *gctype_intern(const loam_type *type);
/* A type described at run time; its descriptor lives for ever. NULL and errno: EINVAL, ENOMEM. */
const loam_type *gctype_make(const char *name, size_t size, const size_t offsets[], size_t n);
/* NULL: not yet interned. */
ALWAYS_INLINE struct gctype *gctype_known(const loam_type *type)
{
    /* acquire: pairs with gctype_intern's release of the finished copy. */
    return __atomic_load_n((struct gctype **)(uintptr_t)&type->interned, __ATOMIC_ACQUIRE);
}

/* Text for reports: "node.left" for the word at byte offset off of an object. */
void gctype_field_name(const struct gctype *t, size_t off, char *buf, size_t len);

#endif
