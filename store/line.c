/* Branches and the line. The files are read whole at each load; nothing is cached. A branch exists
 * when its file is durable and not before, and is never changed afterwards. */
#include "store/line.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/panic.h"
#include "store/scan.h"
#include "store/sealed_json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BRANCH_FORMAT 1
#define FIRST_BRANCH 1

const struct line_branch *line_find(const struct line *line, uint32_t branch)
{
	for (uint32_t i = 0; i < line->count; i++)
		if (line->branches[i].branch == branch)
			return &line->branches[i];
	return NULL;
}

const struct line_branch *line_before(const struct line *line, const struct line_branch *branch)
{
	return branch->fork_step > 0 ? line_find(line, branch->parent) : NULL;
}

uint32_t line_beginning(const struct line *line, uint32_t branch)
{
	const struct line_branch *at = line_find(line, branch), *before = at;

	while (before != NULL) {
		at = before;
		before = line_before(line, at);
	}
	return at != NULL ? at->branch : 0;
}

/* Whether (branch, step) lies on the line that ends in `last`. Going down, each fork can only lower
 * the limit: a grandparent counts no further than the lowest fork on the way. */
static bool contains_from(const struct line *line, uint32_t last, uint32_t branch, uint64_t step)
{
	const struct line_branch *at = line_find(line, last);
	uint64_t limit = UINT64_MAX;

	while (at != NULL) {
		if (at->branch == branch)
			return step <= limit;
		if (at->fork_step < limit)
			limit = at->fork_step;
		at = at->parent != 0 ? line_find(line, at->parent) : NULL;
	}
	return false;
}

bool line_contains(const struct line *line, uint32_t branch, uint64_t step)
{
	return contains_from(line, line->current, branch, step);
}

bool line_is_suspect(const struct line *line, uint32_t branch, uint64_t step)
{
	if (line_contains(line, branch, step))
		return false;
	for (uint32_t i = 1; i < line->count; i++) {
		/* Branches are in order of number, so the one before was current at the fork. */
		if (line->branches[i].suspect &&
			contains_from(line, line->branches[i - 1].branch, branch, step) &&
			!contains_from(line, line->branches[i].branch, branch, step))
			return true;
	}
	return false;
}

/* -- files -- */

static void branch_name(uint32_t branch, char name[SCAN_NAME_MAX])
{
	snprintf(name, SCAN_NAME_MAX, "branch-%04u.json", branch);
}

static const char *const kind_names[] = {
	[INTERVENTION_CONFIG] = "config",
	[INTERVENTION_SKIP_WINDOW] = "skip_window",
	[INTERVENTION_ENGINE] = "engine",
	[INTERVENTION_DATA] = "data",
	[INTERVENTION_FOLDED] = "folded",
};
#define KIND_COUNT (sizeof(kind_names) / sizeof(kind_names[0]))

static int parse_intervention(const json_t *item, struct intervention *ret)
{
	const char *kind = json_get_text(item, "kind", "");
	const char *value = json_get_text(item, "value", "");
	int64_t step = json_get_int(item, "step", -1);

	if (step < 0 || strlen(value) >= sizeof(ret->value))
		return -EBADMSG;
	ret->step = (uint64_t)step;
	memcpy(ret->value, value, strlen(value) + 1);
	for (uint32_t i = 1; i < KIND_COUNT; i++)
		if (strcmp(kind, kind_names[i]) == 0)
			ret->kind = i;
	return ret->kind == 0 ? -EBADMSG : 0;
}

static int parse_branch(const json_t *object, uint32_t number, struct line_branch *ret)
{
	const json_t *interventions = json_object_get(object, "interventions");
	const char *root = json_get_text(object, "fork_root", "");
	int64_t parent = json_get_int(object, "parent", 0);
	int64_t fork_step = json_get_int(object, "fork_step", -1);

	memset(ret, 0, sizeof(*ret));
	ret->branch = number;
	if (json_get_int(object, "branch", 0) != number || parent < 1 || parent >= number ||
		fork_step < 0 || digest_from_hex(root, strlen(root), &ret->fork_root) < 0 ||
		json_array_size(interventions) > LINE_INTERVENTIONS_MAX)
		return -EBADMSG;
	ret->parent = (uint32_t)parent;
	ret->fork_step = (uint64_t)fork_step;
	ret->suspect = json_get_bool(object, "suspect", false);
	snprintf(ret->why, sizeof(ret->why), "%s", json_get_text(object, "why", ""));
	snprintf(ret->created, sizeof(ret->created), "%s", json_get_text(object, "created", ""));
	ret->intervention_count = (uint32_t)json_array_size(interventions);
	for (uint32_t i = 0; i < ret->intervention_count; i++)
		if (parse_intervention(json_array_get(interventions, i), &ret->interventions[i]) <
			0)
			return -EBADMSG;
	return 0;
}

static int read_branch(int fd, uint32_t number, struct line_branch *ret, struct error *err)
{
	AUTO_JSON object = NULL;
	char name[SCAN_NAME_MAX];
	int rc;

	branch_name(number, name);
	rc = sealed_json_read(fd, name, BRANCH_FORMAT, &object, err);
	if (rc == 0 && parse_branch(object, number, ret) < 0)
		rc = error_set(
			err, -EBADMSG, "%s is broken: a member is missing or out of range", name);
	return rc == -ENOENT ? -EBADMSG : rc;
}

