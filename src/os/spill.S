/* spill.S - os_call_spilled: call a function with every callee-saved register on the stack.
 *
 *   void os_call_spilled(void (*fn)(void *arg, uintptr_t sp), void *arg);
 *
 * fn(arg, sp), where [sp, ...) holds the callee-saved registers of our caller. The caller-saved
 * ones hold nothing that outlives the call.
 */
#if defined(__x86_64__)
#if defined(__CET__) && defined(__has_include)
#if __has_include(<cet.h>)
#include <cet.h>
#endif
#endif
#ifndef _CET_ENDBR
#define _CET_ENDBR endbr64
#endif

    .text
    .balign 16
    .globl os_call_spilled
    .hidden os_call_spilled
    .type os_call_spilled, @function
os_call_spilled:
    .cfi_startproc
    _CET_ENDBR
    pushq %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    movq %rsp, %rbp
    .cfi_def_cfa_register %rbp
    pushq %rbx
    .cfi_offset %rbx, -24
    pushq %r12
    .cfi_offset %r12, -32
    pushq %r13
    .cfi_offset %r13, -40
    pushq %r14
    .cfi_offset %r14, -48
    pushq %r15
    .cfi_offset %r15, -56
    subq $8, %rsp /* calls are made with sp a multiple of 16 */
    movq %rdi, %rax
    movq %rsi, %rdi
    movq %rsp, %rsi
    call *%rax
    /* They are preserved by fn: only the stack has to go back. */
    leave
    .cfi_def_cfa %rsp, 8
    .cfi_restore %rbp
    ret
    .cfi_endproc
    .size os_call_spilled, . - os_call_spilled

#elif defined(__aarch64__)

    .text
    .balign 16
    .globl os_call_spilled
    .hidden os_call_spilled
    .type os_call_spilled, %function
os_call_spilled:
    .cfi_startproc
    hint #34 /* bti c */
    stp x29, x30, [sp, #-160]!
    .cfi_def_cfa_offset 160
    .cfi_offset x29, -160
    .cfi_offset x30, -152
    mov x29, sp
    .cfi_def_cfa_register x29
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    .cfi_offset x19, -144
    .cfi_offset x20, -136
    .cfi_offset x21, -128
    .cfi_offset x22, -120
    .cfi_offset x23, -112
    .cfi_offset x24, -104
    .cfi_offset x25, -96
    .cfi_offset x26, -88
    .cfi_offset x27, -80
    .cfi_offset x28, -72
    /* The low halves of v8-v15 are preserved too: a compiler may keep a pointer there. */
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x2, x0
    mov x0, x1
    mov x1, sp
    blr x2
    /* They are preserved by fn: only the frame has to go. */
    ldp x29, x30, [sp], #160
    .cfi_def_cfa sp, 0
    .cfi_restore x29
    .cfi_restore x30
    ret
    .cfi_endproc
    .size os_call_spilled, . - os_call_spilled

#else
#error "os_call_spilled is written for x86-64 and aarch64"
#endif

    .section .note.GNU-stack, "", %progbits
