/* pprof.c - profiles as `go tool pprof` reads them.
 *
 * Purpose     profile.proto (github.com/google/pprof), gzipped. Functions have the names of the symbol tables; pprof
 *             finds lines, and what was inlined, in the files that the mappings name.
 * Model       A message is a row of fields in any order, so everything is written as it comes: a string or a
 *             location when it is needed first, then what needs it. `ids` remembers which were. No message
 *             is longer than MESSAGE bytes but those that hold one string. gzip's stored blocks: a profile is a few
 *             hundred KiB at most, and whoever keeps many has something better to pack them with; so the
 *             library needs no other.
 * Locking     none.
 * From Go     protomem.go, proto.go and protobuf.go in runtime/pprof, which writes its own protocol buffers, too.
 * Tests       tests/api/profile.c, which reads them
 */
#include "observe/pprof.h"

#include "observe/writer.h"

#include "base/check.h"
#include "heap/fixalloc.h"
#include "os/os.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    MESSAGE = 2048, /* 128 locations of ten bytes, and the rest */
    BLOCK = 32 << 10,
    VARINT_MOST = 10,
    PATH_MOST = 4096,
};

uint64_t pprof_hash(const uintptr_t *pcs, size_t n, uint64_t of)
{
    uint64_t h = of;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ pcs[i]) * UINT64_C(0x9E3779B97F4A7C15);
        h ^= h >> 32;
    }
    return h;
}

/* -- gzip: RFC 1952, stored blocks of RFC 1951 ------------------------------------------------------- */

struct gzip {
    struct writer *out;
    uint32_t crc, bytes;
    size_t n;
    uint8_t block[BLOCK];
};

static uint32_t crc_add(uint32_t crc, const uint8_t *p, size_t n)
{
    static const uint32_t table[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
        0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
        0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    crc = ~crc;
    for (size_t i = 0; i < n; i++) {
        crc = table[(crc ^ p[i]) & 15] ^ (crc >> 4);
        crc = table[(crc ^ (uint32_t)(p[i] >> 4)) & 15] ^ (crc >> 4);
    }
    return ~crc;
}

static void put_le(struct writer *o, uint32_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) {
        uint8_t byte = (uint8_t)(v >> (8 * i));
        writer_put(o, (const char *)&byte, 1);
    }
}

static void gzip_begin(struct gzip *z, struct writer *o)
{
    static const uint8_t head[10] = {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3};
    z->out = o;
    z->crc = z->bytes = 0;
    z->n = 0;
    writer_put(o, (const char *)head, sizeof head);
}

static void gzip_block(struct gzip *z, bool last)
{
    put_le(z->out, last, 1);
    put_le(z->out, (uint32_t)z->n, 2);
    put_le(z->out, ~(uint32_t)z->n, 2);
    writer_put(z->out, (const char *)z->block, z->n);
    z->crc = crc_add(z->crc, z->block, z->n);
    z->bytes += (uint32_t)z->n;
    z->n = 0;
}

static void gzip_bytes(struct gzip *z, const void *data, size_t n)
{
    for (const char *p = data; n != 0;) {
        size_t piece = n < BLOCK - z->n ? n : BLOCK - z->n;
        memcpy(z->block + z->n, p, piece);
        z->n += piece;
        p += piece;
        n -= piece;
        if (z->n == BLOCK) {
            gzip_block(z, false);
        }
    }
}

static void gzip_end(struct gzip *z)
{
    gzip_block(z, true);
    put_le(z->out, z->crc, 4);
    put_le(z->out, z->bytes, 4);
}

/* -- protocol buffers ---------------------------------------------------------------------------- */

struct message {
    size_t n;
    uint8_t bytes[MESSAGE];
};

static size_t varint(uint8_t *to, uint64_t v)
{
    size_t n = 0;
    for (; v >= 0x80; v >>= 7) {
        to[n++] = (uint8_t)(v | 0x80);
    }
    to[n++] = (uint8_t)v;
    return n;
}

static void add_varint(struct message *m, uint64_t v)
{
    CHECK(m->n + VARINT_MOST <= sizeof m->bytes, "a message of a profile is too long");
    m->n += varint(m->bytes + m->n, v);
}

static void add_number(struct message *m, unsigned field, uint64_t v)
{
    add_varint(m, field << 3);
    add_varint(m, v);
}

