/* compile.c - tokens become code, in one pass.
 *
 * Each variable of a function has a slot of its own. Whether a closure captures it is known only
 * when the function ends: so its code is written as if none did, and then gone over once
 * (box_captured). Which variables leave the stack is thus decided before the program runs, as by
 * Go's escape analysis.
 *
 * The compiler's own state is in locals of C, which hold pointers to objects as any local does.
 * What stays, the functions, are objects, filled with LOAM_SET.
 */
#include "vm.h"

#include <string.h>

enum {
    VARIABLES_MAX = 250, /* of a function */
    NESTING_MAX = 200,   /* of statements and expressions: this pass recurses in C */
    ARRAY_MIN = 8,
    NONE = -1
};
static const value nil = {.kind = NIL};

struct compiler {
    struct lexer *x;
    struct compiler *outer; /* of the function around */
    function *fn;
    struct variable {
        string *name; /* NULL: the script cannot see it */
        int32_t slot;
    } visible[VARIABLES_MAX];
    uint32_t nvisible;
    bool captured[VARIABLES_MAX]; /* by slot */
    uint32_t operands;            /* there now */
};

/* ---- code ---- */

/* An array with room for one more than n elements; its room is a power of two. */
static void *array_grown(const loam_type *type, void *array, uint32_t n)
{
    if (n == 0)
        return loam_new(type, ARRAY_MIN);
    bool full = n >= ARRAY_MIN && (n & (n - 1)) == 0;
    return full ? loam_realloc(array, 2 * n * type->size) : array;
}

/* Its index. */
static int32_t emit(struct compiler *c, enum op op, int32_t operand)
{
    static const signed char effects[] = {OPS(OP_EFFECT)};
    function *fn = c->fn;
    LOAM_SET(fn->code, array_grown(LOAM_TYPEOF(instruction), fn->code, fn->ncode));
    fn->code[fn->ncode] = (instruction){op, c->x->line_before & 0xffffff, operand};
    c->operands += (uint32_t)(op == CALL ? -operand : effects[op]);
    if (fn->operands < c->operands)
        fn->operands = c->operands;
    return (int32_t)fn->ncode++;
}

/* Jumps count from the instruction behind them. */
static void jump_here(struct compiler *c, int32_t jump)
{
    c->fn->code[jump].operand = (int32_t)c->fn->ncode - jump - 1;
}

static void emit_constant(struct compiler *c, value v)
{
    function *fn = c->fn;
    int32_t i = (int32_t)fn->nconstants++;
    LOAM_SET(fn->constants, array_grown(LOAM_TYPEOF(value), fn->constants, (uint32_t)i));
    value_set(&fn->constants[i], v);
    emit(c, PUSH_CONSTANT, i);
}

/* ---- tokens ---- */

static bool take(struct compiler *c, const char *word)
{
    bool is = lex_is(c->x, word);
    if (is)
        lex_next(c->x);
    return is;
}

static void expect(struct compiler *c, const char *word)
{
    if (!take(c, word))
        lex_fail(c->x, "expected", word);
}

static string *expect_name(struct compiler *c)
{
    if (c->x->token != T_WORD)
        lex_fail(c->x, "expected", "a name");
    string *s = string_make(c->x->start, c->x->length);
    lex_next(c->x);
    return s;
}

/* Behind n of a list: there is another one, and we are before it. */
static bool another(struct compiler *c, int n, const char *close)
{
    if (take(c, close))
        return false;
    if (n > 0)
        expect(c, ",");
    return true;
}

/* ---- variables ---- */

/* Visible from now on; its slot. */
static int32_t declare(struct compiler *c, string *name)
{
    if (c->fn->variables == VARIABLES_MAX)
        lex_fail(c->x, "too many", "variables");
    int32_t slot = (int32_t)c->fn->variables++;
    c->visible[c->nvisible++] = (struct variable){name, slot};
    return slot;
}

/* With the topmost operand. */
static int32_t let(struct compiler *c, string *name)
{
    int32_t slot = declare(c, name);
    emit(c, LET, slot);
    return slot;
}

static int32_t find_local(const struct compiler *c, const string *name)
{
    for (uint32_t i = c->nvisible; i-- > 0;)
        if (c->visible[i].name != NULL && string_equal(c->visible[i].name, name))
            return c->visible[i].slot;
    return NONE;
}

