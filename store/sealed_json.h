/* Small JSON files that must not be believed when a bit of them has changed (run.json and the
 * branch files): one object whose "check" is the BLAKE2b-256 of the compact, key-sorted text of all
 * its other members. Private to store/. */
#pragma once

#include "base/error.h"
#include "proto/json.h"

#include <sys/types.h>

#define SEALED_JSON_BYTES_MAX ((size_t)256 << 10)

/* Adds "check". -ENOMEM. */
int sealed_json_seal(json_t *object);

/* Seals and gives the text to write, malloc'ed, one member a line. -ENOMEM. */
int sealed_json_text(json_t *object, char **ret_text);

/* Reads a whole file and checks it: -ENOENT, -EBADMSG (not JSON, wrong check), -EPROTONOSUPPORT
 * (its "format" is newer), others as the file system says. A new reference. */
int sealed_json_read(int dir_fd, const char *name, int64_t format, json_t **ret, struct error *err);
