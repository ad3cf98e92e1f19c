/* P9, P1: a folder of pictures is packed once, into the same bytes at any thread count; bad files
 * are named, counted and skipped; what changes later is said and changes nothing; a damaged cache
 * is found and built again; and every way to have no images is one clear line. */
#include "base/file.h"
#include "base/sys.h"
#include "daemon/data/data.h"
#include "daemon/image/image.h"
#include "tests/unit/pictures.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <omp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SIZE 8
#define BYTES (SIZE * SIZE * 3)
#define LINES_MAX 64

static struct pictures pictures;

/* A folder of pictures and a run's folder beside it, and what was reported. */
struct place {
	char base[64], images[80], source[96];
	int images_fd, cache_fd;
	char lines[LINES_MAX][ERROR_TEXT_MAX];
	unsigned line_count;
};

static int set_up_all(void **unused)
{
	pictures_read(&pictures);
	return 0;
}

static int tear_down_all(void **unused)
{
	pictures_free(&pictures);
	return 0;
}

static int set_up(void **state)
{
	struct place *place = calloc(1, sizeof(*place));

	assert_non_null(place);
	snprintf(place->base, sizeof(place->base), "/tmp/ckptd-data-XXXXXX");
	assert_non_null(mkdtemp(place->base));
	snprintf(place->images, sizeof(place->images), "%s/images", place->base);
	snprintf(place->source, sizeof(place->source), "folder:%s", place->images);
	int base_fd = open(place->base, O_RDONLY | O_DIRECTORY);
	place->images_fd = file_open_dir(base_fd, "images", 0755);
	int run_fd = file_open_dir(base_fd, "run", 0755);
	place->cache_fd = file_open_dir(run_fd, "cache", 0755);
	assert_true(place->images_fd >= 0 && place->cache_fd >= 0);
	close(base_fd);
	close(run_fd);
	*state = place;
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int tear_down(void **state)
{
	struct place *place = *state;

	sys_fault_plan(NULL);
	close(place->images_fd);
	close(place->cache_fd);
	nftw(place->base, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(place);
	return 0;
}

static void put(const struct place *place, const char *path, const void *data, size_t size)
{
	char folder[256];

	for (const char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
		snprintf(folder, sizeof(folder), "%.*s", (int)(slash - path), path);
		if (mkdirat(place->images_fd, folder, 0755) < 0)
			assert_int_equal(errno, EEXIST);
	}
	int fd = openat(place->images_fd, path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(file_write_exact(fd, data, size, 0), 0);
	close(fd);
}

/* A picture of its own: one colour per number, and a PNG. */
static void put_colour(const struct place *place, const char *path, uint32_t number)
{
	uint8_t rgb[BYTES];
	void *png;
	size_t size;

	for (unsigned i = 0; i < BYTES; i++)
		rgb[i] = (uint8_t)(number >> (i % 3) * 8);
	assert_int_equal(image_encode_png(rgb, SIZE, SIZE, &png, &size, NULL), 0);
	put(place, path, png, size);
	free(png);
}

static void collect(void *context, const char *level, const char *text)
{
	struct place *place = context;

	assert_true(place->line_count < LINES_MAX);
	snprintf(place->lines[place->line_count++], ERROR_TEXT_MAX, "%s: %s", level, text);
}

static bool was_reported(const struct place *place, const char *part)
{
	for (unsigned i = 0; i < place->line_count; i++)
		if (strstr(place->lines[i], part))
			return true;
	return false;
}

static struct data_config config_of(const struct place *place)
{
	return (struct data_config){.source = place->source,
		.image_size = SIZE,
		.holdout_percent = 10.0,
		.seed = 1,
		.cache_fd = place->cache_fd};
}

static int prepare(struct place *place, const struct data_config *config, struct error *err)
{
	_Atomic uint64_t moves = 0;

	place->line_count = 0;
	*err = (struct error){0};
	int r = data_prepare(config, &moves, collect, place, err);
	assert_true(r < 0 || moves > 0);
	assert_true(r == 0 || (strlen(err->text) > 0 && !strchr(err->text, '\n')));
	return r;
}

static struct data prepare_and_open(struct place *place, const struct data_config *config)
{
	struct error err;
	struct data data = {0};

	if (prepare(place, config, &err) < 0 || data_open(config, &data, &err) < 0)
		fail_msg("%s", err.text);
	return data;
}

static void expect_error(
	struct place *place, const struct data_config *config, int code, const char *part)
{
	struct error err;

	assert_int_equal(prepare(place, config, &err), code);
	if (!strstr(err.text, part))
		fail_msg("'%s' does not say '%s'", err.text, part);
}

/* The only pack in the cache. */
static void pack_name(const struct place *place, char name[256])
{
	char path[128];

	snprintf(path, sizeof(path), "%s/run/cache", place->base);
	DIR *dir = opendir(path);
	assert_non_null(dir);
	name[0] = '\0';
	for (const struct dirent *entry; (entry = readdir(dir));) {
		if (entry->d_name[0] == '.' && strlen(entry->d_name) <= 2)
			continue;
		assert_int_equal(name[0], 0);
		snprintf(name, 256, "%s", entry->d_name);
	}
	closedir(dir);
}

static void flip_byte(const struct place *place, off_t offset)
{
	char name[256];
	uint8_t byte;

	pack_name(place, name);
	int fd = openat(place->cache_fd, name, O_RDWR);
	assert_int_equal(pread(fd, &byte, 1, offset), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
	close(fd);
}

static void put_all_pictures(const struct place *place)
{
	static const char *const folders[] = {"", "b/", "a/deep/er/"};
	char path[128];

	for (size_t i = 0; i < pictures.count; i++) {
		snprintf(path, sizeof(path), "%s%s", folders[i % 3], pictures.all[i].name);
		put(place, path, pictures.all[i].file, pictures.all[i].file_size);
	}
}

static void test_every_mode_is_packed_as_it_decodes(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);
	const struct picture *only = pictures_find(&pictures, "rgba16-adam7.png");
	uint8_t expected[BYTES], rgb[BYTES];
	struct image image;
	int32_t label;

	config.holdout_percent = 0.0;
	put(place, "only.PNG", only->file, only->file_size);
	assert_int_equal(image_decode(only->file, only->file_size, &image, NULL), 0);
	image_square(&image, SIZE, expected);
	image_fini(&image);
	struct data data = prepare_and_open(place, &config);
	assert_int_equal(data.train_count, 1);
	assert_int_equal(data.holdout_count, 0);
	data_read(&data, false, 0, rgb, &label);
	assert_memory_equal(rgb, expected, BYTES);
	assert_int_equal(label, -1);
	data_close(&data);
}

static void test_bad_files_are_named_counted_and_skipped(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);
	const struct picture *cut = pictures_find(&pictures, "colour.jpg");
	char text[160];

	put_all_pictures(place);
	put(place, "a/cut.jpg", cut->file, cut->file_size / 2);
	put(place, "empty.png", "", 0);
	put(place, "text.jpeg", "hello", 5);
	put(place, "notes.txt", "not a picture by name", 21);
	put(place, ".hidden.png", "left out", 8);
	assert_int_equal(mkdirat(place->images_fd, "folder.png", 0755), 0);
	assert_int_equal(symlinkat("nowhere", place->images_fd, "dangling.png"), 0);
	assert_int_equal(symlinkat("a", place->images_fd, "linked-folder"), 0);
	assert_int_equal(symlinkat("text.jpeg", place->images_fd, "linked.jpeg"), 0);
	struct data data = prepare_and_open(place, &config);
	assert_int_equal(data.train_count + data.holdout_count, pictures.count);
	assert_int_equal(place->line_count, 5);
	assert_true(was_reported(place, "a/cut.jpg: skipped: JPEG: "));
	assert_true(was_reported(place, "empty.png: skipped: neither PNG nor JPEG"));
	assert_true(was_reported(place, "text.jpeg: skipped"));
	assert_true(was_reported(place, "linked.jpeg: skipped"));
	assert_true(was_reported(place, "dangling.png: skipped: No such file"));
	snprintf(text, sizeof(text), "%zu images, %llu held out, 5 skipped", pictures.count,
		(unsigned long long)data.holdout_count);
	assert_non_null(strstr(data.text, text));
	data_close(&data);
}

static void test_many_bad_files_are_bounded(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);
	char path[64];

	for (unsigned i = 0; i < 33; i++) {
		snprintf(path, sizeof(path), "bad-%02u.png", i);
		put(place, path, "x", 1);
	}
	put_colour(place, "good.png", 1);
	struct data data = prepare_and_open(place, &config);
	assert_int_equal(place->line_count, 21);
	assert_non_null(strstr(place->lines[20], "13 more files were skipped"));
	assert_non_null(strstr(data.text, "1 images, 0 held out, 33 skipped"));
	data_close(&data);
}

static void test_threads_do_not_change_the_cache(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);
	char *first, *second, name[256];
	size_t first_size, second_size;
	struct error err;

	put_all_pictures(place);
	omp_set_num_threads(1);
	assert_int_equal(prepare(place, &config, &err), 0);
	pack_name(place, name);
	assert_int_equal(file_read_all(place->cache_fd, name, 1 << 20, &first, &first_size), 0);
	assert_int_equal(unlinkat(place->cache_fd, name, 0), 0);
	omp_set_num_threads(4);
	assert_int_equal(prepare(place, &config, &err), 0);
	assert_int_equal(file_read_all(place->cache_fd, name, 1 << 20, &second, &second_size), 0);
	assert_int_equal(first_size, second_size);
	assert_memory_equal(first, second, first_size);
	free(first);
	free(second);
}