/* A variable of a function around: each function in between captures it, too. */
static int32_t find_captured(struct compiler *c, const string *name)
{
    function *fn = c->fn;
    if (c->outer == NULL)
        return NONE;
    int32_t index = find_local(c->outer, name);
    bool is_local = index != NONE;
    if (is_local)
        c->outer->captured[index] = true;
    else if ((index = find_captured(c->outer, name)) == NONE)
        return NONE;
    for (uint32_t i = 0; i < fn->ncaptures; i++)
        if (fn->captures[i].index == index && fn->captures[i].is_local == is_local)
            return (int32_t)i;
    LOAM_SET(fn->captures, array_grown(LOAM_TYPEOF(capture), fn->captures, fn->ncaptures));
    fn->captures[fn->ncaptures] = (capture){index, is_local};
    return (int32_t)fn->ncaptures++;
}

/* ---- expressions ---- */

static void expression(struct compiler *c, int binds);
static void block(struct compiler *c);
static void make_closure(struct compiler *c, string *name);
static void statement(struct compiler *c);

/* What has been parsed but not yet read, since it may be assigned to: what would read it, and what
 * would write it. POP: it is an operand already. */
struct place {
    enum op read, write;
    int32_t operand;
};
static const struct place no_place = {POP, POP, 0}, element = {GET_ELEMENT, SET_ELEMENT, 0};

static void place_read(struct compiler *c, struct place p)
{
    if (p.read != POP)
        emit(c, p.read, p.operand);
}

static struct place variable(struct compiler *c)
{
    struct lexer before = *c->x;
    string *name = expect_name(c);
    int32_t i = find_local(c, name);
    if (i != NONE)
        return (struct place){GET_LOCAL, SET_LOCAL, i};
    i = find_captured(c, name);
    if (i != NONE)
        return (struct place){GET_CAPTURED, SET_CAPTURED, i};
    const native *n = native_find(name);
    if (n == NULL)
        lex_fail(&before, "no variable", name->bytes);
    emit_constant(c, (value){.kind = NATIVE, .native = n});
    return no_place;
}

/* { VALUE, .NAME = VALUE, [KEY] = VALUE }, behind the brace. */
static void table_literal(struct compiler *c)
{
    double count = 0;
    emit(c, NEW_TABLE, 0);
    for (int n = 0; another(c, n, "}"); n++) {
        if (take(c, ".")) {
            emit_constant(c, value_object(STRING, expect_name(c)));
            expect(c, "=");
        } else if (take(c, "[")) {
            expression(c, 0);
            expect(c, "]");
            expect(c, "=");
        } else {
            emit_constant(c, value_number(++count));
        }
        expression(c, 0);
        emit(c, INIT_ELEMENT, 0);
    }
}

static struct place primary(struct compiler *c)
{
    if (c->x->token == T_NUMBER || c->x->token == T_STRING) {
        emit_constant(c, c->x->literal);
        lex_next(c->x);
    } else if (take(c, "(")) {
        expression(c, 0);
        expect(c, ")");
    } else if (take(c, "{")) {
        table_literal(c);
    } else if (take(c, "fn")) {
        make_closure(c, NULL);
    } else if (take(c, "nil")) {
        emit_constant(c, nil);
    } else if (take(c, "true")) {
        emit_constant(c, value_bool(true));
    } else if (take(c, "false")) {
        emit_constant(c, value_bool(false));
    } else {
        return variable(c);
    }
    return no_place;
}

/* What calls or indexes begins on the line where the expression before it ends: so no sign has to
 * separate statements. */
static struct place suffixed(struct compiler *c)
{
    struct place p = primary(c);
    while (c->x->line == c->x->line_before &&
           (lex_is(c->x, "(") || lex_is(c->x, "[") || lex_is(c->x, "."))) {
        place_read(c, p);
        p = element;
        if (take(c, "(")) {
            int32_t n = 0;
            for (; another(c, n, ")"); n++)
                expression(c, 0);
            emit(c, CALL, n);
            p = no_place;
        } else if (take(c, ".")) {
            emit_constant(c, value_object(STRING, expect_name(c)));
        } else {
            expect(c, "[");
            expression(c, 0);
            expect(c, "]");
        }
    }
    return p;
}

