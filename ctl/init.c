/* `ckptctl init`: a new run for a service that starts later. */
#include "ctl/verbs.h"

#include "ctl/setup.h"
#include "ctl/text.h"
#include "store/run.h"

#include <errno.h>
#include <unistd.h>

int verb_init(struct ctl *ctl, const struct args *args)
{
	struct setup setup;
	struct error err;
	bool created;
	char dir[PATH_MAX];

	int r = setup_read(ctl, args, &setup, &err);
	if (r == 0)
		r = setup_become_owner(setup.dir, &err);
	int run_fd = r < 0 ? r : setup_folder(&setup, &created, &err);
	setup_become_self();
	if (run_fd < 0)
		return ctl_fail(ctl, run_fd, &err);
	close(run_fd);
	text_clean(setup.dir, dir, sizeof(dir));
	if (!created) {
		error_set(&err, -EEXIST, "there is a run in %s already", dir);
		return ctl_fail(ctl, -EEXIST, &err);
	}
	fprintf(ctl->out, "new run in %s\n", dir);
	return CTL_OK;
}