static void add_message(struct message *m, unsigned field, const struct message *inner)
{
    add_varint(m, field << 3 | 2);
    add_varint(m, inner->n);
    CHECK(m->n + inner->n <= sizeof m->bytes, "a message of a profile is too long");
    memcpy(m->bytes + m->n, inner->bytes, inner->n);
    m->n += inner->n;
}

static void put_field(struct gzip *z, unsigned field, const void *data, size_t n)
{
    uint8_t head[2 * VARINT_MOST];
    size_t len = varint(head, field << 3 | 2);
    len += varint(head + len, n);
    gzip_bytes(z, head, len);
    gzip_bytes(z, data, n);
}

static void put_message(struct gzip *z, unsigned field, const struct message *m)
{
    put_field(z, field, m->bytes, m->n);
}

static void put_number(struct gzip *z, unsigned field, uint64_t v)
{
    struct message m = {0};
    add_number(&m, field, v);
    gzip_bytes(z, m.bytes, m.n);
}

/* -- what was written already -------------------------------------------------------------------- */

/* Open addressing; of keys that are not 0. */
struct ids {
    struct id {
        uintptr_t key;
        uint64_t id;
    } * at;
    size_t mask; /* slots - 1 */
};

static struct id *id_slot(const struct ids *ids, uintptr_t key)
{
    size_t i = (size_t)(key * UINT64_C(0x9E3779B97F4A7C15) >> 20);
    while (ids->at[i & ids->mask].key != 0 && ids->at[i & ids->mask].key != key) {
        i++;
    }
    return &ids->at[i & ids->mask];
}

static bool ids_init(struct ids *ids, size_t most)
{
    size_t slots = 64;
    while (slots < 2 * most) {
        slots *= 2;
    }
    ids->mask = slots - 1;
    ids->at = metaalloc(slots * sizeof *ids->at);
    return ids->at != NULL;
}

static void ids_fini(struct ids *ids)
{
    metafree(ids->at, (ids->mask + 1) * sizeof *ids->at);
}

/* -- the profile --------------------------------------------------------------------------------- */

/* Fields of profile.proto. */
enum {
    PROFILE_SAMPLE_TYPE = 1,
    PROFILE_SAMPLE,
    PROFILE_MAPPING,
    PROFILE_LOCATION,
    PROFILE_FUNCTION
};
enum {
    PROFILE_STRING = 6,
    PROFILE_TIME = 9,
    PROFILE_PERIOD_TYPE = 11,
    PROFILE_PERIOD,
    PROFILE_DEFAULT = 14
};
enum { TYPE_TYPE = 1, TYPE_UNIT };
enum { SAMPLE_LOCATIONS = 1, SAMPLE_VALUES, SAMPLE_LABEL };
enum { LABEL_KEY = 1, LABEL_TEXT, LABEL_NUMBER, LABEL_UNIT };
enum {
    MAPPING_ID = 1,
    MAPPING_START,
    MAPPING_LIMIT,
    MAPPING_OFFSET,
    MAPPING_FILE,
    MAPPING_BUILD_ID
};
enum { LOCATION_ID = 1, LOCATION_MAPPING, LOCATION_ADDRESS, LOCATION_LINE };
enum { LINE_FUNCTION = 1 };
enum { FUNCTION_ID = 1, FUNCTION_NAME, FUNCTION_SYSTEM_NAME };

struct mapping {
    uintptr_t start, limit;
};

enum { TEXTS = 32 }; /* strings of every profile: types, units, keys of labels */

struct pprof {
    struct writer out;
    struct gzip gzip;
    uint64_t nstrings;
    struct ids locations; /* by address */
    struct ids strings;   /* by address */
    struct ids functions; /* by address */
    struct os_symbols symbols;
    uint64_t nlocations, nfunctions;
    struct mapping *mappings; /* number i has id i + 1 */
    size_t nmappings, room;
};

static uint64_t put_string(struct pprof *w, const char *s)
{
    put_field(&w->gzip, PROFILE_STRING, s, strlen(s));
    return w->nstrings++;
}

static uint64_t string_of(struct pprof *w, const char *s)
{
    struct id *id = id_slot(&w->strings, (uintptr_t)s);
    if (id->key == 0) {
        id->key = (uintptr_t)s;
        id->id = put_string(w, s);
    }
    return id->id;
}

static struct message type_message(struct pprof *w, const struct pprof_type *type)
{
    struct message m = {0};
    add_number(&m, TYPE_TYPE, string_of(w, type->type));
    add_number(&m, TYPE_UNIT, string_of(w, type->unit));
    return m;
}

