/* P10: what somebody reaches who has taken over a worker that reads what others made. Each attempt
 * is made by every thread of the real worker. */
#include "base/file.h"
#include "daemon/image/image.h"
#include "tests/system/play.h"
#include "tests/system/takeover.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/descriptors.h"

#define PICTURES 24
#define SIDE 8
#define PLACE_MAX 256

/* A folder of pictures, one of them a link to another folder, a key beside them, and a run. */
struct place {
	char base[64], images[PLACE_MAX], linked[PLACE_MAX], key[PLACE_MAX];
	struct play play;
};

static void put_picture(const char *path, uint8_t shade)
{
	uint8_t rgb[SIDE * SIDE * 3];
	struct error err;
	void *png;
	size_t size;
	int fd;

	for (size_t i = 0; i < sizeof(rgb); i++)
		rgb[i] = (uint8_t)(shade + 3 * i);
	if (image_encode_png(rgb, SIDE, SIDE, &png, &size, &err) < 0)
		fail_msg("%s", err.text);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(file_write_exact(fd, png, size, 0), 0);
	close(fd);
	free(png);
}

static void open_place(struct place *place)
{
	struct config config = play_tiny_config();
	char path[PLACE_MAX + 64], source[PLACE_MAX + 64];
	struct error err;

	strcpy(place->base, "/tmp/ckptd-confined-XXXXXX");
	assert_non_null(mkdtemp(place->base));
	snprintf(place->images, sizeof(place->images), "%s/images", place->base);
	snprintf(place->linked, sizeof(place->linked), "%s/elsewhere", place->base);
	snprintf(place->key, sizeof(place->key), "%s/key", place->base);
	assert_int_equal(mkdir(place->images, 0755), 0);
	assert_int_equal(mkdir(place->linked, 0755), 0);
	put_picture(place->key, 0);
	for (int i = 0; i < PICTURES; i++) {
		snprintf(path, sizeof(path), "%s/%02d.png", place->images, i);
		put_picture(path, (uint8_t)(i + 1));
	}
	snprintf(source, sizeof(source), "%s/there.png", place->linked);
	put_picture(source, 200);
	snprintf(path, sizeof(path), "%s/link.png", place->images);
	assert_int_equal(symlink(source, path), 0);
	snprintf(source, sizeof(source), "folder:%s", place->images);
	if (config_set(&config, "data", source, "test", &err) < 0)
		fail_msg("%s", err.text);
	config.steps_total = 1000000;
	config.preview_every = 0;
	play_open(&place->play, &config);
}

static void close_place(struct place *place)
{
	play_close(&place->play);
	remove_tree(place->base);
}

/* -- attempts -- */

enum where { AT_ROOT, AT_BASE, AT_IMAGES, AT_LINKED, AT_RUN, AT_RUN_DESCRIPTOR };

struct attempt {
	enum where where;
	const char *name;
	int flags;
	long answer;
};

static int descriptor_of(pid_t pid, const char *path)
{
	int number;

	(void)descriptors_of(pid, path, &number);
	return number;
}

/* 0, or 1 when the answer is another one. */
static int try_open(const struct place *place, const struct takeover *takeover, pid_t thread,
	const struct attempt *attempt)
{
	const char *const folders[] = {[AT_ROOT] = "",
		[AT_BASE] = place->base,
		[AT_IMAGES] = place->images,
		[AT_LINKED] = place->linked,
		[AT_RUN] = place->play.dir};
	char path[2 * PLACE_MAX];
	int dir_fd = AT_FDCWD;
	long answer;

	if (attempt->where == AT_RUN_DESCRIPTOR) {
		dir_fd = descriptor_of(takeover->pid, place->play.dir);
		assert_true(dir_fd >= 0);
		snprintf(path, sizeof(path), "%s", attempt->name);
	} else {
		snprintf(path, sizeof(path), "%s/%s", folders[attempt->where], attempt->name);
	}
	answer = takeover_open(takeover, thread, dir_fd, path, attempt->flags);
	if (answer == attempt->answer)
		return 0;
	print_message("# open %s with %#o: %ld, not %ld\n", path, (unsigned)attempt->flags, answer,
		attempt->answer);
	return 1;
}

static int try_call(const struct takeover *takeover, pid_t thread, const char *name, long number,
	const struct takeover_argument arguments[4], long wanted)
{
	long answer = takeover_call(takeover, thread, number, arguments);

	if (answer == wanted)
		return 0;
	print_message("# %s: %ld, not %ld\n", name, answer, wanted);
	return 1;
}

