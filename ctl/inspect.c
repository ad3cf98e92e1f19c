/* `ckptctl inspect FILE`: what a checkpoint, or any safetensors file, holds. Reads the header; with
 * --verify also every byte of a checkpoint's data. Never needs the daemon. */
#include "ctl/verbs.h"

#include "base/file.h"
#include "ctl/pick.h"
#include "ctl/text.h"
#include "store/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct inspection {
	const char *path;
	uint64_t file_bytes, header_bytes;
	struct st_header header;
	bool is_checkpoint;
	struct error why_not; /* when its metadata claim to be one */
	bool claims;
	struct checkpoint_info info;
	int fd; /* of the checkpoint */
};

/* -- reading -- */

static int read_header(int fd, struct inspection *ret, struct error *err)
{
	uint8_t length[8];
	struct stat st;
	uint64_t size = 0;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "%s: not a regular file", ret->path);
	ret->file_bytes = (uint64_t)st.st_size;
	int r = file_read_exact(fd, length, sizeof(length), 0);
	for (int i = 7; i >= 0; i--)
		size = size << 8 | length[i];
	if (r < 0 || size > SAFETENSORS_HEADER_MAX || size > ret->file_bytes - sizeof(length))
		return error_set(err, -EBADMSG, "%s: not a safetensors file", ret->path);
	ret->header_bytes = size;
	char *json = malloc(size + 1);
	if (json == NULL)
		return error_set(err, -ENOMEM, "out of memory");
	r = file_read_exact(fd, json, size, sizeof(length));
	if (r < 0)
		error_set(err, r, "%s: %s", ret->path, strerror(-r));
	else if ((r = st_header_parse(json, size, ret->file_bytes - sizeof(length) - size,
			  &ret->header, err)) < 0)
		error_prefix(err, r, "%s", ret->path);
	free(json);
	return r;
}

static int inspect_open(const char *path, struct inspection *ret, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	*ret = (struct inspection){.path = path, .fd = -1};
	if (fd < 0)
		return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
	int r = read_header(fd, ret, err);
	close(fd);
	if (r < 0)
		return r;
	ret->claims = st_header_metadata(&ret->header, "ckptd_format") != NULL;
	if (ret->claims) {
		ret->fd = pick_file(path, &ret->info, &ret->why_not);
		ret->is_checkpoint = ret->fd >= 0;
	}
	return 0;
}

static void inspect_close(struct inspection *inspection)
{
	st_header_fini(&inspection->header);
	if (inspection->is_checkpoint) {
		close(inspection->fd);
		checkpoint_info_fini(&inspection->info);
	}
}

/* -- for people -- */

static const char *intervention_name(uint32_t kind)
{
	switch ((enum intervention_kind)kind) {
	case INTERVENTION_CONFIG:
		return "setting";
	case INTERVENTION_SKIP_WINDOW:
		return "skipped window";
	case INTERVENTION_ENGINE:
		return "engine";
	case INTERVENTION_DATA:
		return "data";
	case INTERVENTION_FOLDED:
		return "folded";
	}
	return "unknown";
}

static void print_record(const struct checkpoint_info *info, FILE *out)
{
	const struct state_record *record = &info->record;
	char run[2 * STATE_RUN_ID_SIZE + 1], number[3][TEXT_NUMBER_SIZE];

	bytes_to_hex(record->run_id, STATE_RUN_ID_SIZE, run);
	fprintf(out, "  run          %s, branch %" PRIu32 "\n", run, record->branch);
	fprintf(out, "  created      %s\n", info->created);
	fprintf(out, "  step         %s (%s updates, %s skipped)\n",
		text_count(record->step, number[0]), text_count(record->update_count, number[1]),
		text_count(record->skipped_count, number[2]));
	fprintf(out, "  images seen  %s\n", text_count(record->images_seen, number[0]));
	fprintf(out, "  trained      %s\n",
		text_seconds((double)record->trained_ns / 1e9, number[0]));
	fprintf(out, "  loss         %s\n", text_real((double)record->loss, number[0]));
	for (uint32_t i = 0; i < record->intervention_count; i++)
		fprintf(out, "  from step %" PRIu64 ": %s %.47s\n", record->interventions[i].step,
			intervention_name(record->interventions[i].kind),
			record->interventions[i].value);
}

