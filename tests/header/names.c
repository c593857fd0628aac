/* names.c - a program's own names, where the headers' macros and inline functions meet them; in C and, included by
 * names.cpp, in C++; compiled only.
 *
 * Claim: types and globals of any name, declared before the headers are included or after, neither break a macro nor
 * make -Wshadow speak. See compile_all.sh. */
#ifdef __cplusplus
#define TYPE_CAST(T, value) static_cast<T>(value)
#else
#define TYPE_CAST(T, value) ((T)(value))
#endif

/* Globals that were there first. */
extern int slot, value, count, word, size, type, name, offset, old, now, mask, lv, field, names,
    tail;

/* Types that were there first, each with what it points to. */
typedef struct obj {
    struct obj *p;
} obj;
typedef struct bytes {
    struct bytes *p;
} bytes;
typedef struct m {
    struct m *p;
} m;
typedef struct v {
    struct v *fn;
} v;
typedef struct T {
    struct T *T;
} T;
typedef struct slow {
    int on;
} slow;

#include <loam.h>
#include <loam/stats.h>

/* And after. */
extern int fields, nfields, flags, tail_offset, tail_size, scan, cond, what, over;
typedef struct f {
    struct f *f;
    struct f *tail[1];
} f;

#define SCANNED(type_name)                                                              \
    static void type_name##_scan(const type_name *one, size_t size_, loam_marker *mark) \
    {                                                                                   \
        if (size_ != 0) {                                                               \
            loam_mark(mark, one->p);                                                    \
        }                                                                               \
    }                                                                                   \
    LOAM_TYPE_SCANNED(type_name, type_name##_scan)

SCANNED(obj);
SCANNED(bytes);
SCANNED(m);
LOAM_TYPE(v, fn);
LOAM_TYPE(T, T);
LOAM_TYPE_NOSCAN(slow);
LOAM_TYPE_FLEX(f, tail, f);

void use_names(obj *o, bytes *b, m *n);
void use_names(obj *o, bytes *b, m *n)
{
    v *one = LOAM_NEW(v);
    T *two = LOAM_NEW_ARRAY(T, 2);
    f *three = LOAM_NEW_FLEX(f, 2);
    slow **four = LOAM_NEW_POINTERS(slow, 4);
    LOAM_SET(o->p, LOAM_NEW(obj));
    LOAM_SET(b->p, LOAM_NEW(bytes));
    LOAM_SET(n->p, LOAM_NEW(m));
    LOAM_SET(one->fn, one);
    LOAM_SET(two->T, two);
    LOAM_SET(three->tail[0], TYPE_CAST(f *, loam_new(LOAM_TYPEOF(f), 1)));
    LOAM_SET(four[0], LOAM_NEW(slow));
}
