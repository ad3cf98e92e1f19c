/* See worker_start.h. */
#include "daemon/worker_start.h"

#include "base/digest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int copy_text(const json_t *start, const char *key, bool required, char *ret, size_t size,
	struct error *err)
{
	const char *text = json_get_text(start, key, "");

	if (required && !*text)
		return error_set(err, -EINVAL, "the start frame lacks '%s'", key);
	if (strlen(text) >= size)
		return error_set(err, -EINVAL, "the start frame's '%s' is too long", key);
	strcpy(ret, text);
	return 0;
}

static int bounded(const json_t *start, const char *key, int64_t fallback, int64_t min, int64_t max,
	int64_t *ret, struct error *err)
{
	*ret = json_get_int(start, key, fallback);
	if (*ret < min || *ret > max)
		return error_set(err, -EINVAL,
			"the start frame's '%s' is %lld, allowed are %lld to %lld", key,
			(long long)*ret, (long long)min, (long long)max);
	return 0;
}

/* Nothing at all is what a supervisor says that knows no keys. */
static int parse_signer(const json_t *start, struct worker_start *ret, struct error *err)
{
	const char *signer = json_get_text(start, "signer", "");

	if (copy_text(start, "signer_error", false, ret->signer_error, sizeof(ret->signer_error),
		    err) < 0)
		return -EINVAL;
	if (ret->signer_error[0] == '\0')
		snprintf(ret->signer_error, sizeof(ret->signer_error),
			"signing key %s: the supervisor did not read it", ret->config.signing_key);
	if (signer[0] == '\0')
		return 0;
	if (strlen(signer) != SIGN_PUBLIC_HEX_SIZE - 1 ||
		bytes_from_hex(signer, ret->signer.bytes, SIGN_PUBLIC_BYTES) < 0)
		return error_set(err, -EINVAL, "the start frame's 'signer' is no public key");
	ret->has_signer = true;
	return 0;
}

static int parse_run(const json_t *start, struct worker_start *ret, struct error *err)
{
	const char *run_id = json_get_text(start, "run_id", "");
	const char *resume = json_get_text(start, "resume", "disk");
	int64_t value;

	if (copy_text(start, "run_dir", true, ret->run_dir, sizeof(ret->run_dir), err) < 0 ||
		copy_text(start, "engine", false, ret->engine, sizeof(ret->engine), err) < 0)
		return -EINVAL;
	if (ret->run_dir[0] != '/')
		return error_set(err, -EINVAL, "run_dir '%s' is not absolute", ret->run_dir);
	if (strlen(run_id) != 2 * RUN_ID_SIZE ||
		bytes_from_hex(run_id, ret->run_id, RUN_ID_SIZE) < 0)
		return error_set(
			err, -EINVAL, "run_id '%s' is not %d hex digits", run_id, 2 * RUN_ID_SIZE);
	if (strcmp(resume, "memory") != 0 && strcmp(resume, "disk") != 0)
		return error_set(err, -EINVAL, "resume is '%s', neither memory nor disk", resume);
	ret->resume_memory = strcmp(resume, "memory") == 0;
	ret->run_created = json_get_bool(start, "run_created", false);
	if (bounded(start, "parent_pid", -1, 1, INT32_MAX, &value, err) < 0)
		return -EINVAL;
	ret->parent_pid = (pid_t)value;
	if (bounded(start, "threads", 0, 0, 1024, &value, err) < 0)
		return -EINVAL;
	ret->threads = (uint32_t)value;
	return 0;
}

static int parse_save(const json_t *start, struct worker_start *ret, struct error *err)
{
	int64_t value;
	int r = bounded(start, "attempt", 1, 0, UINT32_MAX, &value, err);

	ret->attempt = (uint32_t)value;
	ret->foreground = json_get_bool(start, "foreground", false);
	ret->copy = json_get_bool(start, "copy", false);
	return r;
}

static int parse_sample(const json_t *start, struct worker_start *ret, struct error *err)
{
	int64_t count, steps, seed, label;

	if (bounded(start, "count", 16, 1, 1024, &count, err) < 0 ||
		bounded(start, "steps", 50, 1, 10000, &steps, err) < 0 ||
		bounded(start, "seed", 0, 0, INT64_MAX, &seed, err) < 0 ||
		bounded(start, "label", -1, -1, INT32_MAX, &label, err) < 0 ||
		copy_text(start, "name", true, ret->name, sizeof(ret->name), err) < 0)
		return -EINVAL;
	if (strchr(ret->name, '/') || ret->name[0] == '.')
		return error_set(err, -EINVAL, "'%s' is not a plain file name", ret->name);
	ret->count = (uint32_t)count;
	ret->steps = (uint32_t)steps;
	ret->seed = (uint64_t)seed;
	ret->label = (int32_t)label;
	ret->guidance = (float)json_get_real(start, "guidance", 1);
	if (!(ret->guidance >= 0 && ret->guidance <= 100))
		return error_set(err, -EINVAL, "guidance is %g, allowed are 0 to 100",
			(double)ret->guidance);
	snprintf(ret->sampler, sizeof(ret->sampler), "%s", json_get_text(start, "sampler", "ddim"));
	if (strcmp(ret->sampler, "ddim") != 0 && strcmp(ret->sampler, "ddpm") != 0)
		return error_set(
			err, -EINVAL, "sampler is '%s', neither ddim nor ddpm", ret->sampler);
	return 0;
}

int worker_start_parse(
	const json_t *frame, const char *role, struct worker_start *ret, struct error *err)
{
	const json_t *start = json_object_get(frame, "start"), *config;
	int r;

	memset(ret, 0, sizeof(*ret));
	if (!json_is_object(start))
		return error_set(err, -EINVAL, "the first frame is not a start frame");
	r = copy_text(start, "role", true, ret->role, sizeof(ret->role), err);
	if (r < 0)
		return r;
	if (strcmp(ret->role, role) != 0)
		return error_set(err, -EINVAL, "started as '%s', the start frame says '%s'", role,
			ret->role);
	config = json_object_get(start, "config");
	if (!json_is_object(config))
		return error_set(err, -EINVAL, "the start frame lacks 'config'");
	config_defaults(&ret->config);
	r = json_to_config(config, &ret->config, err);
	if (r < 0)
		return r;
	r = parse_run(start, ret, err);
	if (r == 0)
		r = parse_signer(start, ret, err);
	if (r < 0)
		return r;
	if (strcmp(role, "save") == 0)
		return parse_save(start, ret, err);
	if (copy_text(start, "id", false, ret->id, sizeof(ret->id), err) < 0)
		return -EINVAL;
	return strcmp(role, "sample") == 0 ? parse_sample(start, ret, err) : 0;
}