static void put_head(struct pprof *w, const struct pprof_head *head)
{
    struct timespec now;
    (void)put_string(w, ""); /* number 0 must be */
    for (size_t i = 0; i < head->ntypes; i++) {
        struct message m = type_message(w, &head->types[i]);
        put_message(&w->gzip, PROFILE_SAMPLE_TYPE, &m);
    }
    struct message period = type_message(w, &head->period_type);
    put_message(&w->gzip, PROFILE_PERIOD_TYPE, &period);
    put_number(&w->gzip, PROFILE_PERIOD, (uint64_t)head->period);
    put_number(&w->gzip, PROFILE_DEFAULT, string_of(w, head->types[head->ntypes - 1].type));
    clock_gettime(CLOCK_REALTIME, &now);
    put_number(&w->gzip, PROFILE_TIME, (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec);
}

/* -- mappings ------------------------------------------------------------------------------------ */

/* Copied while the loader is asked, written after: fd may be slow. */
struct copied_text {
    struct os_text text;
    char build_id[41];
    char file[PATH_MOST];
};

struct copy_texts {
    struct copied_text *at; /* NULL: count only */
    size_t n, room;
};

static void hex(char *to, size_t room, const uint8_t *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n && 2 * i + 2 < room; i++) {
        to[2 * i] = digits[bytes[i] >> 4];
        to[2 * i + 1] = digits[bytes[i] & 15];
        to[2 * i + 2] = '\0';
    }
}

static void copy_text(void *arg, const struct os_text *text)
{
    struct copy_texts *to = arg;
    if (to->at != NULL && to->n < to->room) {
        struct copied_text *c = &to->at[to->n];
        c->text = *text;
        strncpy(c->file, text->file, sizeof c->file - 1);
        hex(c->build_id, sizeof c->build_id, text->build_id, text->build_id_bytes);
    }
    to->n++;
}

static void put_mapping(struct pprof *w, struct copied_text *c)
{
    if (c->file[0] == '\0') {
        ssize_t n = readlink("/proc/self/exe", c->file, sizeof c->file - 1);
        c->file[n > 0 ? n : 0] = '\0';
    }
    w->mappings[w->nmappings++] = (struct mapping){c->text.start, c->text.limit};
    struct message m = {0};
    add_number(&m, MAPPING_ID, w->nmappings);
    add_number(&m, MAPPING_START, c->text.start);
    add_number(&m, MAPPING_LIMIT, c->text.limit);
    add_number(&m, MAPPING_OFFSET, c->text.offset);
    add_number(&m, MAPPING_FILE, put_string(w, c->file));
    add_number(&m, MAPPING_BUILD_ID, put_string(w, c->build_id));
    put_message(&w->gzip, PROFILE_MAPPING, &m);
}

static void each_text(struct m *m, struct copy_texts *to)
{
    struct m_wait wait;
    m_begin_walk(m, &wait);
    os_each_text(copy_text, to);
    m_end_walk(m, &wait);
}

/* False: no memory. */
static bool put_mappings(struct pprof *w, struct m *m)
{
    struct copy_texts texts_of = {0};
    each_text(m, &texts_of);
    size_t room = texts_of.n;
    size_t bytes = room * sizeof *texts_of.at;
    texts_of = (struct copy_texts){metaalloc(bytes), 0, room};
    w->mappings = metaalloc(room * sizeof *w->mappings);
    w->room = room;
    bool ok = texts_of.at != NULL && w->mappings != NULL;
    if (ok) {
        each_text(m, &texts_of);
        for (size_t i = 0; i < texts_of.n && i < room; i++) {
            put_mapping(w, &texts_of.at[i]);
        }
    }
    metafree(texts_of.at, bytes);
    return ok;
}

static uint64_t mapping_of(const struct pprof *w, uintptr_t pc)
{
    for (size_t i = 0; i < w->nmappings; i++) {
        if (pc >= w->mappings[i].start && pc < w->mappings[i].limit) {
            return i + 1;
        }
    }
    return 0;
}

/* -- samples ------------------------------------------------------------------------------------- */