static void nest(struct compiler *c)
{
    if (++c->x->nesting > NESTING_MAX)
        lex_fail(c->x, "too much", "nesting");
}

static void unary(struct compiler *c)
{
    nest(c);
    if (take(c, "not")) {
        unary(c);
        emit(c, NOT, 0);
    } else if (take(c, "-")) {
        emit_constant(c, value_number(0));
        unary(c);
        emit(c, SUBTRACT, 0);
    } else {
        place_read(c, suffixed(c));
    }
    c->x->nesting--;
}

static const struct binary {
    const char *sign;
    enum op op;
    int binds; /* how tightly */
} binaries[] = {{"or", OR, 1},        {"and", AND, 2},          {"==", EQUAL, 3},
                {"!=", NOT_EQUAL, 3}, {"<", LESS, 3},           {"<=", LESS_EQUAL, 3},
                {">", GREATER, 3},    {">=", GREATER_EQUAL, 3}, {"..", CONCAT, 4},
                {"+", ADD, 5},        {"-", SUBTRACT, 5},       {"*", MULTIPLY, 6},
                {"/", DIVIDE, 6},     {"%", REMAINDER, 6}};

static const struct binary *binary_above(const struct compiler *c, int binds)
{
    for (size_t i = 0; i < sizeof binaries / sizeof *binaries; i++)
        if (binaries[i].binds > binds && lex_is(c->x, binaries[i].sign))
            return &binaries[i];
    return NULL;
}

/* Of operators that bind more tightly (0: all of them); they group from the left. */
static void expression(struct compiler *c, int binds)
{
    unary(c);
    for (const struct binary *o; (o = binary_above(c, binds)) != NULL;) {
        bool decides = o->op == AND || o->op == OR; /* without its right side, perhaps */
        int32_t jump = decides ? emit(c, o->op, 0) : NONE;
        lex_next(c->x);
        expression(c, o->binds);
        if (decides)
            jump_here(c, jump);
        else
            emit(c, o->op, 0);
    }
}

/* ---- functions ---- */

/* What reads or writes a captured variable does it through its cell. Captured parameters are put
 * into cells by code at the end, where calls then begin. */
static void box_captured(struct compiler *c)
{
    function *fn = c->fn;
    uint32_t end = fn->ncode;
    for (instruction *i = fn->code; i < fn->code + end; i++)
        if (i->op >= GET_LOCAL && i->op <= LET && c->captured[i->operand])
            i->op += GET_BOXED - GET_LOCAL;
    for (int32_t i = 0; i < (int32_t)fn->parameters; i++)
        if (c->captured[i]) {
            emit(c, GET_LOCAL, i);
            emit(c, LET_BOXED, i);
            fn->entry = end;
        }
    emit(c, JUMP, -(int32_t)fn->ncode - 1);
}

/* From its parameters on; outer NULL: the program, which is a function without any. */
static function *function_literal(struct compiler *outer, struct lexer *x, string *name)
{
    struct compiler c = {.x = x, .outer = outer, .fn = LOAM_NEW(function)};
    LOAM_SET(c.fn->name, name);
    LOAM_SET(c.fn->file, x->file);
    if (outer != NULL) {
        expect(&c, "(");
        for (; another(&c, (int)c.fn->parameters, ")"); c.fn->parameters++)
            declare(&c, expect_name(&c));
        block(&c);
    }
    while (outer == NULL && x->token != T_END)
        statement(&c);
    emit_constant(&c, nil);
    emit(&c, RETURN, 0);
    box_captured(&c);
    return c.fn;
}

static void make_closure(struct compiler *c, string *name)
{
    emit_constant(c, value_object(FUNCTION, function_literal(c, c->x, name)));
    emit(c, MAKE_CLOSURE, 0);
}

/* ---- statements ---- */

static void let_statement(struct compiler *c)
{
    string *name = expect_name(c);
    if (take(c, "="))
        expression(c, 0);
    else
        emit_constant(c, nil);
    let(c, name);
}

/* Visible in its own body. */
static void fn_statement(struct compiler *c)
{
    string *name = expect_name(c);
    emit_constant(c, nil);
    int32_t slot = let(c, name);
    make_closure(c, name);
    emit(c, SET_LOCAL, slot);
}

