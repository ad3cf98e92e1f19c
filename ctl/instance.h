/* The instances of the service: ckptd@NAME has /etc/ckptd/NAME.conf, /var/lib/ckptd/NAME and
 * /run/ckptd/NAME/ckptd.sock. */
#pragma once

#include "base/error.h"

#include <stddef.h>

#define INSTANCE_RUNTIME "/run/ckptd"

/* The socket of instance name in the folder runtime; name NULL: of the only one that has a socket
 * there. -EINVAL: no name of an instance; -ENOTCONN: there is none; -ENOTUNIQ: there are several,
 * which the line names; -ENAMETOOLONG. */
int instance_socket(
	const char *runtime, const char *name, char *path, size_t size, struct error *err);

/* The instance's file and folder. -EINVAL, -ENAMETOOLONG. */
int instance_config(const char *name, char *path, size_t size, struct error *err);
int instance_state(const char *name, char *path, size_t size, struct error *err);
