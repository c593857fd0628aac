/* Writable data of the program and of loaded libraries is searched without being registered: globals, statics, .data
 * and .bss, a library's data from dlopen to dlclose, its thread-local variables too; and a type that a library declared
 * outlives it.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/plugin.h"
#include "../support/threads.h"

enum { SLOTS = 400 };

item *global_bss[SLOTS];
item *global_data[SLOTS] = {(item *)8};
static item *static_bss[SLOTS];
static item *static_data[SLOTS] = {(item *)8};
static struct {
    char odd;
    item *inside[SLOTS];
} static_struct;
extern item *global_bss[SLOTS], *global_data[SLOTS];

static item **in_function(void)
{
    static item *slots[SLOTS];
    return slots;
}

static struct watch batch;

static void fill_slots(void *arg)
{
    item **slots = arg;
    for (size_t i = 0; i < batch.count; i++) {
        item *it = item_new(i, NULL);
        watch_set(&batch, i, it);
        LOAM_SET(slots[i], it);
    }
}

static void check_slots(item **slots)
{
    watch_init(&batch, SLOTS);
    call_deep(fill_slots, slots);
    EXPECT_ALL_LIVE(&batch);
    for (size_t i = 0; i < SLOTS; i++) {
        item_check(slots[i]);
    }
    loam_clear(slots, SLOTS * sizeof *slots);
    EXPECT_MOST_DIE(&batch);
}

static void globals_and_statics(void)
{
    check_slots(global_bss);
    check_slots(global_data);
    check_slots(static_bss);
    check_slots(static_data);
    check_slots(static_struct.inside);
    check_slots(in_function());
}

/* ---- a library ---- */

static const char library_source[] = "void *bss[400];\n"
                                     "void *data[400] = {(void *)8};\n"
                                     "static void *hidden[400];\n"
                                     "void **get_hidden(void) { return hidden; }\n"
                                     "static __thread void *local[400];\n"
                                     "void **get_local(void) { return local; }\n";

static void *library_open(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    EXPECT_MSG(library != NULL, "dlopen: %s", dlerror());
    return library;
}

static item **library_slots(void *library, const char *name)
{
    void *symbol = dlsym(library, name);
    EXPECT_MSG(symbol != NULL, "dlsym: %s", dlerror());
    if (strncmp(name, "get_", 4) != 0) {
        return symbol;
    }
    item **(*get)(void);
    memcpy(&get, &symbol, sizeof get);
    return get();
}

static void data_of_a_library(void)
{
    static const char *const names[] = {"bss", "data", "get_hidden"};
    char path[PLUGIN_PATH];
    if (!plugin_build(path, "data", library_source, false)) {
        return;
    }
    loam_gc();
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < COUNT_OF(names); i++) {
            void *library = library_open(path);
            check_slots(library_slots(library, names[i]));
            /* Closed with its slots full: they count no longer. */
            watch_init(&batch, SLOTS);
            call_deep(fill_slots, library_slots(library, names[i]));
            EXPECT_ALL_LIVE(&batch);
            EXPECT_EQ(dlclose(library), 0);
            EXPECT_MOST_DIE(&batch);
        }
    }
    plugin_remove(path);
}

/* Plain stores: it is thread-local storage, of the dynamic kind. */
static void fill_local(void *arg)
{
    item **slots = arg;
    for (size_t i = 0; i < batch.count; i++) {
        slots[i] = item_new(i, NULL);
        watch_set(&batch, i, slots[i]);
    }
}

static _Atomic(int) stage;

static void *hold_in_library(void *arg)
{
    item **slots = library_slots(arg, "get_local");
    call_deep(fill_local, slots);
    atomic_store(&stage, 1);
    WAIT_FOR(60, atomic_load(&stage) == 2);
    for (size_t i = 0; i < SLOTS; i++) {
        item_check(slots[i]);
    }
    return NULL;
}

static void thread_locals_of_a_library(void)
{
    char path[PLUGIN_PATH];
    if (!plugin_build(path, "local", library_source, false)) {
        return;
    }
    EXPECT_EQ(loam_attach(), 0); /* before the library is there */
    void *library = library_open(path);
    item **slots = library_slots(library, "get_local");
    watch_init(&batch, SLOTS);
    call_deep(fill_local, slots);
    EXPECT_ALL_LIVE(&batch);
    for (size_t i = 0; i < SLOTS; i++) {
        item_check(slots[i]);
    }
    memset(slots, 0, SLOTS * sizeof *slots);
    EXPECT_MOST_DIE(&batch);

    atomic_store(&stage, 0);
    pthread_t t = thread_start(hold_in_library, library);
    WAIT_FOR(20, atomic_load(&stage) == 1);
    EXPECT_ALL_LIVE(&batch);
    EXPECT_ALL_LIVE(&batch);
    atomic_store(&stage, 2);
    thread_join(t);
    EXPECT_MOST_DIE(&batch);
    EXPECT_EQ(dlclose(library), 0);
    plugin_remove(path);
}

/* ---- a type that a library declares ---- */

static const char type_source[] =
    "#include <loam.h>\n"
    "typedef struct cell { void *a; unsigned long number; void *b; } cell;\n"
    "LOAM_TYPE(cell, a, b);\n"
    "const loam_type *cell_type(void) { return LOAM_TYPEOF(cell); }\n";

typedef struct cell {
    void *a;
    uintptr_t number;
    void *b;
} cell;

static void **cells;
static struct watch unlisted;

static void build_cells(void *arg)
{
    for (size_t i = 0; i < unlisted.count; i++) {
        cell *c = loam_new(arg, 1);
        EXPECT_NOT_NULL(c);
        LOAM_SET(cells[i], c);
        item *it = item_new(i, NULL);
        watch_set(&batch, 2 * i, it);
        LOAM_SET(c->a, it);
        it = item_new(i, NULL);
        watch_set(&batch, 2 * i + 1, it);
        LOAM_SET(c->b, it);
        it = item_new(i, NULL);
        watch_set(&unlisted, i, it);
        c->number = (uintptr_t)it;
    }
}

static void check_cells(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < SLOTS; i++) {
        item_check(((cell *)cells[i])->a);
        item_check(((cell *)cells[i])->b);
    }
}

static void a_type_outlives_its_library(void)
{
    char path[PLUGIN_PATH];
    if (!plugin_build(path, "type", type_source, true)) {
        return;
    }
    watch_init(&batch, 2 * SLOTS);
    watch_init(&unlisted, SLOTS);
    LOAM_SET(cells, LOAM_NEW_POINTERS(void, SLOTS));
    void *library = library_open(path);
    void *symbol = dlsym(library, "cell_type");
    const loam_type *(*cell_type)(void);
    memcpy(&cell_type, &symbol, sizeof cell_type);
    call_deep(build_cells, (void *)(uintptr_t)cell_type());
    EXPECT_EQ(dlclose(library), 0);
    plugin_remove(path);
    for (int i = 0; i < 3; i++) {
        EXPECT_ALL_LIVE(&batch);
    }
    EXPECT_MOST_DIE(&unlisted);
    call_deep(check_cells, NULL);
    LOAM_SET(cells, NULL);
    EXPECT_MOST_DIE(&batch);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(globals_and_statics);
    RUN(data_of_a_library);
    RUN(thread_locals_of_a_library);
    RUN(a_type_outlives_its_library);
    return test_end();
}
