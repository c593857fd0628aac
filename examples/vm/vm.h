/* vm.h - what the files of the interpreter share.
 *
 * A small language with closures, tables, coroutines and errors that can be caught: compiled to
 * code for a stack machine, and run by a loop that does not recurse in C for a call of the
 * script. All of it lies in the collected heap, the compiler's work too; nothing is freed by hand.
 * Read this file first, then run.c.
 *
 *     run.c      frames on managed stacks: calls, coroutines, errors, the loop
 *     object.c   strings and tables
 *     native.c   functions of the language that are written in C
 *     lex.c      text becomes tokens
 *     compile.c  tokens become code
 *     main.c     files
 *
 * Where a value lies decides how it is stored. In a frame of a stack that is entered, and in locals
 * of C: plainly. In an object: with value_set, or LOAM_SET where it is a pointer.
 */
#ifndef VM_H
#define VM_H

#include <loam.h>
#include <loam/sched.h>

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- values ---- */

/* What a condition takes for false comes first; a script never sees the last two. */
enum kind { NIL, FALSE, TRUE, NUMBER, STRING, TABLE, CLOSURE, NATIVE, COROUTINE, CELL, FUNCTION };

typedef struct value {
    enum kind kind;
    union {
        double number;
        struct string *string;
        struct table *table;
        struct closure *closure;
        const struct native *native; /* static: no object, so the collector ignores it */
        struct coroutine *coroutine;
        struct cell *cell;
        struct function *function;
        void *object; /* any of them, as the collector sees it: a number is no address to it */
    };
} value;
LOAM_TYPE(value, object);
_Static_assert(sizeof(double) == sizeof(void *), "object is the whole of a value's payload");

/* A store into an object. The marker looks at the payload only: the two need not come at once. */
static inline void value_set(value *slot, value v)
{
    slot->kind = v.kind;
    LOAM_SET(slot->object, v.object);
}

static inline value value_number(double n)
{
    return (value){.kind = NUMBER, .number = n};
}

static inline value value_bool(bool b)
{
    return (value){.kind = b ? TRUE : FALSE};
}

static inline value value_object(enum kind kind, void *object) /* NIL, NULL: nil */
{
    return (value){.kind = kind, .object = object};
}

/* ---- objects ---- */

enum { TEXT_MAX = 1 << 30 }; /* bytes */

/* Never changed once it is made, but for its hash. */
typedef struct string {
    uint32_t hash;   /* 0: not yet known */
    uint32_t length; /* without the zero that ends it for C */
    char bytes[];
} string;
LOAM_TYPE_FLEX(string, bytes); /* no pointers at all */

typedef struct entry {
    value key, value; /* key nil: free; value nil: removed */
} entry;
LOAM_TYPE(entry, key.object, value.object);

typedef struct table {
    entry *entries;      /* open addressing */
    uint32_t used, size; /* removed ones included; a power of two, or 0 */
    uint32_t count;      /* the keys 1 to count are there, count + 1 is not */
} table;
LOAM_TYPE(table, entries);

/* A variable that a closure has captured. A frame can move and ends with its call; this stays. */
typedef struct cell {
    value value;
} cell;
LOAM_TYPE(cell, value.object);

typedef struct closure {
    struct function *function;
    cell *cells[];
} closure;
LOAM_TYPE_FLEX(closure, cells, function);

typedef struct machine machine;
enum { NATIVE_ARGUMENTS = 3 };
typedef struct native {
    const char *name;
    value (*call)(machine *m, const value v[NATIVE_ARGUMENTS]); /* those left out are nil */
} native;

/* ---- code ---- */

/* clang-format off */
/* Each, and how many operands more or fewer there are behind it. */
#define OPS(X)                                                                                    \
    X(PUSH_CONSTANT, 1)                                                                           \
    X(GET_LOCAL, 1) X(SET_LOCAL, -1) X(LET, -1) /* the last: a variable begins */                 \
    X(GET_BOXED, 1) X(SET_BOXED, -1) X(LET_BOXED, -1) /* the same three if it is captured */      \
    X(GET_CAPTURED, 1) X(SET_CAPTURED, -1)                                                        \
    X(NEW_TABLE, 1) X(INIT_ELEMENT, -2) X(GET_ELEMENT, -1) X(SET_ELEMENT, -3)                     \
    X(ADD, -1) X(SUBTRACT, -1) X(MULTIPLY, -1) X(DIVIDE, -1) X(REMAINDER, -1)                     \
    X(LESS, -1) X(LESS_EQUAL, -1) X(GREATER, -1) X(GREATER_EQUAL, -1)                             \
    X(EQUAL, -1) X(NOT_EQUAL, -1) X(CONCAT, -1) X(NOT, 0)                                         \
    X(JUMP, 0) X(JUMP_UNLESS, -1) X(AND, -1) X(OR, -1)                                            \
    X(CATCH, 1) /* what a handler begins with */                                                  \
    X(MAKE_CLOSURE, 0) X(CALL, 0) /* less its operand */ X(RETURN, -1) X(POP, -1)
