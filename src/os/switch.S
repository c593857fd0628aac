/* switch.S - os_switch: leave one stack and go on on another.
 *
 *   void *os_switch(uintptr_t *save, uintptr_t to, void *arg);
 *
 * Pushes what a called function must preserve (registers, and how floating point rounds), stores the stack pointer in *save,
 * takes `to` for it and pops the same there. `arg` is the result of the call that `to` was left by.
 *
 * A fresh stack (os_switch_prepare) holds such a frame, whose return address is os_switch_begin: that calls the function
 * whose address is in the first preserved register, with `arg`. Unwinders end there.
 *
 * os_call_beneath calls a function on a stack that was left, below what is in use there; an unwinder goes on from it to who
 * left that stack.
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
    .globl os_switch
    .hidden os_switch
    .type os_switch, @function
os_switch:
    .cfi_startproc
    _CET_ENDBR
    pushq %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    pushq %rbx
    .cfi_def_cfa_offset 24
    .cfi_offset %rbx, -24
    pushq %r12
    .cfi_def_cfa_offset 32
    .cfi_offset %r12, -32
    pushq %r13
    .cfi_def_cfa_offset 40
    .cfi_offset %r13, -40
    pushq %r14
    .cfi_def_cfa_offset 48
    .cfi_offset %r14, -48
    pushq %r15
    .cfi_def_cfa_offset 56
    .cfi_offset %r15, -56
    subq $8, %rsp
    .cfi_def_cfa_offset 64
    stmxcsr (%rsp)
    fnstcw 4(%rsp)
    movl (%rsp), %ecx /* each as it was stored: else the load waits for the stores */
    movzwl 4(%rsp), %eax
    movq %rsp, (%rdi)
    movq %rsi, %rsp /* the other stack has the same frame, so all that is said above holds on it */
    xorl (%rsp), %ecx
    xorw 4(%rsp), %ax
    andl $0xffffffc0, %ecx /* of mxcsr the low six bits are flags, which belong to nobody */
    orl %eax, %ecx
    jne 2f
1:  addq $8, %rsp
    .cfi_def_cfa_offset 56
    movq %rdx, %rax
    popq %r15
    .cfi_def_cfa_offset 48
    .cfi_restore %r15
    popq %r14
    .cfi_def_cfa_offset 40
    .cfi_restore %r14
    popq %r13
    .cfi_def_cfa_offset 32
    .cfi_restore %r13
    popq %r12
    .cfi_def_cfa_offset 24
    .cfi_restore %r12
    popq %rbx
    .cfi_def_cfa_offset 16
    .cfi_restore %rbx
    popq %rbp
    .cfi_def_cfa_offset 8
    .cfi_restore %rbp
    ret
2:  .cfi_def_cfa_offset 64
    .cfi_offset %rbp, -16
    .cfi_offset %rbx, -24
    .cfi_offset %r12, -32
    .cfi_offset %r13, -40
    .cfi_offset %r14, -48
    .cfi_offset %r15, -56
    ldmxcsr (%rsp)
    fldcw 4(%rsp)
    jmp 1b
    .cfi_endproc
    .size os_switch, . - os_switch

    .balign 16
    .globl os_switch_begin
    .hidden os_switch_begin
    .type os_switch_first, @function
os_switch_first:
    .cfi_startproc
    .cfi_undefined %rip
    nop /* unwinders look one byte before the return address */
os_switch_begin:
    movq %rax, %rdi
    call *%rbx
    ud2
    .cfi_endproc
    .size os_switch_first, . - os_switch_first

/* void os_call_beneath(void (*fn)(void *arg), void *arg, uintptr_t sp) */
    .balign 16
    .globl os_call_beneath
    .hidden os_call_beneath
    .type os_call_beneath, @function
os_call_beneath:
    .cfi_startproc
    _CET_ENDBR
    pushq %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    movq %rsp, %rbp
    pushq %rbx
    .cfi_offset %rbx, -24
    movq %rdx, %rbx
    leaq -128(%rdx), %rsp
    /* From here on as in os_switch, on the stack that it left at rbx. */
    .cfi_remember_state
    .cfi_def_cfa %rbx, 64
    .cfi_offset %rbp, -16
    .cfi_offset %rbx, -24
    .cfi_offset %r12, -32
    .cfi_offset %r13, -40
    .cfi_offset %r14, -48
    .cfi_offset %r15, -56
    movq %rdi, %rax
    movq %rsi, %rdi
    call *%rax
    .cfi_restore_state
    leaq -8(%rbp), %rsp
    popq %rbx
    .cfi_restore %rbx
    popq %rbp
    .cfi_restore %rbp
    .cfi_def_cfa %rsp, 8
    ret
    .cfi_endproc
    .size os_call_beneath, . - os_call_beneath

