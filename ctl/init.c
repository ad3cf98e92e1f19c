/* `ckptctl init`: a new run for a service that starts later. */
#include "ctl/verbs.h"

#include "ctl/setup.h"
#include "ctl/text.h"
#include "store/run.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

/* As root in a folder that belongs to the service's user: what is made there must be that user's.
 */
static int become_owner(const char *dir, struct error *err)
{
	struct stat st;

	if (geteuid() != 0 || stat(dir, &st) < 0 || st.st_uid == 0)
		return 0;
	if (setegid(st.st_gid) < 0 || seteuid(st.st_uid) < 0)
		return error_set(err, -errno, "cannot become the owner of %s", dir);
	return 0;
}

static void become_self(void)
{
	if (seteuid(getuid()) == 0 && setegid(getgid()) == 0)
		return;
}

int verb_init(struct ctl *ctl, const struct args *args)
{
	struct setup setup;
	struct error err;
	bool created;
	char dir[PATH_MAX];

	int r = setup_read(ctl, args, &setup, &err);
	if (r == 0)
		r = become_owner(setup.dir, &err);
	int run_fd = r < 0 ? r : setup_folder(&setup, &created, &err);
	become_self();
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
