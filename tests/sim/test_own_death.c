/* The supervisor's own beginning and end: what survives it, whose run it takes, what it refuses.
 * The test plays systemd where it is needed. */
#include "tests/sim/fake_worker.h"
#include "tests/sim/rig.h"

#include "tests/descriptors.h"

#include "proto/progress.h"
#include "proto/state.h"
#include "store/run.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* -- the supervisor's own death -- */

static void p1_after_sigkill_of_the_supervisor_the_newest_checkpoint_is_resumed(void **state)
{
	struct fixture *fx = *state;

	sim_start(fx);
	sim_await_only(fx, "training", 10, 0);
	sim_call_good(fx, "Save", json_pack("{s:b}", "wait", 1));
	json_t *now = sim_status(fx);
	int64_t saved = sim_newest_step(now);

	json_decref(now);
	kill(fx->ckptd, SIGKILL);
	assert_int_equal(sim_wait_for_end(fx), 256 + SIGKILL);
	sim_start(fx); /* waits for the lock that the old trainer inherited, if it still lives */
	now = sim_await(fx, "training", saved, 0);
	assert_int_equal(sim_newest_step(now), saved);
	json_decref(now);
}

static void await_state_memories(pid_t supervisor, int count)
{
	nsec_t deadline_ns = clock_monotonic_ns() + PATIENCE;

	while (descriptors_of(supervisor, "/memfd:ckptd-state (deleted)", NULL) != count) {
		assert_true(clock_monotonic_ns() < deadline_ns);
		usleep(5000);
	}
}

static void stop(struct fixture *fx)
{
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(fx), 0);
}

static void state_memory_is_made_while_the_run_is_prepared(void **state)
{
	struct fixture *fx = *state;

	sim_set(fx, "steps_total=20");
	sim_start(fx);
	sim_await_only(fx, "finished", 20, 0);
	stop(fx);
	/* There is nothing to train: it is given back. */
	sim_start(fx);
	sim_await_only(fx, "finished", 20, 0);
	await_state_memories(fx->ckptd, 0);
	stop(fx);
	sim_set(fx, "steps_total=100000");
	sim_behave(fx, "prepare_wait_ms 3600000\n");
	sim_start(fx);
	await_state_memories(fx->ckptd, 1);
	sim_await_only(fx, "starting", 0, 0);
	stop(fx);
	/* The same that the trainer gets. */
	sim_behave(fx, "prepare_wait_ms 100\n");
	sim_start(fx);
	sim_await_only(fx, "training", 25, 0);
	await_state_memories(fx->ckptd, 1);
}

/* The test in systemd's place: a notification socket, a listening socket, the fd store. */
struct manager {
	int notify_fd, listen_fd;
	char address[64];
	int state_fd, progress_fd; /* stored; -1: not yet */
	bool ready, stopping, watchdog;
};

static void manager_init(struct manager *manager, const struct fixture *fx)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	*manager = (struct manager){.state_fd = -1, .progress_fd = -1};
	manager->notify_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	snprintf(manager->address, sizeof(manager->address), "@ckptd-test-%d", (int)getpid());
	snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "%s", manager->address + 1);
	assert_int_equal(bind(manager->notify_fd, (struct sockaddr *)&address,
				 (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
					 strlen(manager->address))),
		0);
	address = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(address.sun_path, sizeof(address.sun_path), "%.80s/ckptd.sock", fx->dir);
	manager->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(manager->listen_fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(manager->listen_fd, 16), 0);
}

static void manager_fini(struct manager *manager)
{
	close(manager->notify_fd);
	close(manager->listen_fd);
	close(manager->state_fd);
	close(manager->progress_fd);
}