static void test_later_changes_are_said_and_change_nothing(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);
	char moved[128];

	put_colour(place, "a.png", 1);
	put_colour(place, "b.png", 2);
	put_colour(place, "c.png", 3);
	struct data before = prepare_and_open(place, &config);
	struct data same = prepare_and_open(place, &config);
	assert_int_equal(place->line_count, 0);
	assert_int_equal(unlinkat(place->images_fd, "a.png", 0), 0);
	put(place, "b.png", "now garbage", 11);
	put_colour(place, "d.png", 4);
	put_colour(place, "e/f.png", 5);
	struct data after = prepare_and_open(place, &config);
	assert_int_equal(place->line_count, 1);
	assert_true(was_reported(place, "2 added, 1 removed, 1 changed"));
	assert_true(digest_equal(&before.digest, &after.digest));
	data_close(&after);
	/* And when the folder is not there at all. */
	snprintf(moved, sizeof(moved), "%s/moved", place->base);
	assert_int_equal(rename(place->images, moved), 0);
	after = prepare_and_open(place, &config);
	assert_true(was_reported(place, "no such folder"));
	assert_true(was_reported(place, "goes on with the 3 cached images"));
	assert_true(digest_equal(&before.digest, &after.digest));
	data_close(&before);
	data_close(&same);
	data_close(&after);
}

