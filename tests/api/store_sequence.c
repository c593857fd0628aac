/* LOAM_SET leaves a note of its restartable sequence, of the right range; and begun anew from any
 * point within, on x86-64 by single steps, it stores the same.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: on | GODEBUG=gcstress=1 | | 60 */
#include "../support/test.h"

#include <link.h>
#include <ucontext.h>

#include <loam.h>

#if defined(LOAM_STORE_CALLS_) || !defined(__linux__)
int main(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    puts("skip: LOAM_SET calls the library here");
    return 0;
}
#else

typedef struct node {
    struct node *next;
    void *slots[4];
} node;
LOAM_TYPE(node, next, slots);

/* The functions whose stores are looked for, in a section of their own: its bounds are theirs. */
#define WATCHED NOINLINE __attribute__((__section__("watched_text")))
extern const char __start_watched_text[], __stop_watched_text[];

WATCHED static void set_field(node *n, node *value)
{
    LOAM_SET(n->next, value);
}

WATCHED static void set_slots(node *n, size_t i, void *value)
{
    LOAM_SET(n->slots[i], value);
    LOAM_SET(n->slots[i + 1], NULL);
}
#define WATCHED_STORES 3 /* at least: a compiler may duplicate one */

/* ---- the notes ---- */

struct range {
    uintptr_t begin, end;
};
static struct range watched[16];
static size_t nwatched, nnotes;

static bool is_code(const struct dl_phdr_info *info, const struct range *r)
{
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + ph->p_vaddr;
        if (ph->p_type == PT_LOAD && (ph->p_flags & PF_X) != 0 && r->begin >= start &&
            r->end <= start + ph->p_memsz) {
            return true;
        }
    }
    return false;
}

static void take_note(const struct dl_phdr_info *info, uintptr_t desc)
{
    int32_t d[2];
    memcpy(d, (const void *)desc, sizeof d);
    struct range r = {desc + (uintptr_t)(intptr_t)d[0], desc + 4 + (uintptr_t)(intptr_t)d[1]};

    nnotes++;
    EXPECT_LT(r.begin, r.end);
    EXPECT_LT(r.end - r.begin, 40);
    EXPECT_MSG(is_code(info, &r), "[%#" PRIxPTR ", %#" PRIxPTR ") is not code of %s", r.begin,
               r.end, info->dlpi_name);
    if (r.begin >= (uintptr_t)__start_watched_text && r.end <= (uintptr_t)__stop_watched_text) {
        EXPECT_LT(nwatched, COUNT_OF(watched));
        watched[nwatched++] = r;
    }
}

static int visit(struct dl_phdr_info *info, size_t size, void *arg)
{
    (void)size;
    (void)arg;
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        uintptr_t at = info->dlpi_addr + ph->p_vaddr;
        uintptr_t limit = at + ph->p_memsz;
        if (ph->p_type != PT_NOTE || ph->p_align > 4) {
            continue;
        }
        while (at + sizeof(ElfW(Nhdr)) <= limit) {
            const ElfW(Nhdr) *h = (const ElfW(Nhdr) *)at;
            uintptr_t name = at + sizeof *h;
            uintptr_t desc = name + ((h->n_namesz + 3u) & ~3u);
            if (h->n_type == 1 && h->n_namesz == 5 && memcmp((const void *)name, "loam", 5) == 0) {
                EXPECT_EQ(h->n_descsz, 8);
                take_note(info, desc);
            }
            at = desc + ((h->n_descsz + 3u) & ~3u);
        }
    }
    return 0;
}

/* ---- restarting ---- */

#ifdef __x86_64__
static volatile unsigned char restarted[COUNT_OF(watched)][64]; /* by range and offset of the pc */
static volatile unsigned restarts;

/* After every instruction: back to the beginning, once from each point of each range. */
static void on_step(int signo, siginfo_t *si, void *context)
{
    greg_t *pc = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    (void)signo;
    (void)si;
    for (size_t i = 0; i < nwatched; i++) {
        uintptr_t offset = (uintptr_t)*pc - watched[i].begin;
        if ((uintptr_t)*pc > watched[i].begin && (uintptr_t)*pc < watched[i].end &&
            !restarted[i][offset]) {
            restarted[i][offset] = 1;
            restarts++;
            *pc = (greg_t)watched[i].begin;
            return;
        }
    }
}

#define STEP(on)                                                      \
    __asm__ volatile("leaq -128(%%rsp), %%rsp\n\tpushfq\n\t" on       \
                     " (%%rsp)\n\tpopfq\n\tleaq 128(%%rsp), %%rsp" :: \
                         : "memory", "cc")
#define STEP_BEGIN() STEP("orq $0x100,")
#define STEP_END() STEP("andq $~0x100,")

static void test_restart(void)
{
    struct sigaction sa = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO};
    node *a = LOAM_NEW(node), *b = LOAM_NEW(node);

    EXPECT_NOT_NULL(a);
    EXPECT_NOT_NULL(b);
    LOAM_SET(a->slots[3], b);
    EXPECT_EQ(sigaction(SIGTRAP, &sa, NULL), 0);
    STEP_BEGIN();
    set_field(a, b);
    set_slots(a, 2, a);
    STEP_END();
    EXPECT_PTR_EQ(a->next, b);
    EXPECT_PTR_EQ(a->slots[2], a);
    EXPECT_NULL(a->slots[3]);
    EXPECT_NULL(a->slots[1]);
    /* Off, there are two points within; on, the branch leaves from the first. */
    EXPECT_GE(restarts, WATCHED_STORES);
    signal(SIGTRAP, SIG_DFL);
}
#endif

int main(int argc, char **argv)
{
    node *n;

    test_begin(argc, argv);
    dl_iterate_phdr(visit, NULL);
    printf("%zu notes, %zu of them watched\n", nnotes, nwatched);
    EXPECT_GE(nwatched, WATCHED_STORES);
    n = LOAM_NEW(node);
    EXPECT_NOT_NULL(n);
    set_field(n, n);
    set_slots(n, 0, n);
    EXPECT_PTR_EQ(n->next, n);
    EXPECT_PTR_EQ(n->slots[0], n);
#ifdef __x86_64__
    test_restart();
#endif
    return 0;
}
#endif
