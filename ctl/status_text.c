/* The daemon's status as a person reads it. */
#include "ctl/status_text.h"

#include "base/clock.h"
#include "ctl/text.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* -- reading -- */

#define CLEAN(object, key, field) text_clean(json_get_text(object, key, ""), field, sizeof(field))

static int64_t count_of(const json_t *object, const char *key)
{
	int64_t value = json_get_int(object, key, 0);

	return value < 0 ? 0 : value;
}

static void read_processes(const json_t *status, struct look *ret)
{
	const json_t *worker = json_object_get(status, "worker");
	const json_t *saver = json_object_get(status, "saver");
	const json_t *supervisor = json_object_get(status, "supervisor");
	const json_t *death = json_object_get(status, "last_death");

	ret->worker_pid = count_of(worker, "pid");
	ret->worker_rss = count_of(worker, "rss_bytes");
	ret->supervisor_pid = count_of(supervisor, "pid");
	ret->supervisor_rss = count_of(supervisor, "rss_bytes");
	ret->supervisor_uptime = json_get_real(supervisor, "uptime_seconds", NAN);
	CLEAN(supervisor, "version", ret->version);
	ret->saver_step = count_of(saver, "step");
	ret->restarts = count_of(status, "restarts");
	ret->rung = count_of(status, "rung");
	ret->skipped = count_of(status, "skipped_updates");
	ret->has_death = json_is_object(death);
	CLEAN(death, "sentence", ret->death);
	CLEAN(death, "time", ret->death_time);
}

static void read_checkpoints(const json_t *status, struct look *ret)
{
	const json_t *verified = json_object_get(status, "newest_verified");
	const json_t *save = json_object_get(status, "save");

	ret->has_verified = json_is_object(verified);
	CLEAN(verified, "id", ret->verified_id);
	CLEAN(verified, "path", ret->verified_path);
	ret->verified_step = count_of(verified, "step");
	ret->verified_age = json_get_real(verified, "age_seconds", NAN);
	ret->saving = json_get_bool(save, "in_flight", false);
	ret->save_last_ms = json_get_real(save, "last_ms", NAN);
	ret->save_next_seconds = json_get_real(save, "next_seconds", NAN);
	ret->stall_max_ms = json_get_real(save, "stall_max_ms", NAN);
	CLEAN(save, "last_error", ret->save_error);
}

static void read_machine(const json_t *status, struct look *ret)
{
	const json_t *slots = json_object_get(status, "slots");
	const json_t *mirror = json_object_get(status, "mirror");
	const json_t *engine = json_object_get(status, "engine");
	const json_t *storage = json_object_get(status, "storage");
	const json_t *preview = json_object_get(status, "preview");

	ret->slots = count_of(slots, "count");
	ret->slot_bytes = count_of(slots, "bytes");
	CLEAN(slots, "text", ret->slots_text);
	CLEAN(mirror, "state", ret->mirror_state);
	CLEAN(mirror, "newest", ret->mirror_newest);
	CLEAN(mirror, "last_error", ret->mirror_error);
	ret->mirror_behind = count_of(mirror, "behind");
	CLEAN(json_object_get(status, "signing"), "signer", ret->signer);
	ret->signature_required = json_get_bool(
		json_object_get(status, "signing"), "required", false);
	CLEAN(engine, "name", ret->engine);
	CLEAN(engine, "reason", ret->engine_reason);
	CLEAN(status, "sandbox", ret->sandbox);
	ret->threads = count_of(engine, "threads");
	ret->plan_bytes = count_of(engine, "plan_bytes");
	ret->storage_ok = json_get_bool(storage, "ok", true);
	CLEAN(storage, "text", ret->storage_text);
	ret->free_bytes = count_of(storage, "free_bytes");
	CLEAN(json_object_get(status, "data"), "text", ret->data_text);
	ret->preview_step = count_of(preview, "step");
	CLEAN(preview, "path", ret->preview_path);
	CLEAN(json_object_get(status, "config"), "text", ret->config_text);
}

static void read_scrub(const json_t *scrub, struct look *ret)
{
	ret->scrubbing = json_get_bool(scrub, "running", false);
	CLEAN(scrub, "checkpoint", ret->scrub_id);
	CLEAN(scrub, "finished_at", ret->scrub_finished);
	CLEAN(scrub, "next_due", ret->scrub_due);
	ret->scrub_done = count_of(scrub, "bytes_done");
	ret->scrub_total = count_of(scrub, "bytes_total");
	ret->scrub_corrupt = count_of(scrub, "corrupt");
}

