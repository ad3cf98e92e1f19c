/* A libuv of virtual time: the calls that supervisor/ makes, over one queue of things that happen.
 * No thread, no descriptor, no clock of this machine. What is outside of the supervisor (processes,
 * clients, disks) is given by a host: the functions below that begin with host_.
 *
 * Linked before libuv it takes the place of the functions it defines; the clock is wrapped. */
#pragma once

#include "base/clock.h"

#include <stdbool.h>
#include <uv.h>

#define VIRTUAL_NEVER INT64_MAX
/* Of processes: no process of this machine has such a number. */
#define VIRTUAL_PID_FIRST 100000000

/* Now, for both clocks; wall time may jump. */
extern nsec_t virtual_now_ns, virtual_wall_ns;

/* Forgets all handles and everything pending, as the death of the process does. */
void virtual_reset(void);
/* The next thing that happens; false when uv_stop was called or there is nothing more to come. */
bool virtual_turn(void);
/* Ticks that host_tick_ns put off come when they were asked for. */
void virtual_hurry(void);
/* A signal to the supervisor. */
void virtual_signal(int number);
/* Bytes on a stream that the supervisor reads: false when it reads no more. size 0: its end. */
bool virtual_deliver(uv_stream_t *stream, const char *data, size_t size);
bool virtual_is_closing(const uv_stream_t *stream);
/* Somebody connects to the listening socket: false when there is none. host_accepted follows. */
bool virtual_connect(void);

/* -- the host's -- */

/* When the next thing outside happens, and that it does. */
nsec_t host_next_ns(void);
void host_advance(void);
/* A tick that was asked for in after_ms: when it comes. */
nsec_t host_tick_ns(uint64_t after_ms);
int host_spawned(uv_process_t *process, const uv_process_options_t *options);
void host_signalled(uv_process_t *process, int number);
/* A stream that virtual_connect made, and whose it is. */
void host_accepted(uv_stream_t *stream);
void host_written(uv_stream_t *stream, const char *data, size_t size);
void host_closed(const uv_handle_t *handle);