static void if_statement(struct compiler *c)
{
    expression(c, 0);
    int32_t skip = emit(c, JUMP_UNLESS, 0);
    block(c);
    if (take(c, "else")) {
        int32_t end = emit(c, JUMP, 0);
        jump_here(c, skip);
        (lex_is(c->x, "if") ? statement : block)(c);
        skip = end;
    }
    jump_here(c, skip);
}

static void while_statement(struct compiler *c)
{
    int32_t start = (int32_t)c->fn->ncode;
    expression(c, 0);
    int32_t leave = emit(c, JUMP_UNLESS, 0);
    block(c);
    emit(c, JUMP, start - (int32_t)c->fn->ncode - 1);
    jump_here(c, leave);
}

/* for NAME in NUMBER: from 1 on. That is a hidden variable, and so is how far we are: the visible
 * one is new in each turn. */
static void for_statement(struct compiler *c)
{
    uint32_t visible = c->nvisible;
    string *name = expect_name(c);
    emit_constant(c, value_number(0));
    int32_t count = let(c, NULL);
    expect(c, "in");
    expression(c, 0);
    int32_t last = let(c, NULL), start = emit(c, GET_LOCAL, count);
    emit(c, GET_LOCAL, last);
    emit(c, LESS, 0);
    int32_t leave = emit(c, JUMP_UNLESS, 0);
    emit(c, GET_LOCAL, count);
    emit_constant(c, value_number(1));
    emit(c, ADD, 0);
    emit(c, SET_LOCAL, count);
    emit(c, GET_LOCAL, count);
    let(c, name);
    block(c);
    emit(c, JUMP, start - (int32_t)c->fn->ncode - 1);
    jump_here(c, leave);
    c->nvisible = visible;
}

/* Costs nothing while there is no error: only the table of handlers knows of it. */
static void try_statement(struct compiler *c)
{
    function *fn = c->fn;
    uint32_t from = fn->ncode, visible = c->nvisible;
    block(c);
    int32_t skip = emit(c, JUMP, 0);
    expect(c, "catch");
    LOAM_SET(fn->handlers, array_grown(LOAM_TYPEOF(handler), fn->handlers, fn->nhandlers));
    fn->handlers[fn->nhandlers++] = (handler){from, fn->ncode};
    emit(c, CATCH, 0);
    let(c, expect_name(c));
    block(c);
    c->nvisible = visible;
    jump_here(c, skip);
}

static void other_statement(struct compiler *c)
{
    struct place p = suffixed(c);
    if (!lex_is(c->x, "=")) {
        place_read(c, p);
        emit(c, POP, 0);
    } else if (p.write == POP) {
        lex_fail(c->x, "no place for", "a value");
    } else {
        lex_next(c->x);
        expression(c, 0);
        emit(c, p.write, p.operand);
    }
}

static void return_statement(struct compiler *c)
{
    if (c->x->line == c->x->line_before && !lex_is(c->x, "}"))
        expression(c, 0);
    else
        emit_constant(c, nil);
    emit(c, RETURN, 0);
}

static void statement(struct compiler *c)
{
    static const struct {
        const char *word;
        void (*parse)(struct compiler *c);
    } statements[] = {{"let", let_statement}, {"fn", fn_statement},
                      {"if", if_statement},   {"while", while_statement},
                      {"for", for_statement}, {"return", return_statement},
                      {"try", try_statement}};
    size_t n = sizeof statements / sizeof *statements, i = 0;
    nest(c);
    while (i < n && !take(c, statements[i].word))
        i++;
    (i < n ? statements[i].parse : other_statement)(c);
    take(c, ";");
    c->x->nesting--;
}

static void block(struct compiler *c)
{
    uint32_t visible = c->nvisible;
    expect(c, "{");
    while (!take(c, "}"))
        statement(c);
    c->nvisible = visible;
}

closure *compile(machine *m, const char *path, const char *text)
{
    struct lexer x = {.m = m, .at = text, .line = 1, .file = string_make(path, strlen(path))};
    closure *program = LOAM_NEW_FLEX(closure, 0);
    lex_next(&x);
    LOAM_SET(program->function, function_literal(NULL, &x, string_make("the program", 11)));
    return program;
}
