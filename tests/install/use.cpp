// use.cpp - the library from C++; its argument is the version that it must meet.
#include <loam.h>
#include <loam/stats.h>

#include <new>
#include <string>

namespace shop
{
struct node {
    node *next;
    int key;
};
LOAM_TYPE(node, next);
} // namespace shop

static shop::node *list;
static volatile size_t too_much = SIZE_MAX;

static void throw_bad_alloc(void *)
{
    throw std::bad_alloc();
}

/* An exception of the out-of-memory handler passes through the library. */
static bool throws()
{
    loam_set_oom_handler(throw_bad_alloc, nullptr);
    try {
        loam_alloc(too_much);
    } catch (const std::bad_alloc &) {
        return true;
    }
    return false;
}

int main(int argc, char **argv)
{
    if (argc != 2 || std::string(argv[1]) != LOAM_VERSION ||
        std::string(argv[1]) != loam_version()) {
        return 1;
    }
    for (int i = 0; i < 1000; i++) {
        shop::node *n = LOAM_NEW(shop::node);
        if (n == nullptr) {
            return 1;
        }
        n->key = i;
        LOAM_SET(n->next, list);
        LOAM_SET(list, n);
    }
    loam_gc();
    int want = 999;
    for (const shop::node *n = list; n != nullptr; n = n->next, want--) {
        if (n->key != want) {
            return 1;
        }
    }
    return want == -1 && throws() ? 0 : 1;
}