/* Everything the daemon has said so far. */
static void manager_listen(struct manager *manager)
{
	for (;;) {
		union {
			struct cmsghdr header;
			char room[CMSG_SPACE(sizeof(int))];
		} control;
		char text[1200];
		struct iovec part = {.iov_base = text, .iov_len = sizeof(text) - 1};
		struct msghdr message = {.msg_iov = &part,
			.msg_iovlen = 1,
			.msg_control = &control,
			.msg_controllen = sizeof(control)};
		ssize_t size = recvmsg(
			manager->notify_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

		if (size < 0)
			return;
		text[size] = '\0';
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);

		if (header) {
			bool state = strcmp(text, "FDSTORE=1\nFDNAME=state") == 0;

			assert_true(state || strcmp(text, "FDSTORE=1\nFDNAME=progress") == 0);
			memcpy(state ? &manager->state_fd : &manager->progress_fd,
				CMSG_DATA(header), sizeof(int));
		}
		manager->ready = manager->ready || strncmp(text, "READY=1", 7) == 0;
		manager->stopping = manager->stopping || strncmp(text, "STOPPING=1", 10) == 0;
		manager->watchdog = manager->watchdog || strcmp(text, "WATCHDOG=1") == 0;
	}
}

/* As PID 1 would: sockets first, then what is stored. */
static void start_managed(struct fixture *fx, struct manager *manager)
{
	static const char *const names[] = {"status", "status:state:progress"};
	int fds[] = {manager->listen_fd, manager->state_fd, manager->progress_fd};
	int count = manager->state_fd >= 0 ? 3 : 1;
	char text[32];

	fflush(NULL);
	fx->ckptd = fork();
	assert_true(fx->ckptd >= 0);
	if (fx->ckptd > 0)
		return;
	for (int i = 0; i < count; i++)
		fds[i] = fcntl(fds[i], F_DUPFD, 20);
	for (int i = 0; i < count; i++)
		dup2(fds[i], 3 + i);
	snprintf(text, sizeof(text), "%d", (int)getpid());
	setenv("LISTEN_PID", text, 1);
	snprintf(text, sizeof(text), "%d", count);
	setenv("LISTEN_FDS", text, 1);
	setenv("LISTEN_FDNAMES", names[count > 1], 1);
	setenv("NOTIFY_SOCKET", manager->address, 1);
	setenv("WATCHDOG_USEC", "1000000", 1);
	sim_run_ckptd(fx);
}

static void p3_the_supervisors_own_death_loses_no_step_under_systemd(void **state)
{
	struct fixture *fx = *state;
	struct manager manager;
	struct state_record record;
	struct error error;
	struct state memory;

	manager_init(&manager, fx);
	sim_set(fx, "interval=0"); /* nothing on the disk: the memory is all there is */
	start_managed(fx, &manager);
	for (int64_t i = 1; i <= 3; i++) {
		sim_await_only(fx, "training", i * 15, 0);
		manager_listen(&manager);
		assert_true(manager.state_fd >= 0 && manager.progress_fd >= 0 && manager.ready);
		kill(fx->ckptd, SIGKILL);
		assert_int_equal(sim_wait_for_end(fx), 256 + SIGKILL);
		start_managed(
			fx, &manager); /* waits until the last worker of the old one is gone */
		json_t *now = sim_await(fx, "training", 0, 0);

		assert_true(sim_number(now, "step") >= i * 15);
		assert_true(json_is_null(json_object_get(now, "newest_verified")));
		json_decref(now);
		assert_true(sim_told(fx, "memory-kept"));
	}
	/* No step was done twice or lost: images and steps agree in the record itself. */
	sim_call_good(fx, "Pause", NULL);
	assert_int_equal(state_map(&memory, manager.state_fd, false, &error), 0);
	assert_int_equal(state_newest_record(&memory, &record), 0);
	assert_int_equal(record.images_seen, 16 * record.step);
	assert_int_equal(record.update_count, record.step);
	state_unmap(&memory);
	nsec_t until = clock_monotonic_ns() + PATIENCE;

	while (!manager.watchdog && clock_monotonic_ns() < until) {
		manager_listen(&manager);
		usleep(10000);
	}
	assert_true(manager.watchdog);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(fx), 0);
	manager_listen(&manager);
	assert_true(manager.stopping);
	manager_fini(&manager);
}

