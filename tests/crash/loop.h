/* Loop devices and mounts for tests of real file systems: in a mount namespace of this process, so
 * that everything is gone with it, however it ends. */
#pragma once

#include <stdbool.h>

/* NULL, or what this machine does not give for file systems made by these programs. */
const char *loop_lacks(const char *const *programs);
/* A namespace of mounts of our own. */
bool loop_isolate(void);
/* A sparse file of mib MiB. */
bool loop_make_file(const char *path, long mib);
/* Runs a program to its end without output; arguments end in NULL. */
bool loop_run(const char *const *arguments);
/* Attaches image to a loop device that goes with its last user, and mounts it at the folder. */
bool loop_mount(const char *image, const char *folder, const char *type, const char *options);
bool loop_unmount(const char *folder);
/* to becomes a copy of from that shares its blocks (FICLONE): what the kernel had submitted. */
bool loop_clone(const char *from, const char *to);