#elif defined(__aarch64__)

    .text
    .balign 16
    .globl os_switch
    .hidden os_switch
    .type os_switch, %function
os_switch:
    .cfi_startproc
    hint #34 /* bti c */
    stp x29, x30, [sp, #-176]!
    .cfi_def_cfa_offset 176
    .cfi_offset x29, -176
    .cfi_offset x30, -168
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    .cfi_offset x19, -160
    .cfi_offset x20, -152
    .cfi_offset x21, -144
    .cfi_offset x22, -136
    .cfi_offset x23, -128
    .cfi_offset x24, -120
    .cfi_offset x25, -112
    .cfi_offset x26, -104
    .cfi_offset x27, -96
    .cfi_offset x28, -88
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mrs x4, fpcr
    str x4, [sp, #160]
    mov x3, sp
    str x3, [x0]
    mov sp, x1 /* the other stack has the same frame, so all that is said above holds on it */
    ldr x5, [sp, #160]
    cmp x4, x5
    b.eq 1f
    msr fpcr, x5
1:  mov x0, x2
    ldp d14, d15, [sp, #144]
    ldp d12, d13, [sp, #128]
    ldp d10, d11, [sp, #112]
    ldp d8, d9, [sp, #96]
    ldp x27, x28, [sp, #80]
    ldp x25, x26, [sp, #64]
    ldp x23, x24, [sp, #48]
    ldp x21, x22, [sp, #32]
    ldp x19, x20, [sp, #16]
    ldp x29, x30, [sp], #176
    .cfi_def_cfa_offset 0
    .cfi_restore x29
    .cfi_restore x30
    .cfi_restore x19
    .cfi_restore x20
    .cfi_restore x21
    .cfi_restore x22
    .cfi_restore x23
    .cfi_restore x24
    .cfi_restore x25
    .cfi_restore x26
    .cfi_restore x27
    .cfi_restore x28
    ret
    .cfi_endproc
    .size os_switch, . - os_switch

    .balign 16
    .globl os_switch_begin
    .hidden os_switch_begin
    .type os_switch_first, %function
os_switch_first:
    .cfi_startproc
    .cfi_undefined x30
    nop /* unwinders look before the return address */
os_switch_begin:
    hint #36 /* bti j */
    blr x19
    brk #0
    .cfi_endproc
    .size os_switch_first, . - os_switch_first

/* void os_call_beneath(void (*fn)(void *arg), void *arg, uintptr_t sp) */
    .balign 16
    .globl os_call_beneath
    .hidden os_call_beneath
    .type os_call_beneath, %function
os_call_beneath:
    .cfi_startproc
    hint #34 /* bti c */
    stp x29, x30, [sp, #-32]!
    .cfi_def_cfa_offset 32
    .cfi_offset x29, -32
    .cfi_offset x30, -24
    str x19, [sp, #16]
    .cfi_offset x19, -16
    mov x29, sp
    mov x19, x2
    sub sp, x2, #128
    /* From here on as in os_switch, on the stack that it left at x19. */
    .cfi_remember_state
    .cfi_def_cfa x19, 176
    .cfi_offset x29, -176
    .cfi_offset x30, -168
    .cfi_offset x19, -160
    .cfi_offset x20, -152
    .cfi_offset x21, -144
    .cfi_offset x22, -136
    .cfi_offset x23, -128
    .cfi_offset x24, -120
    .cfi_offset x25, -112
    .cfi_offset x26, -104
    .cfi_offset x27, -96
    .cfi_offset x28, -88
    mov x9, x0
    mov x0, x1
    blr x9
    .cfi_restore_state
    mov sp, x29
    ldr x19, [sp, #16]
    ldp x29, x30, [sp], #32
    .cfi_def_cfa_offset 0
    .cfi_restore x19
    .cfi_restore x29
    .cfi_restore x30
    ret
    .cfi_endproc
    .size os_call_beneath, . - os_call_beneath

#else
#error "os_switch is written for x86-64 and aarch64"
#endif

    .section .note.GNU-stack, "", %progbits
