/* The daemon's status as a person reads it. The JSON is read once, by type, with bounds, its texts
 * made harmless; what follows works on plain values. */
#pragma once

#include "proto/json.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define LOOK_WARNINGS_MAX 8

struct look {
	char state[24], state_text[256], wanted[16], phase[24];
	char run[40], run_dir[512];
	int64_t branch, step, steps_total;
	double loss, holdout_loss, images_per_second, eta_seconds; /* NaN: unknown */
	int64_t worker_pid, supervisor_pid, restarts, rung, skipped;
	int64_t worker_rss, supervisor_rss;
	double supervisor_uptime;
	char version[32];
	bool has_death;
	char death[256], death_time[40];
	bool has_verified;
	char verified_id[48], verified_path[768];
	int64_t verified_step;
	double verified_age;
	bool saving;
	int64_t saver_step;
	double save_last_ms, save_next_seconds, stall_max_ms;
	char save_error[256];
	bool scrubbing;
	char scrub_id[48], scrub_finished[40], scrub_due[40];
	int64_t scrub_done, scrub_total, scrub_corrupt;
	int64_t slots, slot_bytes;
	char slots_text[200];
	char mirror_state[16], mirror_newest[40], mirror_error[300];
	int64_t mirror_behind;
	char signer[72];
	bool signature_required;
	char engine[64], engine_reason[200], sandbox[200];
	int64_t threads, plan_bytes;
	bool storage_ok;
	char storage_text[256];
	int64_t free_bytes;
	char data_text[200];
	int64_t preview_step;
	char preview_path[768];
	char config_text[300];
	int warning_count;
	char warnings[LOOK_WARNINGS_MAX][300];
};

/* Anything missing or of another type is as unknown. */
void look_read(const json_t *status, struct look *ret);

/* Steps done in [0, 1]. */
double look_share(const struct look *look);

/* The pages of facts: label and text of line i, false when there is no more. For status and for the
 * live view. */
#define LOOK_LINE_MAX 1200
bool look_fact(const struct look *look, int i, const char **ret_label, char text[LOOK_LINE_MAX],
	bool *ret_bad);

/* `ckptctl status`. */
void status_print(const json_t *status, FILE *out);
/* One line for logs and pipes, no newline. */
void look_line(const struct look *look, char text[LOOK_LINE_MAX]);