/* What no confined worker may do, whatever its role. */
static int try_calls(const struct place *place, const struct takeover *takeover, pid_t thread)
{
	char made[PLACE_MAX];
	const struct takeover_argument program[4] = {TEXT_ARGUMENT("/bin/true")};
	const struct takeover_argument family[4] = {
		VALUE_ARGUMENT(AF_UNIX), VALUE_ARGUMENT(SOCK_STREAM)};
	const struct takeover_argument mode[5] = {
		VALUE_ARGUMENT(AT_FDCWD), TEXT_ARGUMENT(place->key), VALUE_ARGUMENT(0666)};
	const struct takeover_argument length[4] = {TEXT_ARGUMENT(place->key)};
	const struct takeover_argument parent[4] = {VALUE_ARGUMENT(getpid()), VALUE_ARGUMENT(0)};
	const struct takeover_argument link[4] = {
		TEXT_ARGUMENT("/etc/passwd"), VALUE_ARGUMENT(AT_FDCWD), TEXT_ARGUMENT(made)};
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
	int wrong = 0;

	snprintf(made, sizeof(made), "%s/made", place->base);
	wrong += try_call(takeover, thread, "execve", SYS_execve, program, -EPERM);
	wrong += try_call(takeover, thread, "socket", SYS_socket, family, -EPERM);
	wrong += try_call(takeover, thread, "fchmodat", SYS_fchmodat, mode, -EPERM);
#ifdef SYS_chmod /* what came after x86-64 has no older form */
	wrong += try_call(takeover, thread, "chmod", SYS_chmod, mode + 1, -EPERM);
#endif
	wrong += try_call(takeover, thread, "truncate", SYS_truncate, length, -EPERM);
	wrong += try_call(takeover, thread, "symlinkat", SYS_symlinkat, link, -EACCES);
	if (abi >= 6)
		wrong += try_call(takeover, thread, "a signal", SYS_kill, parent, -EPERM);
	return wrong;
}

static void try_all(const struct place *place, pid_t pid, const struct attempt *attempts,
	size_t count, size_t threads_min)
{
	struct takeover takeover;
	int wrong = 0;

	if (!takeover_begin(&takeover, pid)) {
		print_message("# not possible here: only on x86-64, and where ptrace is allowed\n");
		skip();
	}
	assert_true(takeover.thread_count >= threads_min);
	for (size_t i = 0; i < takeover.thread_count; i++) {
		for (size_t j = 0; j < count; j++)
			wrong += try_open(place, &takeover, takeover.threads[i], &attempts[j]);
		wrong += try_calls(place, &takeover, takeover.threads[i]);
	}
	takeover_end(&takeover);
	assert_int_equal(wrong, 0);
}

#define TRY_ALL(place, pid, attempts, threads_min)                                                 \
	try_all(place, pid, attempts, sizeof(attempts) / sizeof(*(attempts)), threads_min)

/* -- the roles -- */

/* It trains on afterwards, and the memory that it was given is still its own. */
static void p10_a_trainer_reaches_nothing_but_its_previews(void **unused)
{
	static const struct attempt attempts[] = {
		{AT_RUN, "previews/mine", O_RDWR | O_CREAT, 0},
		{AT_RUN, "previews", O_RDONLY | O_DIRECTORY, 0},
		{AT_ROOT, "etc/passwd", O_RDONLY, -EACCES},
		{AT_ROOT, "etc/passwd", O_WRONLY, -EACCES},
		{AT_BASE, "mine", O_RDWR | O_CREAT, -EACCES},
		{AT_BASE, "key", O_RDONLY, -EACCES},
		{AT_IMAGES, "00.png", O_RDONLY, -EACCES},
		{AT_RUN, "run.json", O_RDONLY, -EACCES},
		{AT_RUN, "run.json", O_WRONLY, -EACCES},
		{AT_RUN, "catalog.sqlite", O_RDWR, -EACCES},
		{AT_RUN, "checkpoints", O_RDONLY | O_DIRECTORY, -EACCES},
		{AT_RUN, "checkpoints/mine", O_RDWR | O_CREAT, -EACCES},
		{AT_RUN, "cache", O_RDONLY | O_DIRECTORY, -EACCES},
		{AT_RUN_DESCRIPTOR, "run.json", O_RDONLY, -EACCES},
		{AT_RUN_DESCRIPTOR, "../../../etc/passwd", O_RDONLY, -EACCES},
	};
	char memory[64], descriptor[64];
	const struct attempt of_parent[] = {
		{AT_ROOT, memory, O_RDONLY, -EACCES},
		{AT_ROOT, descriptor, O_RDONLY | O_DIRECTORY, -EACCES},
	};
	struct place place;
	struct child child;
	uint64_t step;

	snprintf(memory, sizeof(memory), "proc/%d/mem", (int)getpid());
	open_place(&place);
	snprintf(descriptor, sizeof(descriptor), "proc/%d/fd/%d", (int)getpid(), place.play.run_fd);
	play_prepare(&place.play);
	play_make_memory(&place.play, 3);
	child = play_trainer(&place.play, "disk", "scratch", NULL);
	play_wait_step(&place.play, 3);
	TRY_ALL(&place, child.pid, attempts, 2);
	TRY_ALL(&place, child.pid, of_parent, 2);
	step = atomic_load(&place.play.progress->step);
	play_wait_step(&place.play, step + 3);
	play_kill(&place.play, &child);
	close_place(&place);
}

