/* Verbs that look: status, checkpoints, events, outages, config. */
#include "ctl/verbs.h"

#include "ctl/client.h"
#include "ctl/status_text.h"
#include "ctl/text.h"
#include "ctl/watch.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_SECONDS 10.0
#define EVENTS_MAX 100000
#define OUTAGES_MAX 10000

/* One status a line, for programs, until the daemon ends or nobody reads. */
static int stream_json(const struct ctl *ctl, struct client *client, struct error *err)
{
	int r = client_send(client, "Status", NULL, true, 0, err);

	while (r == 0) {
		json_t *reply;

		r = client_receive(client, 0, &reply, err);
		if (r < 0)
			break;
		char *text = json_dumps(json_object_get(reply, "status"), JSON_COMPACT);
		json_decref(reply);
		if (text == NULL || fprintf(ctl->out, "%s\n", text) < 0 || fflush(ctl->out) != 0)
			r = error_set(err, -EIO, "cannot write the status");
		free(text);
	}
	return r;
}

static int look_on(struct ctl *ctl, bool plain)
{
	struct watch_options options = {.plain = plain};
	struct client client = {.fd = -1};
	struct error err;
	char path[4096];

	int r = client_find(ctl, path, sizeof(path), &err);
	if (r == 0)
		r = client_open(path, &client, &err);
	if (r == 0 && ctl->json)
		r = stream_json(ctl, &client, &err);
	client_close(&client);
	if (r < 0)
		return ctl_fail(ctl, r, &err);
	options.socket = path;
	enum watch_end end = watch(ctl, &options, NULL, &err);
	if (end == WATCH_LOST || end == WATCH_SILENT)
		return ctl_fail(ctl, end == WATCH_SILENT ? -ETIMEDOUT : -ECONNRESET, &err);
	return CTL_OK;
}

int verb_status(struct ctl *ctl, const struct args *args)
{
	if (args_flag(args, "watch"))
		return look_on(ctl, args_flag(args, "plain"));
	AUTO_JSON reply = NULL;
	int code = ctl_call(ctl, "Status", NULL, ANSWER_SECONDS, &reply);
	if (code != CTL_OK)
		return code;
	const json_t *status = json_object_get(reply, "status");
	if (ctl->json)
		return ctl_print_json(ctl, status);
	status_print(status, ctl->out);
	return CTL_OK;
}

int verb_top(struct ctl *ctl, const struct args *args)
{
	return look_on(ctl, args_flag(args, "plain"));
}

/* -- checkpoints -- */

/* Marks and words for what a person must know besides the state. */
static void add_checkpoint(struct table *table, const json_t *row)
{
	const char *text = json_get_text(row, "text", "");
	bool on_line = json_get_bool(row, "on_line", true);
	char number[TEXT_NUMBER_SIZE], note[512];

	table_add(table, json_get_text(row, "id", "?"));
	table_add(table, text_count((uint64_t)json_get_int(row, "step", 0), number));
	table_add(table, json_get_text(row, "state", "?"));
	table_add(table, text_real(json_get_real(row, "loss", NAN), number));
	table_add(table, text_bytes((uint64_t)json_get_int(row, "bytes", 0), number));
	table_add(table, json_get_text(row, "created", ""));
	snprintf(note, sizeof(note), "%s%s%s", json_get_bool(row, "keep", false) ? "kept  " : "",
		on_line ? "" : "off the line  ", text);
	table_add(table, note);
}

int verb_checkpoints(struct ctl *ctl, const struct args *args)
{
	static const char *const heads[] = {
		"checkpoint", ">step", "state", ">loss", ">size", "created (UTC)", ""};
	AUTO_JSON reply = NULL;
	int code = ctl_call(ctl, "Checkpoints",
		json_pack("{s:b}", "all", (int)args_flag(args, "all")), ANSWER_SECONDS, &reply);
	struct table table;
	const json_t *row;
	size_t i;

	if (code != CTL_OK)
		return code;
	const json_t *rows = json_object_get(reply, "checkpoints");
	if (ctl->json)
		return ctl_print_json(ctl, rows);
	if (json_array_size(rows) == 0) {
		fprintf(ctl->out, "no checkpoint yet ('ckptctl save' makes one)\n");
		return CTL_OK;
	}
	table_init(&table, 7, heads);
	json_array_foreach(rows, i, row) add_checkpoint(&table, row);
	table_print(&table, ctl->out);
	table_fini(&table);
	return CTL_OK;
}

/* -- events -- */

static int by_id(const void *a, const void *b)
{
	int64_t left = json_get_int(*(json_t *const *)a, "id", 0);
	int64_t right = json_get_int(*(json_t *const *)b, "id", 0);

	return (left > right) - (left < right);
}

/* Oldest first, whatever order they came in: the newest stands above the prompt. */
static void print_events(const json_t *rows, FILE *out)
{
	static const char *const heads[] = {"time (UTC)", "level", ">step", "event", "text"};
	size_t count = json_array_size(rows);
	const json_t **sorted = calloc(count + 1, sizeof(*sorted));
	struct table table;

	if (sorted == NULL)
		return;
	for (size_t i = 0; i < count; i++)
		sorted[i] = json_array_get(rows, i);
	qsort(sorted, count, sizeof(*sorted), by_id);
	table_init(&table, 5, heads);
	for (size_t i = 0; i < count; i++) {
		char number[TEXT_NUMBER_SIZE];

		table_add(&table, json_get_text(sorted[i], "time", ""));
		table_add(&table, json_get_text(sorted[i], "level", ""));
		table_add(&table, text_count((uint64_t)json_get_int(sorted[i], "step", 0), number));
		table_add(&table, json_get_text(sorted[i], "kind", ""));
		table_add(&table, json_get_text(sorted[i], "text", ""));
	}
	table_print(&table, out);
	table_fini(&table);
	free(sorted);
}

