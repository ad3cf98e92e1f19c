/* P11, the whole system: with a signing key every checkpoint is signed, and a start believes only
 * whom it is told to believe. */
#include "base/sign.h"
#include "tests/system/rig.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/descriptors.h"

#define KEY_PATH_MAX 128

static void make_key(const struct rig *rig, const char *name, char path[KEY_PATH_MAX],
	char hex[SIGN_PUBLIC_HEX_SIZE])
{
	struct sign_public public;
	struct error err;

	snprintf(path, KEY_PATH_MAX, "%.60s/%s", rig->dir, name);
	if (sign_key_create(path, &public, &err) < 0)
		fail_msg("%s", err.text);
	sign_public_hex(&public, hex);
}

static void expect_signer(struct rig *rig, const char *hex)
{
	AUTO_JSON status = rig_status(rig);
	const json_t *signing = json_object_get(status, "signing");

	assert_string_equal(json_get_text(signing, "signer", ""), hex);
	assert_true(json_get_bool(signing, "required", false));
}

/* A trainer was started, found nothing to believe, and ended. */
static void p11_a_start_believes_only_its_own_key(void **unused)
{
	char own[KEY_PATH_MAX], other[KEY_PATH_MAX], own_hex[SIGN_PUBLIC_HEX_SIZE],
		other_hex[SIGN_PUBLIC_HEX_SIZE], id[64], text[256], trusted[KEY_PATH_MAX + 4];
	int64_t saved;
	struct rig rig;

	rig_open(&rig, "steps_total=1000000 interval=0 require_signature=true trusted_keys=/none");
	make_key(&rig, "own", own, own_hex);
	make_key(&rig, "other", other, other_hex);
	rig_set(&rig, "trusted_keys", "");
	rig_set(&rig, "signing_key", own);
	rig_start(&rig, NULL);
	rig_wait(&rig, "steps", is_step, 5);
	expect_signer(&rig, own_hex);
	rig_save(&rig, id, &saved);
	rig_kill_supervisor(&rig);

	rig_start(&rig, NULL);
	rig_wait(&rig, "the same key", is_step, saved + 1);
	assert_true(rig_event(&rig, "training", "from checkpoint", 0, text) > 0);

	/* Under another key nothing here is to be believed, and nothing begins anew. */
	int64_t trained = rig_event(&rig, "training", "", 0, text);

	rig_kill_supervisor(&rig);
	rig_set(&rig, "signing_key", other);
	rig_start(&rig, NULL);
	if (rig_event(&rig, "refused", "an untrusted key signed it", 0, text) == 0)
		fail_msg("no word of the other key");
	rig_wait(&rig, "a trainer that gives up", has_died, 1);
	assert_int_equal(rig_event(&rig, "training", "", 0, text), trained);
	rig_kill_supervisor(&rig);

	snprintf(trusted, sizeof(trusted), "%s.pub", own);
	rig_set(&rig, "trusted_keys", trusted);
	rig_start(&rig, NULL);
	rig_wait(&rig, "a trusted key", is_step, saved + 1);
	rig_save(&rig, id, &saved);
	expect_signer(&rig, other_hex);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

/* Nothing unsigned is written instead; training goes on. */
static void p11_without_its_key_a_save_fails_and_says_so(void **unused)
{
	char key[KEY_PATH_MAX], hex[SIGN_PUBLIC_HEX_SIZE], id[64], error[64];
	int64_t saved;
	struct rig rig;

	rig_open(&rig, "steps_total=1000000 interval=0 require_signature=true trusted_keys=/none");
	make_key(&rig, "key", key, hex);
	rig_set(&rig, "trusted_keys", "");
	rig_set(&rig, "signing_key", key);
	rig_start(&rig, NULL);
	rig_wait(&rig, "steps", is_step, 5);
	assert_int_equal(chmod(key, 0644), 0);
	assert_null(rig_call(&rig, "Save", json_pack("{s:b}", "wait", 1), error));
	assert_string_equal(error, "io.ckptd.Training.Failed");
	{
		AUTO_JSON status = rig_status(&rig);

		assert_non_null(
			strstr(json_get_text(json_object_get(status, "save"), "last_error", ""),
				"chmod 600"));
	}
	rig_wait(&rig, "training beside it", is_step, rig_step(&rig) + 5);
	assert_int_equal(chmod(key, 0600), 0);
	rig_save(&rig, id, &saved);
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
}

/* -- who reads it -- */

/* How often path was opened since the last call. */
static int opened(int watch)
{
	char events[4096];
	ssize_t size = read(watch, events, sizeof(events));

	if (size < 0)
		assert_int_equal(errno, EAGAIN);
	return size > 0 ? (int)(size / (ssize_t)sizeof(struct inotify_event)) : 0;
}

static bool is_rid_of_saver(const json_t *status, int64_t pid)
{
	return json_get_int(json_object_get(status, "saver"), "pid", pid) != pid;
}

static bool is_without(const char *name, pid_t pid)
{
	char path[64], text[65536];
	size_t size;

	snprintf(path, sizeof(path), "/proc/%d/environ", (int)pid);
	FILE *file = fopen(path, "re");

	assert_non_null(file);
	size = fread(text, 1, sizeof(text), file);
	fclose(file);
	assert_true(size > 0);
	return memmem(text, size, name, strlen(name)) == NULL;
}

/* The supervisor opens it once, and the saver has the descriptor; nobody else comes near it. */
static void p10_the_key_reaches_the_saver_alone(void **unused)
{
	char key[KEY_PATH_MAX], other[KEY_PATH_MAX], hex[SIGN_PUBLIC_HEX_SIZE],
		other_hex[SIGN_PUBLIC_HEX_SIZE], id[64];
	int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	int64_t step;
	struct rig rig;

	rig_open(&rig, "steps_total=1000000 interval=0 require_signature=true trusted_keys=/none");
	make_key(&rig, "key", key, hex);
	make_key(&rig, "other", other, other_hex);
	rig_set(&rig, "trusted_keys", "");
	rig_set(&rig, "signing_key", key);
	assert_true(watch >= 0 && inotify_add_watch(watch, key, IN_OPEN) >= 0);
	setenv("CREDENTIALS_DIRECTORY", rig.dir, 1);
	rig_start(&rig, "save.begin@1:1:stop");
	rig_wait(&rig, "steps", is_step, 3);
	assert_int_equal(opened(watch), 1);
	rig_send(&rig, "Save");

	pid_t saver = rig_halted(&rig, "save"), trainer = rig_worker(&rig, "train");

	assert_int_equal(descriptors_of(rig.supervisor, key, NULL), 1);
	assert_int_equal(descriptors_of(saver, key, NULL), 1);
	assert_int_equal(descriptors_of(trainer, key, NULL), 0);
	assert_true(is_without("CREDENTIALS_DIRECTORY=", trainer));
	assert_true(is_without("CREDENTIALS_DIRECTORY=", saver));
	kill(saver, SIGKILL);
	rig_wait(&rig, "the end of that save", is_rid_of_saver, saver);
	rig_save(&rig, id, &step);
	expect_signer(&rig, hex);
	json_decref(rig_call(&rig, "Verify", json_pack("{s:s}", "id", id), NULL));
	json_decref(rig_call(&rig, "Sample", json_pack("{s:i,s:i}", "count", 1, "steps", 2), NULL));
	kill(rig_worker(&rig, "train"), SIGKILL);
	rig_wait(&rig, "the next trainer", has_restarted, 1);
	assert_int_equal(opened(watch), 0);

	/* A reload looks again. */
	assert_int_equal(rename(other, key), 0);
	json_decref(rig_call(&rig, "Reload", NULL, NULL));
	rig_wait(&rig, "steps under another key", is_step, rig_step(&rig) + 2);
	rig_save(&rig, id, &step);
	expect_signer(&rig, other_hex);
	unsetenv("CREDENTIALS_DIRECTORY");
	assert_int_equal(rig_stop(&rig), 0);
	rig_close(&rig);
	close(watch);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p11_a_start_believes_only_its_own_key),
		cmocka_unit_test(p11_without_its_key_a_save_fails_and_says_so),
		cmocka_unit_test(p10_the_key_reaches_the_saver_alone),
	};

	return cmocka_run_group_tests_name("signing", tests, NULL, NULL);
}