static void test_the_digest_is_of_the_pixels_not_of_the_place(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);

	config.holdout_percent = 0.0;
	put_colour(place, "x/a.png", 1);
	put_colour(place, "x/b.png", 2);
	struct data first = prepare_and_open(place, &config);
	char name[256];
	pack_name(place, name);
	assert_int_equal(unlinkat(place->cache_fd, name, 0), 0);
	assert_int_equal(renameat(place->images_fd, "x", place->images_fd, "y"), 0);
	struct data second = prepare_and_open(place, &config);
	assert_true(digest_equal(&first.digest, &second.digest));
	assert_int_equal(unlinkat(place->cache_fd, name, 0), 0);
	put_colour(place, "y/b.png", 3);
	struct data third = prepare_and_open(place, &config);
	assert_false(digest_equal(&first.digest, &third.digest));
	data_close(&first);
	data_close(&second);
	data_close(&third);
}

static void test_a_damaged_cache_is_built_again(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);
	char name[256];
	struct stat st;

	for (uint32_t i = 0; i < 20; i++) {
		char path[32];
		snprintf(path, sizeof(path), "%02u.png", i);
		put_colour(place, path, i + 1);
	}
	struct data whole = prepare_and_open(place, &config);
	pack_name(place, name);
	assert_int_equal(fstatat(place->cache_fd, name, &st, 0), 0);
	const off_t at[] = {
		0, 20, 4095, 4096 + 5, 4096 + 19 * BYTES, st.st_size - 300, st.st_size - 1};
	for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		flip_byte(place, at[i]);
		struct data again = prepare_and_open(place, &config);
		assert_true(was_reported(place, "damaged: built again from"));
		assert_true(digest_equal(&whole.digest, &again.digest));
		data_close(&again);
	}
	for (off_t size = 0; size < st.st_size; size += 1000) {
		int fd = openat(place->cache_fd, name, O_RDWR);
		assert_int_equal(ftruncate(fd, size), 0);
		close(fd);
		struct data again = prepare_and_open(place, &config);
		assert_int_equal(place->line_count, 1);
		assert_true(digest_equal(&whole.digest, &again.digest));
		data_close(&again);
	}
	data_close(&whole);
}

/* A read after the cache went bad under a running trainer ends it instead of training on noise. */
static void test_a_bad_sample_is_never_trained_on(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);
	int status = 0;

	config.holdout_percent = 0.0;
	put_colour(place, "a.png", 1);
	struct data data = prepare_and_open(place, &config);
	flip_byte(place, 4096 + 7);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		uint8_t rgb[BYTES];
		int32_t label;
		signal(SIGABRT, SIG_DFL);
		close(STDERR_FILENO);
		data_read(&data, false, 0, rgb, &label);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	data_close(&data);
}

