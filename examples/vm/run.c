/* run.c - frames on managed stacks: the loop, calls, coroutines, errors.
 *
 *     machine -> current coroutine -> its stack: frame, frame, frame
 *                        | resumer
 *                        v
 *                coroutine -> its stack: frame, frame
 *
 * A call of the script pushes a frame on the stack of the current coroutine, and the loop goes on
 * in it: the C stack stays as it is, however deep the script recurses, and to resume or to yield is
 * to go on with the topmost frame of another stack.
 *
 * Frames of the current coroutine and of those that wait for it are written plainly: their stacks
 * are entered. Nobody writes into the frames of a suspended one.
 */
#include "vm.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    MESSAGE_BYTES = 256,
    TRACE_MAX = 10 /* frames of a coroutine */,
    STACK_BYTES = 256 << 20 /* of frames, for a coroutine at most */
};

/* ---- errors ---- */

_Noreturn void fail_with(machine *m, value error)
{
    value_set(&m->error, error);
    longjmp(*m->escape, 1);
}

_Noreturn void fail(machine *m, const char *format, ...)
{
    char text[MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fail_with(m, value_object(STRING, string_make(text, strlen(text))));
}

/* Of the library: there is no memory. To a script that is an error like others. */
static void on_no_memory(void *arg)
{
    machine *m = arg;
    fail_with(m, value_object(STRING, m->no_memory));
}

static void print_place(const frame *f, const char *before)
{
    fprintf(stderr, "%s%s:%u", before, f->fn->function->file->bytes, (unsigned)f->pc[-1].line);
}

/* The frames of a stack from the topmost down, and where they are in the script. The first one of a
 * coroutine is not of the script. */
static void trace(const loam_mstack *s)
{
    int n = 0;
    for (const frame *f = loam_mstack_top(s); f->caller != NULL; f = loam_mstack_below(s, f))
        if (n++ < TRACE_MAX) {
            const string *name = f->fn->function->name;
            print_place(f, "  ");
            fprintf(stderr, " in %s\n", name == NULL ? "a function" : name->bytes);
        }
    if (n > TRACE_MAX)
        fprintf(stderr, "  ... and %d more\n", n - TRACE_MAX);
}

static void report(machine *m)
{
    fflush(stdout);
    const frame *f = m->current == NULL ? NULL : loam_mstack_top(m->current->stack);
    if (f != NULL && f->caller != NULL) /* of the script */
        print_place(f, "vm: ");
    else
        fputs("vm", stderr);
    if (m->error.kind ==
        NUMBER) /* its text would take memory, which may be what there is none of */
        fprintf(stderr, ": %.14g\n", m->error.number);
    else
        fprintf(stderr, ": %s\n", string_of(m->error)->bytes);
    for (; m->current != NULL; coroutine_leave(m, DONE))
        trace(m->current->stack);
}

/* ---- coroutines ---- */

static frame *frame_push(machine *m, loam_mstack *s, closure *fn)
{
    const function *code = fn->function;
    frame *f = LOAM_PUSH(s, frame, code->variables + code->operands);
    if (f == NULL)
        fail(m, "stack overflow");
    f->fn = fn;
    f->pc = code->code + code->entry;
    f->caller = loam_mstack_below(s, f);
    f->sp = f->slots + code->variables;
    return f;
}

/* Suspended in `start`, which calls fn with what it is resumed with. Where there is no memory for the frame fail leaves it
 * entered, and empty, until the program ends. */
coroutine *coroutine_make(machine *m, value fn)
{
    coroutine *co = LOAM_NEW(coroutine);
    LOAM_SET(co->stack, loam_mstack_make(STACK_BYTES));
    if (loam_mstack_enter(co->stack) != 0)
        fail(m, "a stack cannot be entered");
    frame *f = frame_push(m, co->stack, m->start);
    *f->sp++ = fn;
    loam_mstack_leave(co->stack);
    return co;
}

/* What is given to it will be the value of the call that has suspended it. */
void coroutine_resume(machine *m, coroutine *co)
{
    if (co->state != SUSPENDED || loam_mstack_enter(co->stack) != 0)
        fail(m, "the coroutine is not suspended");
    co->state = RUNNING;
    LOAM_SET(co->resumer, m->current);
    LOAM_SET(m->current, co);
}

/* Back to who resumed it, if anybody. */
void coroutine_leave(machine *m, enum state state)
{
    coroutine *co = m->current;
    loam_mstack_leave(co->stack);
    co->state = state;
    LOAM_SET(m->current, co->resumer);
    LOAM_SET(co->resumer, NULL);
    if (state == DONE)
        LOAM_SET(co->stack, NULL);
}

/* ---- calls ---- */

/* Of the topmost value but n, with these n. */
static void call(machine *m, int32_t n)
{
    loam_mstack *s = m->current->stack;
    frame *f = loam_mstack_top(s);
    value callee = f->sp[-n - 1];
    if (callee.kind == CLOSURE) {
        frame *called = frame_push(m, s, callee.closure);
        f = called->caller; /* where it is now */
        int32_t taken = (int32_t)callee.closure->function->parameters;
        memcpy(called->slots, f->sp - n, (size_t)(n < taken ? n : taken) * sizeof(value));
        f->sp -= n + 1;
    } else if (callee.kind == NATIVE) {
        value v[NATIVE_ARGUMENTS] = {{.kind = NIL}};
        memcpy(v, f->sp - n, (size_t)(n < NATIVE_ARGUMENTS ? n : NATIVE_ARGUMENTS) * sizeof *v);
        f->sp -= n + 1;
        v[0] = callee.native->call(m, v);
        f = loam_mstack_top(m->current->stack); /* of another coroutine, perhaps */
        *f->sp++ = v[0];
    } else {
        fail(m, "%s cannot be called", kind_names[callee.kind]);
    }
}

/* From the topmost frame. False: the program has ended. */
static bool call_return(machine *m, value v)
{
    loam_mstack *s = m->current->stack;
    frame *f = loam_mstack_top(s), *caller = f->caller;
    loam_mstack_pop(s);
    if (caller == NULL) {
        coroutine_leave(m, DONE);
        if (m->current == NULL)
            return false;
        caller = loam_mstack_top(m->current->stack);
    }
    *caller->sp++ = v;
    return true;
}

static value closure_make(frame *f, function *fn)
{
    closure *made = LOAM_NEW_FLEX(closure, fn->ncaptures);
    LOAM_SET(made->function, fn);
    for (uint32_t i = 0; i < fn->ncaptures; i++) {
        const capture *c = &fn->captures[i];
        LOAM_SET(made->cells[i], c->is_local ? f->slots[c->index].cell : f->fn->cells[c->index]);
    }
    return value_object(CLOSURE, made);
}

/* A new cell each time that a variable begins: closures of two turns of a loop share none. */
static value cell_make(value v)
{
    cell *c = LOAM_NEW(cell);
    value_set(&c->value, v);
    return value_object(CELL, c);
}

/* ---- the loop ---- */

static value concat(machine *m, value a, value b)
{
    const string *left = string_of(a), *right = string_of(b);
    size_t length = (size_t)left->length + right->length;
    if (length > TEXT_MAX)
        fail(m, "a string is too long");
    string *s = string_blank(length);
    memcpy(s->bytes, left->bytes, left->length);
    memcpy(s->bytes + left->length, right->bytes, right->length);
    return value_object(STRING, s);
}

static table *table_of(machine *m, value v)
{
    if (v.kind != TABLE)
        fail(m, "%s has no elements", kind_names[v.kind]);
    return v.table;
}

static value key_of(machine *m, value v)
{
    if (v.kind == NIL || !value_equal(v, v))
        fail(m, "%s is no key", string_of(v)->bytes);
    return v;
}

#define TRUTH(v) ((v).kind > FALSE)
#define OP(op, ...)  \
    case op:         \
        __VA_ARGS__; \
        break

/* Of two numbers a and b. */
#define NUMBERS(op, result)                                                  \
    case op: {                                                               \
        const value *v = sp -= 2;                                            \
        if (v[0].kind != NUMBER || v[1].kind != NUMBER)                      \
            fail(m, "no such operation on %s and %s", kind_names[v[0].kind], \
                 kind_names[v[1].kind]);                                     \
        double a = v[0].number, b = v[1].number;                             \
        *sp++ = result;                                                      \
        break;                                                               \
    }

#define LOAD() (f = loam_mstack_top(m->current->stack), sp = f->sp, pc = f->pc)

/* From the topmost frame of the current coroutine on, until the main program ends. What is called
 * here finds pc and sp in the frame; what may push or switch is followed by LOAD. */
static void interpret(machine *m)
{
    frame *f;
    value *sp;
    const instruction *pc;
    LOAD();
    for (;;) {
        int32_t i = pc->operand;
        enum op op = (enum op)pc++->op;
        f->pc = pc;
        f->sp = sp;
        switch (op) {
            OP(PUSH_CONSTANT, *sp++ = f->fn->function->constants[i]);
            OP(GET_LOCAL, *sp++ = f->slots[i]);
            OP(SET_LOCAL, f->slots[i] = *--sp);
            OP(LET, f->slots[i] = *--sp);
            OP(GET_BOXED, *sp++ = f->slots[i].cell->value);
            OP(SET_BOXED, value_set(&f->slots[i].cell->value, *--sp));
            OP(LET_BOXED, f->slots[i] = cell_make(*--sp));
            OP(GET_CAPTURED, *sp++ = f->fn->cells[i]->value);
            OP(SET_CAPTURED, value_set(&f->fn->cells[i]->value, *--sp));
            OP(NEW_TABLE, *sp++ = value_object(TABLE, LOAM_NEW(table)));
            OP(INIT_ELEMENT, sp -= 2, table_set(sp[-1].table, key_of(m, sp[0]), sp[1]));
            OP(GET_ELEMENT, sp--, sp[-1] = table_get(table_of(m, sp[-1]), sp[0]));
            OP(SET_ELEMENT, sp -= 3, table_set(table_of(m, sp[0]), key_of(m, sp[1]), sp[2]));
            NUMBERS(ADD, value_number(a + b))
            NUMBERS(SUBTRACT, value_number(a - b))
            NUMBERS(MULTIPLY, value_number(a * b))
            NUMBERS(DIVIDE, value_number(a / b))
            NUMBERS(REMAINDER, value_number(fmod(a, b)))
            NUMBERS(LESS, value_bool(a < b))
            NUMBERS(LESS_EQUAL, value_bool(a <= b))
            NUMBERS(GREATER, value_bool(a > b))
            NUMBERS(GREATER_EQUAL, value_bool(a >= b))
            OP(EQUAL, sp--, sp[-1] = value_bool(value_equal(sp[-1], sp[0])));
            OP(NOT_EQUAL, sp--, sp[-1] = value_bool(!value_equal(sp[-1], sp[0])));
            OP(CONCAT, sp--, sp[-1] = concat(m, sp[-1], sp[0]));
            OP(NOT, sp[-1] = value_bool(!TRUTH(sp[-1])));
            OP(JUMP, pc += i);
            OP(JUMP_UNLESS, pc += TRUTH(*--sp) ? 0 : i);
            OP(AND, TRUTH(sp[-1]) ? (void)sp-- : (void)(pc += i)); /* what decides stays */
            OP(OR, TRUTH(sp[-1]) ? (void)(pc += i) : (void)sp--);
            OP(CATCH, *sp++ = m->error);
            OP(MAKE_CLOSURE, sp[-1] = closure_make(f, sp[-1].function));
            OP(CALL, call(m, i), LOAD());
            OP(POP, sp--);
        case RETURN:
            if (!call_return(m, sp[-1]))
                return;
            LOAD();
        }
    }
}

/* ---- programs ---- */

static const handler *handler_at(const frame *f)
{
    const function *fn = f->fn->function;
    uint32_t at = (uint32_t)(f->pc - fn->code) - 1;
    for (const handler *h = fn->handlers; h < fn->handlers + fn->nhandlers; h++)
        if (h->from <= at && at < h->target)
            return h;
    return NULL;
}

/* Lets the program go on where the error is caught, in this coroutine or one that waits for it. */
static bool recover(machine *m)
{
    for (coroutine *co = m->current; co != NULL; co = co->resumer)
        for (frame *f = loam_mstack_top(co->stack); f != NULL; f = f->caller) {
            const handler *h = handler_at(f);
            if (h == NULL)
                continue;
            while (m->current != co)
                coroutine_leave(m, DONE);
            loam_mstack_unwind(co->stack, f);
            f->pc = f->fn->function->code + h->target;
            f->sp = f->slots + f->fn->function->variables;
            return true;
        }
    return false;
}

/* A coroutine begins in `start`: it calls what lies on its stack with what it is resumed with. */
machine *machine_make(void)
{
    static const instruction code[] = {{CALL, 0, 1}, {RETURN, 0, 0}};
    machine *m = LOAM_NEW(machine);
    function *fn = LOAM_NEW(function);
    LOAM_SET(fn->file, string_make("start", 5));
    LOAM_SET(fn->code, (instruction *)code); /* static, as natives */
    fn->operands = 2;
    LOAM_SET(m->start, LOAM_NEW_FLEX(closure, 0));
    LOAM_SET(m->start->function, fn);
    LOAM_SET(m->no_memory, string_make("out of memory", 13));
    loam_set_oom_handler(on_no_memory, m);
    return m;
}

bool machine_run(machine *m, const char *path)
{
    jmp_buf escape;
    m->escape = &escape;
    if (setjmp(escape) == 0) {
        closure *program = compile(m, path, file_read(m, path));
        coroutine_resume(m, coroutine_make(m, value_object(CLOSURE, program)));
        frame *f = loam_mstack_top(m->current->stack);
        *f->sp++ = value_object(NIL, NULL); /* what it is resumed with */
    } else if (!recover(m)) {
        report(m);
        return false;
    }
    interpret(m);
    return true;
}