static int append(struct line *line, const struct line_branch *branch)
{
	struct line_branch *grown = realloc(
		line->branches, (line->count + 1) * sizeof(*line->branches));

	if (grown == NULL)
		return -ENOMEM;
	line->branches = grown;
	line->branches[line->count++] = *branch;
	line->current = branch->branch;
	if (line->highest < branch->branch)
		line->highest = branch->branch;
	return 0;
}

static int load_branches(int fd, const struct scan *scan, struct line *line, struct error *err)
{
	for (uint32_t i = 0; i < scan->branch_count; i++) {
		struct line_branch branch;
		int rc = read_branch(fd, scan->branches[i], &branch, err);

		if (rc < 0)
			return rc;
		if (line_find(line, branch.parent) == NULL)
			return error_set(err, -EBADMSG,
				"branch-%04u.json comes from branch %u, whose file is missing",
				branch.branch, branch.parent);
		if (append(line, &branch) < 0)
			return error_set(err, -ENOMEM, "no memory for the branches");
	}
	return 0;
}

int line_load(int checkpoints_fd, struct line *ret, struct error *err)
{
	const struct line_branch first = {.branch = FIRST_BRANCH};
	struct scan scan;
	int rc;

	memset(ret, 0, sizeof(*ret));
	rc = scan_checkpoints(checkpoints_fd, &scan, err);
	if (rc < 0)
		return rc;
	rc = append(ret, &first);
	if (rc < 0)
		error_set(err, rc, "no memory for the branches");
	else
		rc = load_branches(checkpoints_fd, &scan, ret, err);
	for (uint32_t i = 0; i < scan.file_count; i++)
		if (ret->highest < scan.files[i].branch)
			ret->highest = scan.files[i].branch;
	scan_fini(&scan);
	if (rc < 0)
		line_fini(ret);
	return rc;
}

void line_fini(struct line *line)
{
	free(line->branches);
	memset(line, 0, sizeof(*line));
}

static json_t *branch_json(const struct line_branch *branch)
{
	char root[DIGEST_HEX_SIZE];
	json_t *interventions = json_array();

	digest_to_hex(&branch->fork_root, root);
	for (uint32_t i = 0; i < branch->intervention_count; i++) {
		const struct intervention *item = &branch->interventions[i];

		CHECK(item->kind >= 1 && item->kind < KIND_COUNT);
		json_array_append_new(interventions,
			json_pack("{s:I, s:s, s:s}", "step", (json_int_t)item->step, "kind",
				kind_names[item->kind], "value", item->value));
	}
	return json_pack("{s:i, s:i, s:i, s:I, s:s, s:b, s:s, s:s, s:o}", "format", BRANCH_FORMAT,
		"branch", (int)branch->branch, "parent", (int)branch->parent, "fork_step",
		(json_int_t)branch->fork_step, "fork_root", root, "suspect", (int)branch->suspect,
		"why", branch->why, "created", branch->created, "interventions", interventions);
}

static int write_branch(int fd, const struct line_branch *branch, struct error *err)
{
	AUTO_JSON object = branch_json(branch);
	char name[SCAN_NAME_MAX];
	char *text = NULL;
	int rc;

	branch_name(branch->branch, name);
	if (object == NULL)
		return error_set(err, -EINVAL, "cannot write %s: its text is not UTF-8", name);
	rc = sealed_json_text(object, &text);
	if (rc == 0)
		rc = file_create(fd, name, text, strlen(text), 0640);
	free(text);
	if (rc < 0)
		return error_set(err, rc, "cannot write %s: %s", name, strerror(-rc));
	return 0;
}

/* The branch of a line that owns a step: a state before a branch's own fork is its parent's, unless
 * the branch had to begin lower, because nothing else could be read. Then only a file's name says
 * so, and whoever forks from it names the branch. */
static uint32_t owner_of(const struct line *line, uint32_t branch, uint64_t step)
{
	const struct line_branch *at = line_find(line, branch);

	while (at->parent != 0 && step < at->fork_step)
		at = line_find(line, at->parent);
	return at->branch;
}

int line_fork(int checkpoints_fd, struct line *line, struct line_branch *branch, struct error *err)
{
	int rc;

	CHECK(line->count >= 1 && branch->intervention_count <= LINE_INTERVENTIONS_MAX);
	if (line->highest >= LINE_BRANCHES_MAX)
		return error_set(err, -ENOSPC, "no more than %d branches fit into one run",
			LINE_BRANCHES_MAX);
	if (branch->parent == 0)
		branch->parent = owner_of(line, line->current, branch->fork_step);
	if (line_find(line, branch->parent) == NULL)
		return error_set(err, -EINVAL, "there is no branch %u", branch->parent);
	branch->branch = line->highest + 1;
	clock_format_utc(clock_wall_ns(), branch->created);
	rc = write_branch(checkpoints_fd, branch, err);
	if (rc < 0)
		return rc;
	if (append(line, branch) < 0)
		return error_set(err, -ENOMEM, "no memory for the branches");
	return 0;
}
