/* System calls that code which decodes foreign files never needs are refused from here on. */
#pragma once

/* For the whole process, all its threads and for good: no new program, no new socket, no debugging,
 * no mount, no namespace, no change of user or of the machine, and no change of a file by its path
 * alone (mode, owner, times, length). They fail with EPERM; calls of a foreign architecture end the
 * process. A child (a disk that may hang is asked by one) is confined as well. Opening files is
 * base/landlock.h's affair, and what is open stays open. 0, or -errno where the kernel has no
 * seccomp or refuses it: nothing is confined then. */
int sandbox_enter(void);
