/* names.h - what objects, their fields and roots are called. */
#ifndef OBSERVE_NAMES_H
#define OBSERVE_NAMES_H

#include "observe/graph.h"

enum { NAME_BYTES_MOST = 256 };

enum name_kind {
    NAME_TEXT,      /* of: the text itself */
    NAME_TYPE,      /* of: the gctype */
    NAME_FIELD,     /* of: the gctype; n: offset in the object */
    NAME_ELEMENT,   /* the same of an array: [3].next */
    NAME_INDEX,     /* n, as in untyped memory */
    NAME_NUMBER,    /* of: what has the number n */
    NAME_OFFSET,    /* of: what n bytes are added to */
    NAME_ADDRESS,   /* of: what lies at n */
    NAME_VARIABLE,  /* n: its address */
    NAME_THREAD,    /* n: tid */
    NAME_GOROUTINE, /* of: struct g */
};

/* Small, and compared by word: the text is made when it is written. */
struct name {
    enum name_kind kind;
    const void *of;
    uint64_t n;
};

/* An edge's name says exactly which word it is; where there may be too many of them, an index does. */
struct edge_name {
    struct name name;
    bool indexed;
    uint64_t index;
};

void name_text(const struct name *name, const struct os_symbols *symbols,
               char text[NAME_BYTES_MOST]);
struct edge_name name_edge(const struct object *obj, uintptr_t where, const struct object *to);
struct name name_source(const struct source *s);
struct name name_object(const struct object *obj);
struct name name_holder(const struct holder *h);

#endif