/* Another run's memory in the store is not taken. */
static void a_foreign_state_memory_is_refused(void **state)
{
	struct fixture *fx = *state;
	struct manager manager;
	struct digest model = {{1}};
	uint8_t run_id[RUN_ID_SIZE] = {7};
	struct error error;
	struct progress *progress;

	manager_init(&manager, fx);
	manager.state_fd = state_create(FAKE_SECTION_BYTES, 3, run_id, &model, &error);
	assert_true(manager.state_fd >= 0);
	assert_int_equal(progress_create(&progress, &manager.progress_fd, &error), 0);
	progress_unmap(progress);
	start_managed(fx, &manager);
	sim_await_only(fx, "training", 5, 0);
	assert_true(sim_told(fx, "memory-refused"));
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(fx), 0);
	manager_fini(&manager);
}

static void two_daemons_cannot_have_one_run(void **state)
{
	struct fixture *fx = *state;

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	int run_fd = open(fx->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), lock_fd;
	struct error error;
	pid_t owner;

	assert_int_equal(run_lock(run_fd, &lock_fd, &owner, &error), -EWOULDBLOCK);
	/* A second one waits, says for whom, and takes over when the first is gone. */
	struct fixture second = *fx;
	char words[64];

	second.ckptd = 0;
	snprintf(words, sizeof(words), "waiting for process %d", (int)fx->ckptd);
	sim_start(&second);
	assert_true(sim_log_says(fx, words));
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(fx), 0);
	sim_await_only(fx, "training", 4, 0);
	kill(second.ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(&second), 0);
	close(run_fd);
}

static void without_a_run_it_waits_and_says_so(void **state)
{
	struct fixture *fx = *state;
	char path[160];

	snprintf(path, sizeof(path), "%s/run.json", fx->dir);
	assert_int_equal(unlink(path), 0);
	sim_start(fx);
	json_t *now = sim_await(fx, "waiting", 0, 0);

	assert_non_null(strstr(json_get_text(now, "state_text", ""), "ckptctl init"));
	json_decref(now);
	json_t *reply = sim_call(fx, "Pause", NULL);

	assert_string_equal(json_get_text(reply, "error", ""), "io.ckptd.Training.NoRun");
	json_decref(reply);
	struct config config;
	struct error error;
	struct run run;
	int fd = open(fx->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	config_defaults(&config);
	assert_int_equal(run_create(fd, &config, &run, &error), 0);
	run_fini(&run);
	close(fd);
	sim_await_only(fx, "training", 3, 0);
}

static void p9_an_identity_key_that_differs_is_refused_for_the_last_good(void **state)
{
	struct fixture *fx = *state;

	sim_start(fx);
	sim_await_only(fx, "training", 3, 0);
	kill(fx->ckptd, SIGTERM);
	assert_int_equal(sim_wait_for_end(fx), 0);
	sim_set(fx, "seed=99");
	sim_start(fx);
	json_t *now = sim_await(fx, "training", 4, 0);
	json_t *config = json_object_get(now, "config");

	assert_string_equal(json_get_text(config, "source", ""), "last-good");
	assert_non_null(strstr(json_get_text(config, "text", ""), "seed"));
	assert_int_equal(json_array_size(json_object_get(now, "warnings")), 1);
	json_decref(now);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		SIM_TEST(p1_after_sigkill_of_the_supervisor_the_newest_checkpoint_is_resumed),
		SIM_TEST(state_memory_is_made_while_the_run_is_prepared),
		SIM_TEST(p3_the_supervisors_own_death_loses_no_step_under_systemd),
		SIM_TEST(a_foreign_state_memory_is_refused),
		SIM_TEST(two_daemons_cannot_have_one_run),
		SIM_TEST(without_a_run_it_waits_and_says_so),
		SIM_TEST(p9_an_identity_key_that_differs_is_refused_for_the_last_good),
	};

	return sim_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
