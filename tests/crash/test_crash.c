/* P1, P7, P8: whatever legal state of the disk a power cut leaves, a start finds the newest
 * verified checkpoint on the line with the bytes that were saved, every other one that was told
 * verified, every branch, keep mark and wish that was told; started twice it changes nothing more;
 * and a cut in the start itself is no different. One `ckptctl fsck --repair` makes each clean.
 * Which states are legal: tests/crash/model.h.
 *
 * Then the same traces with one sync left out, or two operations exchanged: each is noticed, but
 * for those in `unseen`, with the reason why nothing can be lost there. So each sync is there for
 * something, and the checks see.
 *
 * CKPTD_FULL: every state that there is time for, in two processes. A violation prints the line
 * that repeats it: CKPTD_CRASH="save 41:7" or CKPTD_CRASH="save drop:12:0 41:7". */
#include "tests/crash/explore.h"
#include "tests/crash/scenarios.h"
#include "tests/crash/unseen.h"

#include "base/panic.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <sys/mman.h>

#define WORKERS 2
#define STATES_QUICK_MIN 3000
#define STATES_FULL_MIN 100000

static const struct effort quick = {
	.exhaustive = 4, .subsets = 6, .tears = 2, .mixed = 6, .nested = 100, .repaired = 10};
static const struct effort full = {.exhaustive = 11,
	.subsets = 400,
	.tears = 40,
	.mixed = 3000,
	.nested = 400,
	.repaired = 20};
/* With a fault. */
static const struct effort few = {
	.exhaustive = 3, .subsets = 3, .tears = 1, .mixed = 3, .repaired = 10};
static const struct effort mutant = {.exhaustive = 4, .subsets = 4, .tears = 2, .mixed = 4};

struct totals {
	uint64_t states, unique, nested, repaired, violations;
	uint32_t points, capped;
	char first[2 * VIOLATION_MAX];
};

static struct totals all;

static bool is_full(void)
{
	return getenv("CKPTD_FULL") != NULL;
}

static void add(struct totals *totals, const struct exploration *x)
{
	totals->states += x->states;
	totals->unique += x->unique;
	totals->nested += x->nested_unique;
	totals->repaired += x->repaired;
	if (x->violations > 0 && totals->violations == 0)
		memcpy(totals->first, x->first, sizeof(totals->first));
	totals->violations += x->violations;
	totals->points += x->points;
	totals->capped += x->capped;
}

static void walk(struct play *play, const char *what, const struct effort *effort, bool lenient,
	uint32_t part, uint32_t parts, struct totals *totals)
{
	const struct mutation none = {.kind = MUTATE_NOTHING};
	struct checker checker;
	struct exploration x = {.checker = &checker,
		.effort = effort,
		.base = play->base,
		.what = what,
		.parts = parts,
		.part = part,
		.only_point = UINT32_MAX,
		.only_k = UINT32_MAX};

	checker_init(&checker, &play->fx->table, play->known, &play->known_count);
	checker.lenient = lenient;
	explore(&x, &play->trace, &none);
	add(totals, &x);
	checker_fini(&checker);
}