void look_read(const json_t *status, struct look *ret)
{
	const json_t *warnings = json_object_get(status, "warnings");

	*ret = (struct look){0};
	CLEAN(status, "state", ret->state);
	CLEAN(status, "state_text", ret->state_text);
	CLEAN(status, "wanted", ret->wanted);
	CLEAN(status, "phase", ret->phase);
	CLEAN(status, "run", ret->run);
	CLEAN(status, "run_dir", ret->run_dir);
	ret->branch = count_of(status, "branch");
	ret->step = count_of(status, "step");
	ret->steps_total = count_of(status, "steps_total");
	ret->loss = json_get_real(status, "loss", NAN);
	ret->holdout_loss = json_get_real(status, "holdout_loss", NAN);
	ret->images_per_second = json_get_real(status, "images_per_second", NAN);
	ret->eta_seconds = json_get_real(status, "eta_seconds", NAN);
	read_processes(status, ret);
	read_checkpoints(status, ret);
	read_machine(status, ret);
	read_scrub(json_object_get(status, "scrub"), ret);
	for (size_t i = 0; i < json_array_size(warnings) && ret->warning_count < LOOK_WARNINGS_MAX;
		i++) {
		const char *text = json_string_value(json_array_get(warnings, i));

		if (text != NULL)
			text_clean(text, ret->warnings[ret->warning_count++],
				sizeof(ret->warnings[0]));
	}
}

double look_share(const struct look *look)
{
	if (look->steps_total <= 0)
		return 0.0;
	double share = (double)look->step / (double)look->steps_total;
	return share > 1.0 ? 1.0 : share;
}

/* -- facts -- */

struct number {
	char text[TEXT_NUMBER_SIZE];
};

static struct number count(int64_t value)
{
	struct number number;

	text_count((uint64_t)value, number.text);
	return number;
}

static struct number bytes(int64_t value)
{
	struct number number;

	text_bytes((uint64_t)value, number.text);
	return number;
}

static struct number seconds(double value)
{
	struct number number;

	text_seconds(value, number.text);
	return number;
}

static struct number real(double value)
{
	struct number number;

	text_real(value, number.text);
	return number;
}

static void fact_loss(const struct look *look, char *text, bool *bad)
{
	int used = snprintf(text, LOOK_LINE_MAX, "%s", real(look->loss).text);

	if (!isnan(look->holdout_loss))
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), ", held-out %s",
			real(look->holdout_loss).text);
	if (look->skipped > 0)
		snprintf(text + used, (size_t)(LOOK_LINE_MAX - used),
			", %s non-finite updates skipped", count(look->skipped).text);
}

static void fact_speed(const struct look *look, char *text, bool *bad)
{
	int used = 0;

	if (isnan(look->images_per_second)) {
		snprintf(text, LOOK_LINE_MAX, "-");
		return;
	}
	used += snprintf(text, LOOK_LINE_MAX, "%.1f images/s", look->images_per_second);
	if (!isnan(look->eta_seconds))
		snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), ", %s left",
			seconds(look->eta_seconds).text);
}

static void fact_checkpoint(const struct look *look, char *text, bool *bad)
{
	int used = 0;

	if (look->has_verified)
		used += snprintf(text, LOOK_LINE_MAX, "%s verified %s ago", look->verified_id,
			seconds(look->verified_age).text);
	else
		used += snprintf(text, LOOK_LINE_MAX, "none verified yet");
	if (look->saving)
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), ", saving step %s",
			count(look->saver_step).text);
	else if (!isnan(look->save_next_seconds))
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), ", next in %s",
			seconds(look->save_next_seconds).text);
	if (look->save_error[0] != '\0') {
		*bad = true;
		snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), "; last save failed: %s",
			look->save_error);
	}
}

/* How far a time of the status is away. */
static struct number distance(const char *utc, int sign)
{
	double away = (double)(clock_parse_utc(utc) - clock_wall_ns()) / 1e9 * sign;

	return seconds(away > 0 ? away : 0);
}