/* pprof finds functions and lines itself, if the program was compiled with -g, and then forgets this. */
static void add_function(struct pprof *w, struct message *location, uintptr_t pc)
{
    const struct os_symbol *s = os_symbols_find(&w->symbols, pc);
    if (s == NULL) {
        return;
    }
    struct id *id = id_slot(&w->functions, s->start);
    if (id->key == 0) {
        struct message m = {0};
        uint64_t name = put_string(w, s->name);
        id->key = s->start;
        id->id = ++w->nfunctions;
        add_number(&m, FUNCTION_ID, id->id);
        add_number(&m, FUNCTION_NAME, name);
        add_number(&m, FUNCTION_SYSTEM_NAME, name);
        put_message(&w->gzip, PROFILE_FUNCTION, &m);
    }
    struct message line = {0};
    add_number(&line, LINE_FUNCTION, id->id);
    add_message(location, LOCATION_LINE, &line);
}

static uint64_t location_of(struct pprof *w, uintptr_t pc)
{
    struct id *id = id_slot(&w->locations, pc);
    if (id->key == 0) {
        id->key = pc;
        id->id = ++w->nlocations;
        struct message m = {0};
        add_number(&m, LOCATION_ID, id->id);
        add_number(&m, LOCATION_MAPPING, mapping_of(w, pc));
        add_number(&m, LOCATION_ADDRESS, pc);
        add_function(w, &m, pc);
        put_message(&w->gzip, PROFILE_LOCATION, &m);
    }
    return id->id;
}

static struct message label_message(struct pprof *w, const struct pprof_label *label)
{
    struct message m = {0};
    add_number(&m, LABEL_KEY, string_of(w, label->key));
    if (label->text != NULL) {
        add_number(&m, LABEL_TEXT, string_of(w, label->text));
    } else {
        add_number(&m, LABEL_NUMBER, label->number);
        add_number(&m, LABEL_UNIT, string_of(w, "bytes"));
    }
    return m;
}

void pprof_put(struct pprof *w, const struct pprof_sample *s)
{
    struct message locations = {0}, values = {0}, m = {0};
    for (size_t i = 0; i < s->depth; i++) {
        add_varint(&locations, location_of(w, s->pcs[i]));
    }
    for (size_t i = 0; i < s->nvalues; i++) {
        add_varint(&values, s->values[i]);
    }
    add_message(&m, SAMPLE_LOCATIONS, &locations);
    add_message(&m, SAMPLE_VALUES, &values);
    for (size_t i = 0; i < s->nlabels; i++) {
        struct message label = label_message(w, &s->labels[i]);
        add_message(&m, SAMPLE_LABEL, &label);
    }
    put_message(&w->gzip, PROFILE_SAMPLE, &m);
}

static int end(struct pprof *w, int error)
{
    int written = w->out.buffer != NULL ? writer_end(&w->out) : 0;
    ids_fini(&w->locations);
    ids_fini(&w->strings);
    ids_fini(&w->functions);
    os_symbols_release(&w->symbols);
    metafree(w->mappings, w->room * sizeof *w->mappings);
    metafree(w, sizeof *w);
    return error != 0 ? error : written;
}

static int begin(struct pprof *w, struct m *m, int fd, const struct pprof_head *head,
                 size_t most_pcs, size_t most_texts)
{
    int error = writer_init(&w->out, fd);
    if (error != 0) {
        return error;
    }
    if (!ids_init(&w->locations, most_pcs) || !ids_init(&w->functions, most_pcs) ||
        !ids_init(&w->strings, most_texts + TEXTS)) {
        return ENOMEM;
    }
    struct m_wait wait;
    m_begin_walk(m, &wait);
    os_symbols_begin(&w->symbols, OS_FUNCTIONS);
    m_end_walk(m, &wait);
    os_symbols_read(&w->symbols);
    gzip_begin(&w->gzip, &w->out);
    put_head(w, head);
    return put_mappings(w, m) ? 0 : ENOMEM;
}

struct pprof *pprof_begin(struct m *m, int fd, const struct pprof_head *head, size_t most_pcs,
                          size_t most_texts)
{
    struct pprof *w = metaalloc(sizeof *w);
    int error = w == NULL ? ENOMEM : begin(w, m, fd, head, most_pcs, most_texts);
    if (error != 0) {
        if (w != NULL) {
            (void)end(w, error);
        }
        errno = error;
        return NULL;
    }
    return w;
}

int pprof_end(struct pprof *w)
{
    gzip_end(&w->gzip);
    int error = end(w, 0);
    if (error != 0) {
        errno = error;
        return -1;
    }
    return 0;
}