static void print_digest(FILE *out, const char *label, const struct digest *digest)
{
	char hex[DIGEST_HEX_SIZE];

	digest_to_hex(digest, hex);
	fprintf(out, "  %-12s %s\n", label, digest_is_zero(digest) ? "-" : hex);
}

/* Only what was set: the defaults are in the manual. */
static void print_config(const struct config *config, FILE *out)
{
	struct config defaults;

	config_defaults(&defaults);
	for (size_t i = 0; i < config_key_count(); i++) {
		const struct config_key *key = config_key_at(i);
		char value[CONFIG_TEXT_MAX], clean[CONFIG_TEXT_MAX];

		if (config_value_equal(config, &defaults, key))
			continue;
		config_value_text(config, key, value);
		text_clean(value, clean, sizeof(clean));
		fprintf(out, "  setting      %s = %s\n", key->key, clean);
	}
}

static void print_checkpoint(const struct checkpoint_info *info, FILE *out)
{
	char number[2][TEXT_NUMBER_SIZE];

	fprintf(out, "%s: a checkpoint of ckptd, its header matches its root\n", info->id);
	print_record(info, out);
	print_digest(out, "root", &info->root);
	print_digest(out, "parent root", &info->parent_root);
	if (info->is_signed) {
		char signer[SIGN_PUBLIC_HEX_SIZE];

		sign_public_hex(&info->signer, signer);
		fprintf(out, "  signed by    %s\n", signer);
	}
	print_digest(out, "data", &info->record.data_digest);
	print_digest(out, "fingerprint", &info->record.fingerprint);
	fprintf(out, "  tensors      %" PRIu32 " in each of %d sections, %s parameters\n",
		info->table.count, SECTION_COUNT, text_count(info->table.param_count, number[0]));
	fprintf(out, "  size         %s, %" PRIu32 " chunks of %s\n",
		text_bytes(info->file_bytes, number[0]), info->chunk_count,
		text_bytes(CHECKPOINT_CHUNK_BYTES, number[1]));
	print_config(&info->config, out);
}

static void shape_text(const struct st_tensor *tensor, char *text, size_t size)
{
	size_t used = (size_t)snprintf(text, size, "[");

	for (uint32_t d = 0; d < tensor->dim_count && used < size; d++)
		used += (size_t)snprintf(text + used, size - used, "%s%" PRIu64, d > 0 ? ", " : "",
			tensor->shape[d]);
	if (used < size)
		snprintf(text + used, size - used, "]");
}

static void print_tensors(const struct st_header *header, FILE *out)
{
	static const char *const heads[] = {"tensor", "type", "shape", ">bytes"};
	struct table table;

	table_init(&table, 4, heads);
	for (uint32_t i = 0; i < header->tensor_count; i++) {
		const struct st_tensor *tensor = &header->tensors[i];
		char shape[256], number[TEXT_NUMBER_SIZE];

		shape_text(tensor, shape, sizeof(shape));
		table_add(&table, tensor->name);
		table_add(&table, tensor->dtype);
		table_add(&table, shape);
		table_add(&table, text_count(tensor->end - tensor->begin, number));
	}
	table_print(&table, out);
	table_fini(&table);
}

static void print_all(const struct inspection *inspection, bool tensors, FILE *out)
{
	char number[TEXT_NUMBER_SIZE], clean[4096];

	if (inspection->is_checkpoint) {
		print_checkpoint(&inspection->info, out);
	} else {
		text_clean(inspection->path, clean, sizeof(clean));
		fprintf(out, "%s: a safetensors file, %" PRIu32 " tensors, %s\n", clean,
			inspection->header.tensor_count,
			text_bytes(inspection->file_bytes, number));
	}
	if (tensors)
		print_tensors(&inspection->header, out);
}

/* -- for programs -- */