/* One that went on from a checkpoint had threads before, which read it. */
static void p10_a_resumed_trainer_reaches_no_more(void **unused)
{
	static const struct attempt attempts[] = {
		{AT_RUN, "checkpoints", O_RDONLY | O_DIRECTORY, -EACCES},
		{AT_RUN, "catalog.sqlite", O_RDWR, -EACCES},
		{AT_BASE, "key", O_RDONLY, -EACCES},
	};
	struct place place;
	struct child child;

	open_place(&place);
	play_prepare(&place.play);
	play_make_memory(&place.play, 3);
	child = play_trainer(&place.play, "disk", "scratch", NULL);
	play_wait_step(&place.play, 2);
	play_kill(&place.play, &child);
	json_decref(play_save(&place.play));
	play_drop_memory(&place.play);
	play_make_memory(&place.play, 3);
	child = play_trainer(&place.play, "disk", "checkpoint", NULL);
	play_wait_step(&place.play, 6);
	TRY_ALL(&place, child.pid, attempts, 2);
	play_kill(&place.play, &child);
	close_place(&place);
}

/* Waits until the process sleeps in a read that nobody answers (a fault point's `block`). */
static struct child start_blocked(struct place *place, const char *role, const char *fault,
	const char *descriptor, json_t *extra)
{
	nsec_t deadline = clock_monotonic_ns() + 60 * NSEC_PER_SEC;
	struct child child;

	setenv("CKPTD_FAULT", fault, 1);
	child = play_start(&place->play, role, "disk", extra);
	unsetenv("CKPTD_FAULT");
	while (descriptor_of(child.pid, descriptor) < 0) {
		assert_true(clock_monotonic_ns() < deadline);
		usleep(1000);
	}
	usleep(200000);
	return child;
}

static void end_blocked(struct child *child)
{
	char tail[TAIL_MAX];

	kill(child->pid, SIGKILL);
	assert_int_equal(child_end(child, tail), -SIGKILL);
}

static void p10_a_decoder_reaches_pictures_and_the_cache(void **unused)
{
	static const struct attempt attempts[] = {
		{AT_IMAGES, "00.png", O_RDONLY, 0},
		{AT_IMAGES, "link.png", O_RDONLY, 0},
		{AT_IMAGES, "00.png", O_WRONLY, -EACCES},
		{AT_IMAGES, "mine.png", O_RDWR | O_CREAT, -EACCES},
		{AT_LINKED, "there.png", O_WRONLY, -EACCES},
		{AT_RUN, "cache/mine", O_RDWR | O_CREAT, 0},
		{AT_RUN, "checkpoints", O_RDONLY | O_DIRECTORY, 0},
		{AT_RUN, "checkpoints/mine", O_RDWR | O_CREAT, -EACCES},
		{AT_RUN, "previews/mine", O_RDWR | O_CREAT, -EACCES},
		{AT_RUN, "catalog.sqlite", O_RDONLY, -EACCES},
		{AT_RUN, "run.json", O_RDONLY, -EACCES},
		{AT_RUN_DESCRIPTOR, "run.json", O_RDONLY, -EACCES},
		{AT_BASE, "key", O_RDONLY, -EACCES},
		{AT_ROOT, "etc/passwd", O_RDONLY, -EACCES},
	};
	char partial[128];
	struct place place;
	struct child child;

	open_place(&place);
	snprintf(partial, sizeof(partial), "%s/cache/.images.partial", place.play.dir);
	/* The first block of decoded pictures is to be written. */
	child = start_blocked(&place, "prepare", "pwrite:1:block", partial, NULL);
	TRY_ALL(&place, child.pid, attempts, 2);
	end_blocked(&child);
	/* All of them are read without the fault, the linked one too. */
	child = play_start(&place.play, "prepare", "disk", NULL);
	{
		AUTO_JSON prepared = child_frame(&child, "prepared");

		child_expect_end(&child, LINK_EXIT_DONE);
		assert_int_equal(json_get_int(prepared, "images", 0), PICTURES + 1);
	}
	close_place(&place);
}

