/* The supervisor itself, from supervisor_init to supervisor_fini, under a fuzz target: libuv is
 * tests/virtual/loop.h, the ledger's thread is a queue here, and clients and workers say what the
 * input tells them to. State memory and progress page are the real ones.
 *
 * An input is lines of text, so that it can be read and written by hand. A line is a letter, a
 * digit (which client, which worker) and the rest:
 *
 *     s0 {...}      client 0 sends the rest and a NUL; a byte 0x1e in it stands for NUL
 *     p0 {"met      the same without the NUL at the end
 *     q0            client 0 ends its connection, and is somebody new when it sends again
 *     z0            client 0 reads no more
 *     t3            time: 0 to 5 are 1 ms, 100 ms, 1 s, 5 s, 30 s, 150 s
 *     r TERM        a signal to the supervisor: HUP, PWR, TERM
 *     y0            it ends, and the next one gets the state memory and the progress page from
 *                   systemd's store
 *
 * and where workers may be mad (fuzz_worker):
 *
 *     b1            worker 1 does the next thing that an honest one would do
 *     m1 {...}      says the rest, and a NUL; n1 without it
 *     e1 text       writes it to stderr
 *     x1 74         exits with this code;  k1 9: dies of this signal
 *     g moves 7     a field of the progress page (service_workers.c lists them)
 *     o 64 7        the 64-bit word of the progress page with this number
 *     h seq step branch kind loss images skipped      a row of the ring, and the head
 *     c step branch updates images skipped in_row     a record with the right sum in a sealed slot
 *     w 2048 7      the 64-bit word of the state memory's first pages with this number
 *     l rung furthest climb                           the ladder's bytes, with the right sum
 *
 * Workers are numbered prepare, train, save, sample, verify, scrub, mirror. A line that means
 * nothing is passed over. */
#pragma once

#include "supervisor/supervisor.h"
#include "tests/fuzz/fuzz.h"
#include "tests/virtual/ledger.h"
#include "tests/virtual/loop.h"

#define SERVICE_CLIENTS 8
#define SERVICE_STEPS 1000 /* steps_total */
#define SERVICE_SECTION_BYTES ((uint64_t)1 << 20)

enum service_role {
	ROLE_PREPARE,
	ROLE_TRAIN,
	ROLE_SAVE,
	ROLE_SAMPLE,
	ROLE_VERIFY,
	ROLE_SCRUB,
	ROLE_MIRROR,
	ROLE_COUNT
};

extern struct supervisor service_sup;
/* Workers do what the input says; else they are honest. */
extern bool service_mad;

/* Plays one input from the supervisor's beginning to its end. */
void service_play(const uint8_t *data, size_t size, bool mad_workers);
/* So long, in virtual time; false when the supervisor has come to its end. */
bool service_pass(nsec_t duration_ns);

/* No control characters: fit for a terminal, a log and a line of systemd's protocol. */
bool text_is_plain(const char *text);
/* What must hold of a status, an answer: texts are plain, numbers not negative. */
void json_check_plain(const char *key, const json_t *value);

/* -- service_ledger.c -- */
struct service_saved {
	uint64_t step;
	uint32_t branch;
};
void ledger_reset(void);
void ledger_note_saved(uint64_t step, uint32_t branch);
/* Jobs that change something, ever given in this life: forks, keep marks, reloads. */
extern uint32_t ledger_changes;

/* -- service_workers.c -- */
void workers_reset(void);
/* The greatest step that any record, of an honest one or not, has told. */
extern uint64_t workers_furthest;
nsec_t workers_next_ns(void);
void workers_advance(void);
/* True when the stream was a worker's. */
bool workers_hear(const uv_stream_t *stream, const char *data, size_t size);
/* A line of an input; letter is one of its own. */
void workers_line(char letter, uint32_t role, const char *rest, size_t size);
/* Samples and verifications, ever begun in this life. */
extern uint32_t workers_asked_for;

/* -- service_people.c -- */
void people_reset(void);
/* Somebody who may change something has spoken in another way. */
void people_owner_speaks(void);
void people_line(char letter, uint32_t client, char *rest, size_t size);
void people_hear(uv_stream_t *stream, const char *data, size_t size);
void people_closed(const uv_handle_t *handle);
/* Honest workers are at work: after some time nobody may be left without an answer. */
void people_check_answered(void);