static void fact_scrub(const struct look *look, char *text, bool *bad)
{
	int used = 0;

	*bad = look->scrub_corrupt > 0;
	if (*bad)
		used += snprintf(
			text, LOOK_LINE_MAX, "%" PRId64 " kept corrupt; ", look->scrub_corrupt);
	if (look->scrubbing)
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used),
			"reading %s, %s of %s", look->scrub_id, bytes(look->scrub_done).text,
			bytes(look->scrub_total).text);
	else if (look->scrub_finished[0] != '\0')
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used),
			"all was read again %s ago", distance(look->scrub_finished, -1).text);
	else
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), "none yet");
	if (!look->scrubbing && look->scrub_due[0] != '\0')
		snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), ", next in %s",
			distance(look->scrub_due, 1).text);
}

static void fact_restarts(const struct look *look, char *text, bool *bad)
{
	int used = snprintf(text, LOOK_LINE_MAX, "%s", count(look->restarts).text);

	if (look->rung > 0)
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used),
			", on rung %" PRId64 " of the ladder", look->rung);
	if (look->has_death)
		snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), ", last: %s", look->death);
}

static void fact_engine(const struct look *look, char *text, bool *bad)
{
	int used = snprintf(text, LOOK_LINE_MAX, "%s", look->engine);

	if (look->threads > 0)
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used),
			", %" PRId64 " thread%s", look->threads, look->threads == 1 ? "" : "s");
	if (look->plan_bytes > 0)
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), ", %s of memory",
			bytes(look->plan_bytes).text);
	if (look->engine_reason[0] != '\0')
		snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), " (%s)", look->engine_reason);
}

static void fact_sandbox(const struct look *look, char *text, bool *bad)
{
	*bad = strncmp(look->sandbox, "none", strlen("none")) == 0;
	snprintf(text, LOOK_LINE_MAX, "%s", look->sandbox);
}

static void fact_slots(const struct look *look, char *text, bool *bad)
{
	int used = snprintf(
		text, LOOK_LINE_MAX, "%" PRId64 ", %s", look->slots, bytes(look->slot_bytes).text);

	if (look->slots_text[0] != '\0')
		used += snprintf(
			text + used, (size_t)(LOOK_LINE_MAX - used), ": %s", look->slots_text);
	if (used < LOOK_LINE_MAX && look->stall_max_ms > 0)
		snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), "; longest wait %.2f ms",
			look->stall_max_ms);
}

static void fact_mirror(const struct look *look, char *text, bool *bad)
{
	int used = snprintf(text, LOOK_LINE_MAX, "%s%s%s", look->mirror_state,
		look->mirror_newest[0] != '\0' ? ", newest there " : "", look->mirror_newest);

	*bad = strcmp(look->mirror_state, "failing") == 0;
	if (look->mirror_behind > 0)
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used),
			", %" PRId64 " missing there", look->mirror_behind);
	if (look->mirror_error[0] != '\0')
		snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), ": %s", look->mirror_error);
}

static void fact_signing(const struct look *look, char *text, bool *bad)
{
	snprintf(text, LOOK_LINE_MAX, "%s%s%s",
		look->signer[0] != '\0' ? "signed by " : "not signed", look->signer,
		look->signature_required ? ", required" : "");
}

static void fact_storage(const struct look *look, char *text, bool *bad)
{
	*bad = !look->storage_ok;
	snprintf(text, LOOK_LINE_MAX, "%s%s%s free", look->storage_text,
		look->storage_text[0] != '\0' ? ", " : "", bytes(look->free_bytes).text);
}

static void fact_data(const struct look *look, char *text, bool *bad)
{
	snprintf(text, LOOK_LINE_MAX, "%s", look->data_text);
}

static void fact_preview(const struct look *look, char *text, bool *bad)
{
	snprintf(text, LOOK_LINE_MAX, "%s (step %s)", look->preview_path,
		count(look->preview_step).text);
}

static void fact_run(const struct look *look, char *text, bool *bad)
{
	snprintf(text, LOOK_LINE_MAX, "%.8s in %s, branch %" PRId64, look->run, look->run_dir,
		look->branch);
}

static void fact_processes(const struct look *look, char *text, bool *bad)
{
	int used = snprintf(text, LOOK_LINE_MAX, "supervisor %" PRId64 " (%s, up %s)",
		look->supervisor_pid, bytes(look->supervisor_rss).text,
		seconds(look->supervisor_uptime).text);

	if (look->worker_pid > 0)
		snprintf(text + used, (size_t)(LOOK_LINE_MAX - used),
			", worker %" PRId64 " (%s, %s)", look->worker_pid,
			bytes(look->worker_rss).text, look->phase);
}