static json_t *record_json(const struct checkpoint_info *info)
{
	const struct state_record *record = &info->record;
	char run[2 * STATE_RUN_ID_SIZE + 1], root[DIGEST_HEX_SIZE], parent[DIGEST_HEX_SIZE],
		data[DIGEST_HEX_SIZE], signer[SIGN_PUBLIC_HEX_SIZE] = "";

	if (info->is_signed)
		sign_public_hex(&info->signer, signer);
	bytes_to_hex(record->run_id, STATE_RUN_ID_SIZE, run);
	digest_to_hex(&info->root, root);
	digest_to_hex(&info->parent_root, parent);
	digest_to_hex(&record->data_digest, data);
	return json_pack(
		"{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:o, s:s, s:s, s:s, s:s, s:I, s:o}", "id",
		info->id, "created", info->created, "run", run, "branch",
		(json_int_t)record->branch, "step", (json_int_t)record->step, "update_count",
		(json_int_t)record->update_count, "images_seen", (json_int_t)record->images_seen,
		"skipped_count", (json_int_t)record->skipped_count, "loss",
		json_finite((double)record->loss), "root", root, "parent_root", parent, "signer",
		signer, "data_digest", data, "param_count", (json_int_t)info->table.param_count,
		"config", json_from_config(&info->config));
}

static json_t *tensors_json(const struct st_header *header)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < header->tensor_count; i++) {
		const struct st_tensor *tensor = &header->tensors[i];
		json_t *shape = json_array();

		for (uint32_t d = 0; d < tensor->dim_count; d++)
			json_array_append_new(shape, json_integer((json_int_t)tensor->shape[d]));
		json_array_append_new(array,
			json_pack("{s:s, s:s, s:o, s:I, s:I}", "name", tensor->name, "dtype",
				tensor->dtype, "shape", shape, "begin", (json_int_t)tensor->begin,
				"end", (json_int_t)tensor->end));
	}
	return array;
}

static json_t *all_json(const struct inspection *inspection, const json_t *verified)
{
	json_t *object = json_pack("{s:s, s:I, s:I, s:o}", "file", inspection->path, "bytes",
		(json_int_t)inspection->file_bytes, "header_bytes",
		(json_int_t)inspection->header_bytes, "tensors", tensors_json(&inspection->header));

	if (inspection->is_checkpoint)
		json_object_set_new(object, "checkpoint", record_json(&inspection->info));
	if (verified != NULL)
		json_object_set(object, "verified", (json_t *)verified);
	return object;
}

/* -- the verb -- */

/* What is wrong with it, if anything is: broken data, or a broken claim to be a checkpoint. */
static int judge(const struct inspection *inspection, bool verify, struct error *err)
{
	if (inspection->claims && !inspection->is_checkpoint) {
		*err = inspection->why_not;
		return error_prefix(err, -EBADMSG, "it claims to be a checkpoint");
	}
	if (!verify)
		return 0;
	if (!inspection->is_checkpoint)
		return error_set(err, -EINVAL,
			"%s carries no digests: there is nothing to verify it with",
			inspection->path);
	return checkpoint_read(inspection->fd, &inspection->info, NULL, NULL, 0, NULL, err);
}

int verb_inspect(struct ctl *ctl, const struct args *args)
{
	bool verify = args_flag(args, "verify");
	struct inspection inspection;
	struct error err;
	int r = inspect_open(args->positional[0], &inspection, &err);

	if (r < 0)
		return ctl_fail(ctl, r, &err);
	r = judge(&inspection, verify, &err);
	if (ctl->json) {
		AUTO_JSON verified = verify ? json_boolean(r == 0) : NULL;
		AUTO_JSON object = all_json(&inspection, verified);

		ctl_print_json(ctl, object);
	} else {
		print_all(&inspection, args_flag(args, "tensors") || !inspection.is_checkpoint,
			ctl->out);
		if (verify && r == 0)
			fprintf(ctl->out, "  data         every chunk matches its digest\n");
	}
	inspect_close(&inspection);
	return r < 0 ? ctl_fail(ctl, r, &err) : CTL_OK;
}