int verb_events(struct ctl *ctl, const struct args *args)
{
	AUTO_JSON reply = NULL;
	struct error err;
	int64_t limit;

	if (args_int(args, "limit", 1, EVENTS_MAX, 20, &limit, &err) < 0)
		return ctl_usage(ctl, "events", &err);
	int code = ctl_call(ctl, "Events", json_pack("{s:I}", "limit", (json_int_t)limit),
		ANSWER_SECONDS, &reply);
	if (code != CTL_OK)
		return code;
	const json_t *rows = json_object_get(reply, "events");
	if (ctl->json)
		return ctl_print_json(ctl, rows);
	print_events(rows, ctl->out);
	return CTL_OK;
}

/* -- outages -- */

static const char *seconds_text(const json_t *row, const char *key, char text[TEXT_NUMBER_SIZE])
{
	double seconds = json_get_real(row, key, NAN);

	if (isnan(seconds))
		return "goes on";
	if (seconds < 100)
		snprintf(text, TEXT_NUMBER_SIZE, "%.1f s", seconds);
	else
		text_seconds(seconds, text);
	return text;
}

static void add_outage(struct table *table, const json_t *row)
{
	char number[TEXT_NUMBER_SIZE];

	table_add(table, json_get_text(row, "begun", ""));
	table_add(table, json_get_text(row, "cause", ""));
	table_add(table, json_get_text(row, "detected", ""));
	table_add(table, text_count((uint64_t)json_get_int(row, "step", 0), number));
	table_add(table, seconds_text(row, "seconds_lost", number));
	table_add(table, text_count((uint64_t)json_get_int(row, "steps_redone", 0), number));
	table_add(table, text_count((uint64_t)json_get_int(row, "restarts", 0), number));
}

static void print_totals(const json_t *totals, FILE *out)
{
	char wall[TEXT_NUMBER_SIZE], lost[TEXT_NUMBER_SIZE], between[TEXT_NUMBER_SIZE];
	int64_t count = json_get_int(totals, "outages", 0);

	fprintf(out, "since %s: %s supervised, uptime %.3f %%, goodput %.3f %%\n",
		json_get_text(totals, "since", "?"), seconds_text(totals, "wall_seconds", wall),
		100 * json_get_real(totals, "uptime", NAN),
		100 * json_get_real(totals, "goodput", NAN));
	if (count == 0)
		fprintf(out, "no outage that nobody wanted\n");
	else
		fprintf(out,
			"%" PRId64 " that nobody wanted: %s lost, %" PRId64
			" steps redone, one in %s\n",
			count, seconds_text(totals, "lost_seconds", lost),
			json_get_int(totals, "steps_redone", 0),
			seconds_text(totals, "mean_seconds_between", between));
}

int verb_outages(struct ctl *ctl, const struct args *args)
{
	static const char *const heads[] = {"begun (UTC)", "cause", "noticed by", ">after step",
		">time lost", ">steps redone", ">starts"};
	AUTO_JSON reply = NULL;
	struct table table;
	struct error err;
	const json_t *row;
	int64_t limit;
	size_t i;

	if (args_int(args, "limit", 1, OUTAGES_MAX, 20, &limit, &err) < 0)
		return ctl_usage(ctl, "outages", &err);
	int code = ctl_call(ctl, "Outages", json_pack("{s:I}", "limit", (json_int_t)limit),
		ANSWER_SECONDS, &reply);
	if (code != CTL_OK)
		return code;
	const json_t *rows = json_object_get(reply, "outages");
	if (ctl->json)
		return ctl_print_json(ctl, reply);
	if (json_array_size(rows) > 0) {
		table_init(&table, 7, heads);
		json_array_foreach(rows, i, row) add_outage(&table, row);
		table_print(&table, ctl->out);
		table_fini(&table);
	}
	print_totals(json_object_get(reply, "totals"), ctl->out);
	return CTL_OK;
}

/* -- config -- */

int verb_config(struct ctl *ctl, const struct args *args)
{
	AUTO_JSON reply = NULL;
	int code = ctl_call(ctl, "Config", NULL, ANSWER_SECONDS, &reply);
	const char *section = "";

	if (code != CTL_OK)
		return code;
	const json_t *config = json_object_get(reply, "config");
	if (ctl->json)
		return ctl_print_json(ctl, config);
	for (size_t i = 0; i < config_key_count(); i++) {
		const struct config_key *key = config_key_at(i);
		char value[CONFIG_TEXT_MAX];

		text_clean(json_get_text(config, key->key, ""), value, sizeof(value));
		if (strcmp(section, key->section) != 0)
			fprintf(ctl->out, "%s[%s]\n", section[0] != '\0' ? "\n" : "", key->section);
		section = key->section;
		fprintf(ctl->out, "%s = %s\n", key->key, value);
	}
	return CTL_OK;
}