static void fact_config(const struct look *look, char *text, bool *bad)
{
	*bad = true;
	snprintf(text, LOOK_LINE_MAX, "%s", look->config_text);
}

/* In the order of the screen: what matters most comes first, for a low terminal. */
static const struct {
	const char *label;
	void (*write)(const struct look *look, char *text, bool *bad);
} facts[] = {
	{"loss", fact_loss},
	{"speed", fact_speed},
	{"checkpoint", fact_checkpoint},
	{"scrub", fact_scrub},
	{"restarts", fact_restarts},
	{"preview", fact_preview},
	{"engine", fact_engine},
	{"slots", fact_slots},
	{"mirror", fact_mirror},
	{"signing", fact_signing},
	{"sandbox", fact_sandbox},
	{"data", fact_data},
	{"storage", fact_storage},
	{"config", fact_config},
	{"run", fact_run},
	{"processes", fact_processes},
};
#define FACT_COUNT ((int)(sizeof(facts) / sizeof(facts[0])))

static bool fact_applies(const struct look *look, int i)
{
	if (facts[i].write == fact_preview)
		return look->preview_path[0] != '\0';
	if (facts[i].write == fact_scrub)
		return look->scrubbing || look->scrub_corrupt > 0 ||
			look->scrub_finished[0] != '\0' || look->scrub_due[0] != '\0';
	if (facts[i].write == fact_mirror)
		return look->mirror_state[0] != '\0' && strcmp(look->mirror_state, "none") != 0;
	if (facts[i].write == fact_signing)
		return look->signer[0] != '\0' || look->signature_required;
	if (facts[i].write == fact_engine)
		return look->engine[0] != '\0';
	if (facts[i].write == fact_sandbox)
		return look->sandbox[0] != '\0';
	if (facts[i].write == fact_slots)
		return look->slots > 0;
	if (facts[i].write == fact_data)
		return look->data_text[0] != '\0';
	if (facts[i].write == fact_storage) /* 0: not looked at yet */
		return !look->storage_ok || look->free_bytes > 0;
	if (facts[i].write == fact_config)
		return look->config_text[0] != '\0';
	return true;
}

bool look_fact(const struct look *look, int i, const char **ret_label, char text[LOOK_LINE_MAX],
	bool *ret_bad)
{
	*ret_bad = false;
	if (i < look->warning_count) {
		*ret_label = "WARNING";
		*ret_bad = true;
		snprintf(text, LOOK_LINE_MAX, "%s", look->warnings[i]);
		return true;
	}
	i -= look->warning_count;
	for (int fact = 0; fact < FACT_COUNT; fact++)
		if (fact_applies(look, fact) && i-- == 0) {
			*ret_label = facts[fact].label;
			facts[fact].write(look, text, ret_bad);
			return true;
		}
	return false;
}

/* -- whole -- */

void status_print(const json_t *status, FILE *out)
{
	char text[LOOK_LINE_MAX];
	struct look look;
	const char *label;
	bool bad;

	look_read(status, &look);
	fprintf(out, "%s, step %s of %s (%.1f %%)\n", look.state, count(look.step).text,
		count(look.steps_total).text, 100.0 * look_share(&look));
	if (look.state_text[0] != '\0' && strcmp(look.state_text, look.state) != 0)
		fprintf(out, "  %s\n", look.state_text);
	for (int i = 0; look_fact(&look, i, &label, text, &bad); i++)
		fprintf(out, "  %-11s %s\n", label, text);
}

void look_line(const struct look *look, char text[LOOK_LINE_MAX])
{
	char part[LOOK_LINE_MAX];
	bool bad = false;
	int used = snprintf(text, LOOK_LINE_MAX, "%s  step %s of %s (%.1f %%)  loss ", look->state,
		count(look->step).text, count(look->steps_total).text, 100.0 * look_share(look));

	fact_loss(look, part, &bad);
	used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), "%s", part);
	if (!isnan(look->images_per_second)) {
		fact_speed(look, part, &bad);
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), "  %s", part);
	}
	fact_checkpoint(look, part, &bad);
	if (used < LOOK_LINE_MAX)
		used += snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), "  %s", part);
	if (look->restarts > 0 && used < LOOK_LINE_MAX)
		snprintf(text + used, (size_t)(LOOK_LINE_MAX - used), "  %s restarts",
			count(look->restarts).text);
}
