/* Assertions that stay in production: a programmer's error ends the process at once, with the
 * place, because every process here is built to be restarted from a whole state. Bad input from
 * outside never reaches these; it travels as -errno with a struct error. */
#pragma once

_Noreturn void panic_at(const char *file, int line, const char *what);

#define CHECK(expr) ((expr) ? (void)0 : panic_at(__FILE__, __LINE__, #expr))
#define PANIC(what) panic_at(__FILE__, __LINE__, (what))

/* Costly invariants (scans of whole tensors): debug builds only. */
#ifdef CKPTD_DEBUG
#define DEBUG_CHECK(expr) CHECK(expr)
#else
#define DEBUG_CHECK(expr) ((void)0)
#endif