static void test_classes_are_folders_by_name(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);
	uint8_t rgb[BYTES];
	int32_t label;

	config.labels = true;
	config.holdout_percent = 0.0;
	/* In byte order of paths "a-b/" comes before "a/", of names after it. */
	put_colour(place, "a/1.png", 10);
	put_colour(place, "a-b/1.png", 20);
	put_colour(place, "c/deep/1.png", 30);
	put_colour(place, "c/2.png", 30);
	struct data data = prepare_and_open(place, &config);
	assert_int_equal(data.class_count, 3);
	assert_int_equal(data.train_count, 4);
	assert_non_null(strstr(data.text, "3 classes"));
	for (unsigned i = 0; i < 4; i++) {
		data_read(&data, false, i, rgb, &label);
		assert_int_equal(label, rgb[0] / 10 - 1);
	}
	data_close(&data);
}

static void test_wrong_folders_for_labels_say_why(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);

	config.labels = true;
	put_colour(place, "a/1.png", 10);
	expect_error(place, &config, -EINVAL, "only one sub-folder");
	put_colour(place, "b/1.png", 10);
	put_colour(place, "stray.png", 10);
	expect_error(place, &config, -EINVAL, "'stray.png' lies directly in");
}

static void test_no_images_is_one_clear_line(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);
	struct error err;
	struct data data;

	expect_error(place, &config, -ENODATA, "no .png, .jpg or .jpeg files below");
	put(place, "a.png", "x", 1);
	put(place, "b.png", "y", 1);
	expect_error(place, &config, -ENODATA, "none of the 2 picture files");
	expect_error(place, &config, -ENODATA, "a.png: skipped: neither PNG nor JPEG");
	config.source = "folder:/nonexistent/pictures";
	expect_error(place, &config, -ENOENT, "/nonexistent/pictures: no such folder");
	config.source = "folder:/dev/null";
	expect_error(place, &config, -ENOTDIR, "Not a directory");
	config.source = "folder:";
	expect_error(place, &config, -EINVAL, "unknown source");
	config.source = place->source;
	assert_int_equal(data_open(&config, &data, &err), -ENOENT);
	assert_non_null(strstr(err.text, "is not there"));
}

static void test_equal_images_are_on_one_side(void **state)
{
	enum { DIFFERENT = 280, EACH = 2 };
	struct place *place = *state;
	struct data_config config = config_of(place);
	bool held_out[DIFFERENT + 1] = {0};
	uint8_t rgb[BYTES];
	char path[64];
	int32_t label;

	config.holdout_percent = 2.0;
	for (uint32_t i = 0; i < DIFFERENT * EACH; i++) {
		snprintf(path, sizeof(path), "%03u.png", i);
		put_colour(place, path, i % DIFFERENT + 1);
	}
	struct data data = prepare_and_open(place, &config);
	/* 2 % would be 11: at least 64. */
	assert_in_range(data.holdout_count, 64, 66);
	assert_int_equal(data.train_count + data.holdout_count, DIFFERENT * EACH);
	for (uint64_t i = 0; i < data.holdout_count; i++) {
		data_read(&data, true, i, rgb, &label);
		held_out[rgb[0] | rgb[1] << 8] = true;
	}
	for (uint64_t i = 0; i < data.train_count; i++) {
		data_read(&data, false, i, rgb, &label);
		assert_false(held_out[rgb[0] | rgb[1] << 8]);
	}
	data_close(&data);
}

static void test_one_image_many_times_is_all_training(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);
	char path[64];

	for (uint32_t i = 0; i < 30; i++) {
		snprintf(path, sizeof(path), "%03u.png", i);
		put_colour(place, path, 77);
	}
	struct data data = prepare_and_open(place, &config);
	assert_int_equal(data.holdout_count, 0);
	assert_int_equal(data.train_count, 30);
	data_close(&data);
}

static void test_the_runs_own_pictures_are_left_out(void **state)
{
	struct place *place = *state;
	struct data_config config = config_of(place);
	char source[96];

	put_colour(place, "a.png", 1);
	int preview = openat(place->cache_fd, "../preview.png", O_WRONLY | O_CREAT, 0644);
	assert_true(preview >= 0);
	close(preview);
	snprintf(source, sizeof(source), "folder:%s", place->base);
	config.source = source;
	struct data data = prepare_and_open(place, &config);
	assert_int_equal(place->line_count, 0);
	assert_int_equal(data.train_count + data.holdout_count, 1);
	data_close(&data);
}