/* Where a rule cannot tell them apart, a person must. */
static void p10_a_key_among_the_pictures_is_told(void **unused)
{
	static const char signer[] =
		"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
	struct place place;

	for (int among = 0; among < 2; among++) {
		struct child child;
		bool told = false;

		open_place(&place);
		snprintf(place.play.config.signing_key, sizeof(place.play.config.signing_key),
			"%.200s/%s", among ? place.linked : place.base,
			among ? "there.png" : "key");
		child = play_start(
			&place.play, "prepare", "disk", json_pack("{s:s}", "signer", signer));
		for (json_t *event; (event = child_frame(&child, "event")) != NULL;) {
			told |= strcmp(json_get_text(event, "kind", ""), "sandbox") == 0 &&
				strstr(json_get_text(event, "text", ""), place.linked) != NULL;
			json_decref(event);
		}
		child_expect_end(&child, LINK_EXIT_DONE);
		assert_int_equal(told, among);
		close_place(&place);
	}
}

static void p10_a_sampler_reaches_nothing_but_its_picture(void **unused)
{
	static const struct attempt attempts[] = {
		{AT_RUN, "previews/mine", O_RDWR | O_CREAT, 0},
		{AT_RUN, "checkpoints", O_RDONLY | O_DIRECTORY, -EACCES},
		{AT_RUN, "catalog.sqlite", O_RDWR, -EACCES},
		{AT_RUN, "run.json", O_RDONLY, -EACCES},
		{AT_BASE, "key", O_RDONLY, -EACCES},
		{AT_ROOT, "etc/passwd", O_RDONLY, -EACCES},
	};
	char temporary[128];
	struct place place;
	struct child child;

	open_place(&place);
	place.play.config.steps_total = 2;
	play_prepare(&place.play);
	play_make_memory(&place.play, 2);
	play_to_end(&place.play, "disk", "scratch");
	json_decref(play_save(&place.play));
	/* The picture is to be synced. */
	snprintf(temporary, sizeof(temporary), "%s/previews", place.play.dir);
	child = start_blocked(&place, "sample", "fsync:1:block", temporary,
		json_pack("{s:s,s:i,s:i,s:i,s:s,s:s}", "id", "", "count", 2, "steps", 2, "seed", 7,
			"sampler", "ddim", "name", "sample-1.png"));
	TRY_ALL(&place, child.pid, attempts, 1);
	end_blocked(&child);
	close_place(&place);
}

/* -- a kernel that has less -- */

static void p10_a_kernel_without_it_is_told_and_training_goes_on(void **unused)
{
	static const struct {
		bool landlock, seccomp;
		const char *sandbox;
	} rows[] = {{true, true, "seccomp+landlock"},
		{false, true, "seccomp: no Landlock: this kernel has none"},
		{true, false, "landlock: no seccomp: this kernel has none"},
		{false, false,
			"none: no seccomp: this kernel has none; no Landlock: this kernel has "
			"none"}};
	struct config config = play_tiny_config();

	config.steps_total = 4;
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		struct child child;
		struct play play;
		char tail[TAIL_MAX];

		play_begin(&play, &config, 2);
		play.lacks_landlock = !rows[i].landlock;
		play.lacks_seccomp = !rows[i].seccomp;
		child = play_start(&play, "train", "disk", NULL);
		{
			AUTO_JSON ready = child_frame(&child, "ready");
			AUTO_JSON finished = child_frame(&child, "finished");

			assert_string_equal(json_get_text(ready, "sandbox", ""), rows[i].sandbox);
			assert_int_equal(json_get_int(finished, "step", -1), 4);
		}
		assert_int_equal(child_end(&child, tail), LINK_EXIT_DONE);
		assert_int_equal(strstr(tail, "the sandbox of 'train' is not whole") != NULL,
			!rows[i].landlock || !rows[i].seccomp);
		play_close(&play);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(p10_a_trainer_reaches_nothing_but_its_previews),
		cmocka_unit_test(p10_a_resumed_trainer_reaches_no_more),
		cmocka_unit_test(p10_a_decoder_reaches_pictures_and_the_cache),
		cmocka_unit_test(p10_a_key_among_the_pictures_is_told),
		cmocka_unit_test(p10_a_sampler_reaches_nothing_but_its_picture),
		cmocka_unit_test(p10_a_kernel_without_it_is_told_and_training_goes_on),
	};

	setenv("GOMP_SPINCOUNT", "1000", 1);
	return cmocka_run_group_tests_name("confined workers", tests, NULL, NULL);
}
