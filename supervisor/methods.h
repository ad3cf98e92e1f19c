/* The methods of io.ckptd.Training: one table says who may call what. */
#pragma once

#include "base/clock.h"
#include "supervisor/control.h"

struct supervisor;

/* The control_handler; owner is the supervisor. */
void methods_handle(void *owner, struct call *call);
/* The body of a Status stream's next reply; NULL when nothing changed since *revision. */
json_t *methods_stream(void *owner, uint64_t *revision);
/* Refused calls that were not told yet. */
void methods_tick(struct supervisor *sup, nsec_t now_ns);