static void test_p7_a_full_disk_leaves_nothing_half_made(void **state)
{
	static const char *const plans[] = {"pwrite:1:ENOSPC", "pwrite:3:ENOSPC", "fsync:1:EIO",
		"rename:1:EIO", "pwrite:2:short"};
	static const int codes[] = {-ENOSPC, -ENOSPC, -EIO, -EIO, 0};
	struct place *place = *state;
	struct data_config config = config_of(place);
	struct error err;
	char name[256];

	put_all_pictures(place);
	for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
		assert_int_equal(sys_fault_plan(plans[i]), 0);
		assert_int_equal(prepare(place, &config, &err), codes[i]);
		sys_fault_plan(NULL);
		pack_name(place, name);
		assert_int_equal(strlen(name) > 0, codes[i] == 0);
	}
	struct data data = prepare_and_open(place, &config);
	assert_int_equal(place->line_count, 0);
	data_close(&data);
}

#define NOTED_MAX 4

struct noted {
	unsigned calls;
	uint64_t count;
	char folders[NOTED_MAX][PATH_MAX];
};

static void note_folders(void *context, const char *const *folders, uint64_t count)
{
	struct noted *noted = context;

	assert_true(count <= NOTED_MAX);
	noted->calls++;
	noted->count = count;
	for (uint64_t i = 0; i < count; i++)
		snprintf(noted->folders[i], PATH_MAX, "%s", folders[i]);
}

/* A decoder may be confined to what it must read: the folder, and wherever links lead. */
static void test_p10_before_the_first_picture_comes_what_must_be_readable(void **state)
{
	static struct noted noted;
	struct place *place = *state;
	struct data_config config = config_of(place);
	char b[PATH_MAX], c[PATH_MAX];
	struct error err;

	put_colour(place, "0.png", 1);
	put_colour(place, ".b/1.png", 2);
	put_colour(place, ".b/2.png", 3);
	put_colour(place, ".c/3.png", 4);
	assert_int_equal(symlinkat(".c/3.png", place->images_fd, "3.png"), 0);
	assert_int_equal(symlinkat("3.png", place->images_fd, "4.png"), 0);
	assert_int_equal(symlinkat(".b/1.png", place->images_fd, "1.png"), 0);
	assert_int_equal(symlinkat(".b/2.png", place->images_fd, "2.png"), 0);
	snprintf(b, sizeof(b), "%s/images/.b", place->base);
	snprintf(c, sizeof(c), "%s/images/.c", place->base);
	config.confine = note_folders;
	config.confine_context = &noted;
	assert_int_equal(prepare(place, &config, &err), 0);
	assert_int_equal(noted.calls, 1);
	assert_int_equal(noted.count, 3);
	assert_string_equal(noted.folders[0], place->source + strlen("folder:"));
	assert_string_equal(noted.folders[1], b);
	assert_string_equal(noted.folders[2], c);
	/* A cache that stands is not decoded again. */
	assert_int_equal(prepare(place, &config, &err), 0);
	assert_int_equal(noted.calls, 1);
}

int main(void)
{
#define FOLDER_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		FOLDER_TEST(test_every_mode_is_packed_as_it_decodes),
		FOLDER_TEST(test_bad_files_are_named_counted_and_skipped),
		FOLDER_TEST(test_many_bad_files_are_bounded),
		FOLDER_TEST(test_threads_do_not_change_the_cache),
		FOLDER_TEST(test_later_changes_are_said_and_change_nothing),
		FOLDER_TEST(test_the_digest_is_of_the_pixels_not_of_the_place),
		FOLDER_TEST(test_a_damaged_cache_is_built_again),
		FOLDER_TEST(test_a_bad_sample_is_never_trained_on),
		FOLDER_TEST(test_classes_are_folders_by_name),
		FOLDER_TEST(test_wrong_folders_for_labels_say_why),
		FOLDER_TEST(test_no_images_is_one_clear_line),
		FOLDER_TEST(test_equal_images_are_on_one_side),
		FOLDER_TEST(test_one_image_many_times_is_all_training),
		FOLDER_TEST(test_the_runs_own_pictures_are_left_out),
		FOLDER_TEST(test_p7_a_full_disk_leaves_nothing_half_made),
		FOLDER_TEST(test_p10_before_the_first_picture_comes_what_must_be_readable),
	};

	return cmocka_run_group_tests(tests, set_up_all, tear_down_all);
}