#define OP_NAME(name, effect) name,
#define OP_EFFECT(name, effect) [name] = effect,
enum op { OPS(OP_NAME) };
/* clang-format on */

typedef struct instruction {
    uint32_t op : 8, line : 24;
    int32_t operand;
} instruction;
LOAM_TYPE_NOSCAN(instruction);

/* Which variable a new closure takes: of the function that makes it, or one that this captured. */
typedef struct capture {
    int32_t index;
    bool is_local;
} capture;
LOAM_TYPE_NOSCAN(capture);

/* After an error in `from` to `target` - 1 it goes on at `target`. */
typedef struct handler {
    uint32_t from, target;
} handler;
LOAM_TYPE_NOSCAN(handler);

typedef struct function {
    string *name, *file; /* name NULL: none */
    instruction *code;
    value *constants;
    capture *captures;
    handler *handlers; /* inner ones first */
    uint32_t ncode, nconstants, ncaptures, nhandlers;
    uint32_t entry; /* where a call begins */
    uint32_t parameters;
    uint32_t variables, operands; /* slots for these, parameters first; for these at most, behind */
} function;
LOAM_TYPE(function, name, file, code, constants, captures, handlers);

/* ---- calls ---- */

/* A call, on the managed stack of its coroutine, which moves when it grows. Addresses within it
 * that LOAM_FRAME_INNER lists the library adjusts; what else holds one is stale after a push. */
typedef struct frame {
    closure *fn;
    const instruction *pc; /* what comes next; fn keeps the code, so it need not be listed */
    struct frame *caller;  /* NULL: the first of its coroutine */
    value *sp;             /* the next free operand */
    value slots[];         /* variables, then operands */
} frame;
LOAM_TYPE_FLEX(frame, slots, fn);
LOAM_FRAME_INNER(frame, caller, sp);

enum state { SUSPENDED, RUNNING /* it, or one that it has resumed */, DONE };

/* It and its stack are objects: suspended and no longer named by anything, both are collected. */
typedef struct coroutine {
    loam_mstack *stack;        /* NULL: done */
    struct coroutine *resumer; /* NULL: none, or this is the main program's */
    enum state state;
} coroutine;
LOAM_TYPE(coroutine, stack, resumer);

struct machine {
    coroutine *current; /* NULL: nothing runs */
    value error;        /* on its way from fail to who catches it */
    closure *start;     /* where coroutines begin */
    string *no_memory;  /* made in time */
    jmp_buf *escape;    /* where fail goes */
};
LOAM_TYPE(machine, current, error.object, start, no_memory);

/* ---- run.c ---- */

machine *machine_make(void);
bool machine_run(machine *m, const char *path); /* false: an error, which has been told */
_Noreturn void fail_with(machine *m, value error);
_Noreturn void fail(machine *m, const char *format, ...) __attribute__((format(printf, 2, 3)));
coroutine *coroutine_make(machine *m, value fn); /* begins with a call of fn */
void coroutine_resume(machine *m, coroutine *co);
void coroutine_leave(machine *m, enum state state); /* the current one */

/* ---- object.c ---- */

extern const char *const kind_names[];
string *string_blank(size_t length); /* to be filled at once */
string *string_make(const char *bytes, size_t length);
string *string_of(value v); /* as print shows it */
bool string_equal(const string *a, const string *b);
bool value_equal(value a, value b);
value table_get(const table *t, value key);
void table_set(table *t, value key, value v);

/* ---- lex.c ---- */

struct lexer {
    machine *m;
    string *file;
    const char *at; /* in the text, which it keeps; the token is before it */
    enum { T_WORD, T_SIGN, T_NUMBER, T_STRING, T_END } token;
    const char *start; /* of the token */
    size_t length;
    value literal;              /* of a T_NUMBER, T_STRING */
    uint32_t line, line_before; /* of the token, of the one before */
    unsigned nesting;           /* of what compile.c is in */
};
void lex_next(struct lexer *x);
bool lex_is(const struct lexer *x, const char *word); /* or a sign */
_Noreturn void lex_fail(const struct lexer *x, const char *what, const char *name);

/* ---- the others ---- */

const native *native_find(const string *name);                    /* NULL: none */
closure *compile(machine *m, const char *path, const char *text); /* text ends with a zero */
char *file_read(machine *m, const char *path);

#endif
