/* The methods of io.ckptd.Training: one table says who may call what. */
#pragma once

#include "supervisor/control.h"

/* The control_handler; owner is the supervisor. */
void methods_handle(void *owner, struct call *call);
/* The body of a Status stream's next reply; NULL when nothing changed since *revision. */
json_t *methods_stream(void *owner, uint64_t *revision);
