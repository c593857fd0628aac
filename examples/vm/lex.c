/* lex.c - text becomes tokens. */
#include "vm.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

_Noreturn void lex_fail(const struct lexer *x, const char *what, const char *name)
{
    fail(x->m, "%s:%u: %s %s at '%.*s'", x->file->bytes, (unsigned)x->line, what, name,
         (int)x->length, x->start);
}

bool lex_is(const struct lexer *x, const char *word)
{
    return x->token <= T_SIGN && strlen(word) == x->length &&
           memcmp(word, x->start, x->length) == 0;
}

static void lex_space(struct lexer *x)
{
    for (; isspace((unsigned char)*x->at) || (x->at[0] == '/' && x->at[1] == '/'); x->at++) {
        if (*x->at == '/')
            x->at += strcspn(x->at, "\n");
        if (*x->at == '\0')
            return;
        x->line += *x->at == '\n';
    }
}

void lex_next(struct lexer *x)
{
    x->line_before = x->line;
    lex_space(x);
    x->start = x->at;
    x->length = *x->at != '\0';
    x->at += x->length;
    if (x->length == 0) {
        x->token = T_END;
    } else if (isdigit((unsigned char)*x->start)) {
        char *end;
        x->token = T_NUMBER;
        x->literal = value_number(strtod(x->start, &end));
        x->at = end[-1] == '.' ? end - 1 : end; /* a dot there belongs to the operator .. */
    } else if (*x->start == '"') {
        size_t length = strcspn(x->at, "\"\n");
        if (x->at[length] != '"')
            lex_fail(x, "no end of", "a string");
        x->token = T_STRING;
        x->literal = value_object(STRING, string_make(x->at, length));
        x->at += length + 1;
    } else if (isalpha((unsigned char)*x->start)) {
        x->token = T_WORD;
        while (isalnum((unsigned char)*x->at) || *x->at == '_')
            x->at++;
    } else {
        x->token = T_SIGN;
        x->at += (strchr("=!<>", *x->start) != NULL && *x->at == '=') ||
                 (*x->start == '.' && *x->at == '.');
    }
    x->length = (size_t)(x->at - x->start);
}
