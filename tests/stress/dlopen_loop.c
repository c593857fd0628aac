/* Libraries are loaded and unloaded over and over while cycles run: their data holds what it points to while they are
 * there, their thread-local variables too, and nobody reads what is no longer mapped.
 *
 * --seconds N
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | | 120
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 120 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/plugin.h"
#include "../support/threads.h"

enum { PLUGINS = 4, SLOTS = 3000 };

static const char source[] = "#include <loam.h>\n"
                             "void *slots[3000];\n"
                             "static __thread void *local[3000];\n"
                             "void **get_local(void) { return local; }\n"
                             "typedef struct cell { void *a; unsigned long number; } cell;\n"
                             "LOAM_TYPE(cell, a);\n"
                             "const loam_type *cell_type(void) { return LOAM_TYPEOF(cell); }\n";

static char paths[PLUGINS][PLUGIN_PATH];
static _Atomic(bool) stop;
static _Atomic(uint64_t) loads;

struct plugin {
    void *library;
    item **slots;
    item **local;
    const loam_type *cell;
};

static void plugin_open(struct plugin *p, const char *path)
{
    item **(*get_local)(void);
    const loam_type *(*cell_type)(void);
    p->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    EXPECT_MSG(p->library != NULL, "dlopen: %s", dlerror());
    p->slots = dlsym(p->library, "slots");
    void *symbol = dlsym(p->library, "get_local");
    memcpy(&get_local, &symbol, sizeof get_local);
    symbol = dlsym(p->library, "cell_type");
    memcpy(&cell_type, &symbol, sizeof cell_type);
    EXPECT_NOT_NULL(p->slots);
    p->local = get_local();
    p->cell = cell_type();
}

static NOINLINE void use_plugin(struct plugin *p, struct rng *rng, item **last_cell)
{
    uint64_t ids[16];
    size_t at[16];
    for (size_t i = 0; i < COUNT_OF(at); i++) {
        at[i] = rng_below(rng, SLOTS / 16) + i * (SLOTS / 16);
        ids[i] = rng_next(rng);
        item *it = item_new(ids[i], NULL);
        if (i % 2 == 0) {
            LOAM_SET(p->slots[at[i]], it);
        } else {
            p->local[at[i]] = it;
        }
    }
    void **cell = loam_new(p->cell, 1);
    LOAM_SET(cell[0], (void *)item_new(1, NULL));
    *last_cell = (item *)(void *)cell;
    for (uint64_t i = rng_below(rng, 500); i > 0; i--) {
        item_new(i, NULL);
    }
    for (size_t i = 0; i < COUNT_OF(at); i++) {
        item *it = i % 2 == 0 ? p->slots[at[i]] : p->local[at[i]];
        item_check(it);
        EXPECT_EQ(it->id, ids[i]);
    }
}

/* Each thread has a library of its own, so that the last dlclose is its own. */
static void *load_and_unload(void *arg)
{
    struct team_member *me = arg;
    item *cell = NULL; /* of a type whose library is gone */
    while (!atomic_load(&stop)) {
        struct plugin p;
        plugin_open(&p, paths[me->index]);
        use_plugin(&p, &me->rng, &cell);
        EXPECT_EQ(dlclose(p.library), 0);
        item_check(((void **)(void *)cell)[0]);
        atomic_fetch_add(&loads, 1);
    }
    return NULL;
}

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static struct team team;
    test_begin(argc, argv);
    for (size_t i = 0; i < PLUGINS; i++) {
        char name[16];
        snprintf(name, sizeof name, "loop%zu", i);
        if (!plugin_build(paths[i], name, source, true)) {
            return test_end();
        }
    }
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, PLUGINS, load_and_unload, NULL);
    sleep_us(test_number("seconds", 8) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
    for (size_t i = 0; i < PLUGINS; i++) {
        plugin_remove(paths[i]);
    }
    printf("%" PRIu64 " loads\n", atomic_load(&loads));
    return test_end();
}
