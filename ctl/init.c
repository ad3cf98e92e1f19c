/* `ckptctl init`: a new run for a service that starts later. */
#include "ctl/verbs.h"

#include "ctl/mirror.h"
#include "ctl/setup.h"
#include "ctl/text.h"
#include "store/run.h"

#include <errno.h>
#include <unistd.h>

struct origin {
	struct ctl *ctl;
	const char *mirror;
};

static int make_from_mirror(
	void *context, const char *dir, int run_fd, const struct config *config, struct error *err)
{
	const struct origin *origin = context;

	return mirror_into_folder(origin->ctl, origin->mirror, dir, run_fd, config, err);
}

int verb_init(struct ctl *ctl, const struct args *args)
{
	struct setup setup;
	struct error err;
	bool created;
	char dir[PATH_MAX];

	struct origin origin = {ctl, args_text(args, "from-mirror")};
	int r = setup_read(ctl, args, &setup, &err);

	if (origin.mirror != NULL) {
		setup.make = make_from_mirror;
		setup.context = &origin;
	}
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
	fprintf(ctl->out, "%s in %s\n", origin.mirror != NULL ? "the run is" : "new run", dir);
	return CTL_OK;
}
