// use_all.cpp - what C++ adds: namespaces, templates, extern "C", classes; compiled only.
//
// Claim: every form that the contract allows compiles without a warning. See compile_all.sh.
extern "C" {
#include <loam.h>
#include <loam/stats.h>
}
#include <atomic>

namespace app
{

struct base {
    virtual ~base()
    {
    }
    base *next = nullptr;
    const char *name = nullptr;
};
LOAM_TYPE(base, next, name);

struct derived : base {
    void *extra = nullptr;
    std::atomic<base *> shared{nullptr};
    std::atomic<uintptr_t> count{0};
    base *volatile hasty = nullptr;
    uintptr_t word = 0;
    volatile uintptr_t quick = 0;
    uint64_t boxed = 0;
    base *kids[3] = {};
    struct {
        void *next;
    } pos = {};
};
LOAM_TYPE(derived, next, name, extra, shared, hasty, word, kids, pos.next);

namespace inner
{
template <class T> struct cell {
    T *item;
    cell *rest;
};
using base_cell = cell<base>;
LOAM_TYPE(base_cell, item, rest);
using int_cell = cell<int>;
LOAM_TYPE(int_cell, rest);
struct base { // another of the same name
    int n;
};
LOAM_TYPE_NOSCAN(base);
} // namespace inner

struct value {
    uintptr_t boxed;
};
static void value_scan(const value *v, size_t bytes, loam_marker *m)
{
    loam_mark(m, reinterpret_cast<const void *>(v[bytes / sizeof(value) - 1].boxed));
}
LOAM_TYPE_SCANNED(value, value_scan);

} // namespace app

LOAM_TYPE_NOSCAN(double);

extern "C" {
struct first {
    void *p;
};
LOAM_TYPE(first, p);
struct second {
    void *p;
};
LOAM_TYPE(second, p);
struct flex {
    void *meta;
    void *items[1]; // C++ has no flexible array
};
LOAM_TYPE_FLEX(flex, items, meta);
struct flex_bytes {
    int n;
    char data[1];
};
LOAM_TYPE_FLEX(flex_bytes, data);
}

template <class T> T *make(size_t n)
{
    return n == 1 ? LOAM_NEW(T) : LOAM_NEW_ARRAY(T, n);
}

template <class T> inline void push(app::inner::cell<T> *&list, T *item)
{
    auto *c = LOAM_NEW(app::inner::cell<T>);
    LOAM_SET(c->item, item);
    LOAM_SET(c->rest, list);
    LOAM_SET(list, c);
}

static_assert(sizeof(loam_cleanup) == 8, "an id is 64 bits");

app::base *use_all(app::inner::base_cell *&list, int n);
app::base *use_all(app::inner::base_cell *&list, int n)
{
    app::derived *d = LOAM_NEW(app::derived);
    app::base *b = d;
    int *numbers = nullptr;

    LOAM_SET(b->next, d);
    LOAM_SET(b->next, NULL);
    LOAM_SET(b->next, nullptr);
    LOAM_SET(b->name, loam_strdup("x"));
    LOAM_SET(d->extra, d);
    LOAM_SET(d->shared, d);
    LOAM_SET(d->shared, nullptr);
    LOAM_SET(d->count, uintptr_t(7));
    LOAM_SET(d->hasty, d);
    LOAM_SET(d->word, uintptr_t(n) | 1u);
    LOAM_SET(d->quick, d->word);
    LOAM_SET(d->boxed, uint64_t(n) << 48);
    LOAM_SET(d->kids[n++ % 3], b);
    LOAM_SET(d->pos.next, LOAM_NEW_POINTERS(int, 3));
    push(list, b);
    flex *f = LOAM_NEW_FLEX(flex, 3);
    LOAM_SET(f->items[0], LOAM_NEW(first));
    LOAM_SET(f->items[0], LOAM_NEW(second));
    LOAM_SET(f->items[0], LOAM_NEW_FLEX(flex_bytes, 7));
    LOAM_SET(f->meta, make<double>(3));
    LOAM_SET(f->meta, make<app::value>(1));
    LOAM_SET(f->meta, make<app::inner::int_cell>(1));
    LOAM_SET(f->meta, make<app::inner::base>(1));
    LOAM_SET(f->meta, numbers);
    const loam_type *t = LOAM_TYPEOF(app::base);
    auto load = [&] { return LOAM_SET(d->next, b); };
    return t != nullptr && load() == b ? LOAM_SET(b->next, d) : nullptr;
}
