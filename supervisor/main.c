/* ckptd: options, then the service. Exit codes: 0 ended as asked, 78 the configuration (or the
 * data) needs a person, 1 anything else. */
#include "supervisor/supervisor.h"

#include "base/log.h"
#include "base/panic.h"
#include "base/priority.h"
#include "proto/interface.h"
#include "proto/link.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NICE_AHEAD 10

static const char usage[] =
	"Usage: ckptd [OPTION...]\n"
	"Supervises the training of an image diffusion model.\n"
	"\n"
	"  -c, --config FILE    read FILE (without it every key has its default)\n"
	"  -s, --set KEY=VALUE  set one key, after FILE; may be repeated\n"
	"  -d, --state DIR      the run's folder (key state_dir)\n"
	"      --check-config   say whether the configuration can be used, and end\n"
	"      --strict         in the foreground: a refused configuration is the end (exit\n"
	"                       code 78) instead of going on with last-good.conf, and a run\n"
	"                       that was stopped or paused goes on\n"
	"      --print-conf-man print the manual page of the configuration file\n"
	"      --version        print the version\n"
	"  -h, --help           print this\n";

enum { OPTION_CHECK = 256, OPTION_STRICT, OPTION_MAN, OPTION_VERSION };

struct command {
	struct options options;
	bool check;
};

/* ckptd.conf(5), from the table that the parser uses. 1: go no further. */
static int print_conf_man(void)
{
	fputs(".TH CKPTD.CONF 5 \"\" \"ckptd\" \"File formats\"\n.SH NAME\n"
	      "ckptd.conf \\- configuration of ckptd\n.SH DESCRIPTION\n"
	      "Sections in brackets, then lines of\n.IR key\\~=\\~value ;\n"
	      "a line that begins with # or ; is a comment.\nWhat is not there has its default.\n"
	      ".PP\nKeys of the run's identity cannot change once the run has begun.\n"
	      "Keys of the schedule may, at a start or a reload, and each change is written down "
	      "at "
	      "its step.\nFree keys change no bits.\n.SH KEYS\n",
		stdout);
	int code = config_write_man(stdout);

	fputs(".SH SEE ALSO\n.BR ckptd (8),\n.BR ckptctl (1)\n", stdout);
	return code < 0 || fflush(stdout) != 0 ? 2 : 1;
}

/* 0: go on; else the exit code plus 1. */
static int parse_options(int argc, char **argv, struct command *command)
{
	static const struct option table[] = {{"config", required_argument, NULL, 'c'},
		{"set", required_argument, NULL, 's'}, {"state", required_argument, NULL, 'd'},
		{"check-config", no_argument, NULL, OPTION_CHECK},
		{"strict", no_argument, NULL, OPTION_STRICT},
		{"foreground", no_argument, NULL, OPTION_STRICT},
		{"print-conf-man", no_argument, NULL, OPTION_MAN},
		{"version", no_argument, NULL, OPTION_VERSION}, {"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0}};
	struct config_source *source = &command->options.source;
	int option;

	while ((option = getopt_long(argc, argv, "c:s:d:h", table, NULL)) != -1) {
		switch (option) {
		case 'c':
			source->path = optarg;
			break;
		case 's':
			if (source->set_count == BOOKS_CONFIG_SETS_MAX) {
				fprintf(stderr, "ckptd: at most %d times --set\n",
					BOOKS_CONFIG_SETS_MAX);
				return 1 + LINK_EXIT_CONFIG;
			}
			source->sets[source->set_count++] = optarg;
			break;
		case 'd':
			source->state_dir = optarg;
			break;
		case OPTION_CHECK:
			command->check = true;
			break;
		case OPTION_STRICT:
			command->options.strict = true;
			break;
		case OPTION_MAN:
			return print_conf_man();
		case OPTION_VERSION:
			printf("ckptd %s\n", proto_version);
			return 1;
		case 'h':
			fputs(usage, stdout);
			return 1;
		default:
			fputs("Try `ckptd --help`.\n", stderr);
			return 1 + LINK_EXIT_CONFIG;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "ckptd: %s is not an option; try `ckptd --help`\n", argv[optind]);
		return 1 + LINK_EXIT_CONFIG;
	}
	return 0;
}

/* Whether the configuration parses, and fits the run if there is one. */
static int check_config(const struct config_source *source)
{
	struct config config;
	struct error error;
	struct run run;
	int code = config_resolve(source, &config, &error);

	if (code == 0) {
		int run_fd = run_open_dir(config.state_dir, false, &error);

		if (run_fd >= 0) {
			if (run_load(run_fd, &run, &error) == 0) {
				code = run_check_identity(&run, &config, &error);
				run_fini(&run);
			}
			close(run_fd);
		}
	}
	if (code < 0) {
		fprintf(stderr, "ckptd: %s\n", error.text);
		return LINK_EXIT_CONFIG;
	}
	printf("%s: the configuration can be used\n", source->path ? source->path : "defaults");
	return 0;
}

/* $CKPTD_WORKER, else beside this program (a build folder), else where it is installed. */
static int find_worker(char *path, size_t size, struct error *err)
{
	const char *given = getenv("CKPTD_WORKER");
	char own[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", own, sizeof(own) - 1);

	if (given) {
		if (*given != '/')
			return error_set(
				err, -EINVAL, "CKPTD_WORKER=%s: give an absolute path", given);
		snprintf(path, size, "%s", given);
		return 0;
	}
	if (length > 0) {
		static const char *const places[] = {"ckptd-worker", "../daemon/ckptd-worker"};

		own[length] = '\0';
		*strrchr(own, '/') = '\0';
		for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
			if (snprintf(path, size, "%s/%s", own, places[i]) < (int)size &&
				access(path, X_OK) == 0)
				return 0;
		}
	}
	snprintf(path, size, "%s", CKPTD_LIBEXEC_DIR "/ckptd-worker");
	if (access(path, X_OK) == 0)
		return 0;
	return error_set(err, -errno, "%s: %s; is ckptd installed whole?", path, strerror(errno));
}

int main(int argc, char **argv)
{
	static struct supervisor sup;
	struct command command = {0};
	struct error error;
	int code = parse_options(argc, argv, &command);

	if (code > 0)
		return code - 1;
	if (command.check)
		return check_config(&command.options.source);
	log_open("ckptd", LOG_LEVEL_INFO);
	code = find_worker(
		command.options.worker_path, sizeof(command.options.worker_path), &error);
	if (code < 0) {
		log_error("%s", error.text);
		return 1;
	}
	CHECK(command.options.worker_path[0] == '/');
	/* Trainers take every core, and clients and timers must not wait for their slices to end.
	 */
	priority_raise(NICE_AHEAD);
	code = supervisor_init(&sup, &command.options, &error);
	if (code < 0) {
		log_error("%s", error.text);
		return code == -ENOMEM ? 1 : LINK_EXIT_CONFIG;
	}
	code = supervisor_run(&sup);
	supervisor_fini(&sup);
	CHECK(code >= 0 && code <= 255);
	return code;
}
