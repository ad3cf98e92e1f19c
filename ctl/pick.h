/* Finding a checkpoint file for a verb that reads it here. */
#pragma once

#include "ctl/ctl.h"
#include "store/checkpoint.h"

/* text: a file (with a '/' or the suffix), an id, or NULL for the newest verified one. The run's
 * folder: --state, else ./ckptd-state, else what the running daemon says. Returns the descriptor.
 */
int pick_checkpoint(
	const struct ctl *ctl, const char *text, struct checkpoint_info *ret, struct error *err);
/* A file, by how it is written. */
bool pick_is_file(const char *text);
/* Opens the folder of the file at path; *ret_name: its last part. */
int pick_dir(const char *path, const char **ret_name, struct error *err);
/* Opens the file at path as a checkpoint. */
int pick_file(const char *path, struct checkpoint_info *ret, struct error *err);