/* Each process takes its part of the states. */
static void walk_in_two(struct play *play, const char *what, const struct effort *effort,
	bool lenient, struct totals *totals)
{
	struct totals *shared = mmap(NULL, WORKERS * sizeof(*shared), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pids[WORKERS];

	assert_true(shared != MAP_FAILED);
	for (uint32_t i = 0; i < WORKERS; i++) {
		pids[i] = fork();
		assert_true(pids[i] >= 0);
		if (pids[i] == 0) {
			walk(play, what, effort, lenient, i, WORKERS, &shared[i]);
			_exit(0);
		}
	}
	for (uint32_t i = 0; i < WORKERS; i++) {
		int status;

		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		if (shared[i].violations > 0 && totals->violations == 0)
			memcpy(totals->first, shared[i].first, sizeof(totals->first));
		totals->states += shared[i].states;
		totals->unique += shared[i].unique;
		totals->nested += shared[i].nested;
		totals->repaired += shared[i].repaired;
		totals->violations += shared[i].violations;
		totals->points = shared[i].points;
		totals->capped = shared[i].capped;
	}
	munmap(shared, WORKERS * sizeof(*shared));
}

static void tell(const char *what, const struct totals *totals, nsec_t begun)
{
	print_message("# %s: %" PRIu64 " states, %" PRIu64 " different, %" PRIu64
		      " more of cut starts, %" PRIu64 " repaired; samples at %u of %u points; "
		      "%.1f s\n",
		what, totals->states, totals->unique, totals->nested, totals->repaired,
		totals->capped, totals->points,
		(double)(clock_monotonic_ns() - begun) / NSEC_PER_SEC);
	all.unique += totals->unique + totals->nested;
	if (totals->violations > 0)
		fail_msg(
			"%" PRIu64 " violations; the first: %s", totals->violations, totals->first);
}

/* -- without faults -- */

static void p1_p8_every_crash_state(void **state)
{
	const struct scenario *scenario = *state;
	struct totals totals = {0};
	nsec_t begun = clock_monotonic_ns();
	struct play play;

	play_begin(&play, scenario, NULL);
	if (is_full())
		walk_in_two(&play, scenario->name, &full, false, &totals);
	else
		walk(&play, scenario->name, &quick, false, 0, 1, &totals);
	play_end(&play);
	tell(scenario->name, &totals, begun);
}

/* -- a sync that fails once -- */

static const char *const sync_points[] = {"fsync", "db.fsync"};

static bool has_failed_sync(const struct trace *trace)
{
	for (uint32_t i = 0; i < trace->op_count; i++)
		if (trace->ops[i].failed)
			return true;
	return false;
}

static void p7_crash_states_after_a_failed_sync(void **state)
{
	const struct scenario *scenario = *state;
	struct totals totals = {0};
	nsec_t begun = clock_monotonic_ns();
	char what[96];

	for (uint32_t p = 0; p < 2; p++)
		for (uint32_t n = 1;; n += is_full() ? 1 : 7) {
			struct play play;
			char plan[32];
			bool fired;

			snprintf(plan, sizeof(plan), "%s:%u:EIO", sync_points[p], n);
			snprintf(what, sizeof(what), "%s %s", scenario->name, plan);
			play_begin(&play, scenario, plan);
			fired = has_failed_sync(&play.trace);
			if (fired)
				walk(&play, what, is_full() ? &quick : &few, p == 1, 0, 1, &totals);
			play_end(&play);
			if (!fired)
				break;
		}
	snprintf(what, sizeof(what), "%s, with a failed sync", scenario->name);
	tell(what, &totals, begun);
}

/* -- mutations -- */

struct hunt {
	const struct scenario *scenario;
	struct play *play;
	struct checker *checker;
	uint32_t mutants, caught;
	bool listed[UNSEEN_COUNT];
	uint32_t wrong;
};

/* Without what differs from run to run: roots and process ids. */
static void plain_name(const char *name, char plain[192])
{
	size_t length = 0;

	for (const char *at = name; *at != '\0' && length < 180;) {
		size_t hex = strspn(at, "0123456789abcdef");

		if (hex >= 40) {
			memcpy(plain + length, "ROOT", 4);
			length += 4;
			at += hex;
		} else if (strncmp(at, ".tmp-", 5) == 0) {
			memcpy(plain + length, ".tmp", 4);
			length += 4;
			at += 5 + strspn(at + 5, "0123456789");
		} else {
			plain[length++] = *at++;
		}
	}
	plain[length] = '\0';
}

static bool is_listed(struct hunt *hunt, const char *name)
{
	for (size_t i = 0; i < UNSEEN_COUNT; i++)
		if (strcmp(unseen[i].scenario, hunt->scenario->name) == 0 &&
			fnmatch(unseen[i].pattern, name, 0) == 0) {
			hunt->listed[i] = true;
			return true;
		}
	return false;
}

static void hunt_one(struct hunt *hunt, const struct mutation *mutation, const char *name)
{
	struct exploration x = {.checker = hunt->checker,
		.effort = &mutant,
		.base = hunt->play->base,
		.what = hunt->scenario->name,
		.parts = 1,
		.stop_at_first = true,
		.only_point = UINT32_MAX,
		.only_k = UINT32_MAX};
	char plain[192];
	bool listed;

	plain_name(name, plain);
	name = plain;
	listed = is_listed(hunt, name);
	explore(&x, &hunt->play->trace, mutation);
	hunt->mutants++;
	hunt->caught += x.violations > 0;
	all.unique += x.unique;
	if (getenv("CKPTD_CRASH_VERBOSE") != NULL)
		print_message(
			"# %s %s %s\n", x.violations > 0 ? "caught" : "UNSEEN", name, x.first);
	if (listed != (x.violations == 0)) {
		hunt->wrong++;
		print_error("# {\"%s\", \"%s\", \"\"}, is %s\n", hunt->scenario->name, name,
			listed ? "listed as unseen and was noticed" : "not noticed");
	}
}

/* The position of op among the syncs of its node. */
static void drop_name(const struct trace *trace, uint32_t op, char name[192])
{
	const struct trace_node *node = &trace->nodes[trace->ops[op].node];
	uint32_t n = 0;

	for (uint32_t i = 0; i <= op; i++)
		n += trace->ops[i].kind == TRACE_SYNC &&
			strcmp(trace->nodes[trace->ops[i].node].label, node->label) == 0;
	snprintf(name, 192, "no fsync %u of %s", n, node->label);
}

static void hunt_drops(struct hunt *hunt)
{
	const struct trace *trace = &hunt->play->trace;

	for (uint32_t i = 0; i < trace->op_count; i++) {
		const struct mutation drop = {.kind = MUTATE_DROP, .op = i};
		char name[192];

		if (trace->ops[i].kind != TRACE_SYNC)
			continue;
		drop_name(trace, i, name);
		hunt_one(hunt, &drop, name);
	}
}

/* A second sync may hide what the first is for: all of one file at once. */
static void hunt_mutes(struct hunt *hunt)
{
	const struct trace *trace = &hunt->play->trace;

	for (uint32_t i = 0; i < trace->op_count; i++) {
		const struct mutation mute = {.kind = MUTATE_MUTE, .op = i};
		const char *label = trace->nodes[trace->ops[i].node].label;
		bool first = trace->ops[i].kind == TRACE_SYNC;
		char name[192];

		for (uint32_t j = 0; first && j < i; j++)
			first = trace->ops[j].kind != TRACE_SYNC ||
				strcmp(trace->nodes[trace->ops[j].node].label, label) != 0;
		snprintf(name, sizeof(name), "never an fsync of %s", label);
		if (first)
			hunt_one(hunt, &mute, name);
	}
}

static bool last_before(
	const struct trace *trace, uint32_t end, enum trace_kind kind, uint32_t node, uint32_t *ret)
{
	for (uint32_t i = end; i-- > 0;)
		if (trace->ops[i].kind == kind && trace->ops[i].node == node) {
			*ret = i;
			return true;
		}
	return false;
}

static bool is_checkpoint(const char *name)
{
	return strncmp(name, "step-", 5) == 0;
}

/* The first write of the transaction that comes before op: its row. */
static bool row_before(const struct trace *trace, uint32_t op, uint32_t *ret)
{
	bool found = false;

	for (uint32_t i = op; i-- > 0;) {
		const struct trace_op *at = &trace->ops[i];

		if (at->kind == TRACE_EVENT || at->kind <= TRACE_UNLINK)
			break;
		if (at->kind == TRACE_WRITE &&
			strcmp(trace->nodes[at->node].label, "catalog.sqlite-wal") == 0) {
			*ret = i;
			found = true;
		}
	}
	return found;
}

/* The rename before the file is whole, the unlink before its row, the word before the folder. */
static void hunt_moves(struct hunt *hunt)
{
	const struct trace *trace = &hunt->play->trace;

	for (uint32_t i = 0; i < trace->op_count; i++) {
		const struct trace_op *op = &trace->ops[i];
		struct mutation move = {.kind = MUTATE_MOVE, .op = i};
		char name[192], what[192];
		uint32_t folder;

		trace_describe(trace, i, what);
		if (op->kind == TRACE_RENAME &&
			last_before(trace, i, TRACE_SYNC, op->node, &move.before)) {
			snprintf(name, sizeof(name), "%.140s before its fsync", what);
			hunt_one(hunt, &move, name);
		}
		if (op->kind == TRACE_UNLINK && is_checkpoint(op->name) &&
			row_before(trace, i, &move.before)) {
			snprintf(name, sizeof(name), "%.140s before its row", what);
			hunt_one(hunt, &move, name);
		}
		if (op->kind == TRACE_EVENT && op->event != EVENT_CATALOGUED && i > 0 &&
			trace->ops[i - 1].kind == TRACE_SYNC) {
			folder = trace->ops[i - 1].node;
			if (trace->nodes[folder].folder) {
				move.before = i - 1;
				snprintf(name, sizeof(name), "%.140s before the folder's fsync",
					what);
				hunt_one(hunt, &move, name);
			}
		}
	}
}

static void every_sync_and_order_is_there_for_something(void **state)
{
	struct play play;
	struct checker checker;
	struct hunt hunt = {.scenario = *state, .play = &play, .checker = &checker};

	play_begin(&play, hunt.scenario, NULL);
	checker_init(&checker, &play.fx->table, play.known, &play.known_count);
	hunt_drops(&hunt);
	hunt_mutes(&hunt);
	hunt_moves(&hunt);
	checker_fini(&checker);
	play_end(&play);
	print_message(
		"# %s: %u of %u mutants noticed\n", hunt.scenario->name, hunt.caught, hunt.mutants);
	for (size_t i = 0; i < UNSEEN_COUNT; i++)
		if (strcmp(unseen[i].scenario, hunt.scenario->name) == 0 && !hunt.listed[i]) {
			hunt.wrong++;
			print_error("# listed and not there: %s\n", unseen[i].pattern);
		}
	assert_true(hunt.mutants > 0);
	assert_int_equal(hunt.wrong, 0);
}

/* -- the count -- */

static void so_many_states_were_seen(void **state)
{
	print_message("# %" PRIu64 " different states in all\n", all.unique);
	assert_true(all.unique >= (is_full() ? STATES_FULL_MIN : STATES_QUICK_MIN));
}

/* -- one again -- */

static void show_trace(const struct trace *trace)
{
	for (uint32_t i = 0; i < trace->op_count; i++) {
		char text[192];

		trace_describe(trace, i, text);
		print_message("# %u %s\n", i, text);
	}
}

/* "[POINT:N:EIO ][drop:OP:OP ]POINT:K[ then a start ...]" */
static bool parse_line(const char *rest, char plan[64], struct mutation *mutation,
	struct effort *effort, struct exploration *x)
{
	char kind[8];

	rest += strspn(rest, " ");
	if (sscanf(rest, "%63s", plan) == 1 && strstr(plan, ":EIO") != NULL) {
		rest += strlen(plan) + 1;
		*effort = is_full() ? quick : few;
	} else {
		plan[0] = '\0';
	}
	if (sscanf(rest, "%4[a-z]:%u:%u %u:%u", kind, &mutation->op, &mutation->before,
		    &x->only_point, &x->only_k) == 5) {
		mutation->kind = strcmp(kind, "drop") == 0 ? MUTATE_DROP
			: strcmp(kind, "mute") == 0        ? MUTATE_MUTE
							   : MUTATE_MOVE;
		*effort = mutant;
	} else if (sscanf(rest, "%u:%u", &x->only_point, &x->only_k) != 2) {
		return false;
	}
	effort->nested = strstr(rest, "then a start") != NULL;
	effort->repaired = 1;
	return true;
}

static int repeat(const char *line)
{
	struct mutation mutation = {.kind = MUTATE_NOTHING};
	struct effort effort = is_full() ? full : quick;
	struct checker checker;
	struct exploration x = {.checker = &checker, .effort = &effort, .parts = 1};
	size_t length = strcspn(line, " ");
	const struct scenario *scenario = NULL;
	char plan[64];
	struct play play;

	for (uint32_t i = 0; i < scenario_count; i++)
		if (strlen(scenarios[i].name) == length &&
			strncmp(scenarios[i].name, line, length) == 0)
			scenario = &scenarios[i];
	if (scenario == NULL || !parse_line(line + length, plan, &mutation, &effort, &x)) {
		fprintf(stderr, "this line names no state: %s\n", line);
		return 2;
	}
	x.what = scenario->name;
	play_begin(&play, scenario, plan[0] != '\0' ? plan : NULL);
	show_trace(&play.trace);
	x.base = play.base;
	checker_init(&checker, &play.fx->table, play.known, &play.known_count);
	checker.lenient = strncmp(plan, "db.", 3) == 0;
	explore(&x, &play.trace, &mutation);
	checker_fini(&checker);
	play_end(&play);
	print_message("# %" PRIu64 " violations: %s\n", x.violations, x.first);
	return x.violations > 0;
}

static const char *test_name(const char *what, const char *scenario)
{
	char *name = malloc(128);

	CHECK(name != NULL);
	snprintf(name, 128, "%s_of_%s", what, scenario);
	return name;
}

static struct CMUnitTest test_of(const char *what, CMUnitTestFunction function, uint32_t i)
{
	return (struct CMUnitTest){
		.name = test_name(what, i < scenario_count ? scenarios[i].name : "all"),
		.test_func = function,
		.initial_state = i < scenario_count ? (void *)(uintptr_t)&scenarios[i] : NULL};
}

int main(void)
{
	const char *line = getenv("CKPTD_CRASH");
	static struct CMUnitTest tests[64];
	size_t count = 0;

	if (access("/dev/shm", W_OK) == 0)
		setenv("TMPDIR", "/dev/shm", 0);
	if (line != NULL)
		return repeat(line);
	/* The last one is long. */
	for (uint32_t i = 0; i + !is_full() < scenario_count; i++)
		tests[count++] = test_of("p1_p8_every_crash_state", p1_p8_every_crash_state, i);
	for (uint32_t i = 0; i + 1 < scenario_count; i++)
		tests[count++] = test_of("p7_crash_states_after_a_failed_sync",
			p7_crash_states_after_a_failed_sync, i);
	for (uint32_t i = 0; i + 1 < scenario_count; i++)
		tests[count++] = test_of("every_sync_and_order_is_there_for_something",
			every_sync_and_order_is_there_for_something, i);
	tests[count++] = test_of("so_many_states_were_seen", so_many_states_were_seen, UINT32_MAX);
	return _cmocka_run_group_tests("tests", tests, count, NULL, NULL);
}
