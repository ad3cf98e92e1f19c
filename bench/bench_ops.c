/* Each operator's share of its own ceiling: whole training steps are run, every operator is timed
 * where it is called, and its time is compared with the larger of operations / raw rate and bytes /
 * copy rate, both measured here before and after (the larger counts); convolutions also with
 * oneDNN. Operators of equal shape are one line, the slowest first.
 *
 * usage: bench_ops NET BATCH ENGINE [STEPS] */
#include "bench/ceilings.h"
#include "bench/nets.h"
#include "bench/solo.h"
#include "bench/trace.h"
#include "daemon/ops/engine.h"

#include <stdio.h>
#include <stdlib.h>

#define WARM_UP 2
#define EXIT_NO_ENGINE 3
#define SHARE_MIN 0.001 /* of the step: what takes less is added up in one line */
/* What a line is marked for: that much of the step at less than that much of its ceiling. */
#define MARK_SHARE 0.05
#define MARK_FRACTION 0.5

struct bench {
	const char *net_name;
	uint32_t batch, steps;
	const struct engine *engine;
	double gflops, copy_gb_s; /* ceilings; gflops of the engine's kind */
	nsec_t step_ns[TRACE_STEPS_MAX];
	nsec_t load_begun;
};

/* In milliseconds; sorts. */
static double median_ms(nsec_t *values, uint32_t count)
{
	return (double)solo_median(values, count) * 1e-6;
}

/* Raises the ceilings to what stands now. */
static void measure(struct bench *bench)
{
	struct ceilings now;

	ceilings_measure(&now);
	double gflops = bench->engine->form.elem == ELEM_BF16 ? now.tile_gflops : now.fma_gflops;
	if (gflops > bench->gflops)
		bench->gflops = gflops;
	if (now.copy_gb_s > bench->copy_gb_s)
		bench->copy_gb_s = now.copy_gb_s;
}

/* The images are drawn between these two parts. */
static void entered(void *context, enum train_part part)
{
	struct bench *bench = context;

	if (part == TRAIN_LOAD)
		bench->load_begun = clock_monotonic_ns();
	else if (part == TRAIN_FORWARD)
		trace_other(bench->load_begun, "images, noise, timesteps");
}

static int run(struct bench *bench, const struct unet_config *net, struct error *err)
{
	static struct solo solo; /* large: the schedule */
	struct solo_setup setup = {
		.model = net,
		.engine = trace_engine(bench->engine),
		.seed = 1,
		.entered = entered,
		.context = bench,
		.params = solo_params(bench->batch),
	};
	struct train_result result;
	int r = solo_init(&solo, &setup, err);

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < WARM_UP; i++)
		solo_step(&solo, &result);
	for (uint32_t i = 0; i < bench->steps; i++) {
		nsec_t begun = clock_monotonic_ns();

		trace_begin(i);
		solo_step(&solo, &result);
		trace_end();
		bench->step_ns[i] = clock_monotonic_ns() - begun;
	}
	solo_fini(&solo);
	return 0;
}

/* One line of the table: an operator in all its calls of a step. */
struct line {
	const struct op *op;
	double ms, ceiling_ms;
};

static int slowest_first(const void *a, const void *b)
{
	const struct line *left = a, *right = b;

	return (left->ms < right->ms) - (left->ms > right->ms);
}

static double ceiling_ms(const struct bench *bench, const struct op *op)
{
	double compute = bench->gflops > 0 ? op->flops / bench->gflops * 1e-6 : 0;
	double memory = bench->copy_gb_s > 0 ? op->bytes / bench->copy_gb_s * 1e-6 : 0;

	return compute > memory ? compute : memory;
}

/* Of all calls in a step; negative when unknown. */
static double onednn_ms(const struct op *op)
{
	double ms = 0;

	if (op->conv_count == 0)
		return -1;
	for (uint32_t i = 0; i < op->conv_count; i++) {
		double seconds = onednn_seconds(&op->convs[i]);

		if (seconds < 0)
			return -1;
		ms += seconds * 1e3;
	}
	return ms * op->calls / op->conv_calls;
}

static void print_line(const struct line *line, double step_ms)
{
	double share = line->ms / step_ms, fraction = line->ceiling_ms / line->ms;
	bool marked = share > MARK_SHARE && line->ceiling_ms > 0 && fraction < MARK_FRACTION;
	double peer_ms = onednn_ms(line->op);

	printf("%9.3f %5u %5.1f%% %9.2f %9.1f ", line->ms, line->op->calls, 100 * share,
		line->op->flops * 1e-9, line->op->bytes * 1e-6);
	if (line->ceiling_ms > 0)
		printf("%9.3f %4.0f%%%c ", line->ceiling_ms, 100 * fraction, marked ? '*' : ' ');
	else
		printf("%9s %5s%c ", "-", "-", ' ');
	if (peer_ms >= 0)
		printf("%9.3f", peer_ms);
	else
		printf("%9s", "-");
	printf("  %s\n", line->op->name);
	fflush(stdout);
}

static void print_table(struct bench *bench)
{
	static struct line lines[TRACE_OPS_MAX];
	double step_ms = median_ms(bench->step_ns, bench->steps), sum_ms = 0, small_ms = 0;
	uint32_t count;
	struct op *ops = trace_ops(&count);

	for (uint32_t i = 0; i < count; i++) {
		lines[i] = (struct line){
			.op = &ops[i],
			.ms = median_ms(ops[i].step_ns, bench->steps),
			.ceiling_ms = ceiling_ms(bench, &ops[i]),
		};
		sum_ms += lines[i].ms;
	}
	qsort(lines, count, sizeof(*lines), slowest_first);
	printf("%9s %5s %6s %9s %9s %9s %5s  %9s  %s\n", "ms", "calls", "share", "GFLOP", "MB",
		"ceiling", "of it", "oneDNN", "operator");
	for (uint32_t i = 0; i < count; i++)
		if (lines[i].ms >= SHARE_MIN * step_ms)
			print_line(&lines[i], step_ms);
		else
			small_ms += lines[i].ms;
	printf("%9.3f %5s %5.1f%%  operators under %.1f %% each\n", small_ms, "",
		100 * small_ms / step_ms, 100 * SHARE_MIN);
	printf("%9.3f %5s %5.1f%%  between them: time embedding, edges, calls\n", step_ms - sum_ms,
		"", 100 * (step_ms - sum_ms) / step_ms);
	printf("ops net=%s batch=%u engine=%s step_ms=%.2f img_s=%.2f raw_gflops=%.0f "
	       "copy_gb_s=%.2f onednn=%s\n",
		bench->net_name, bench->batch, bench->engine->name, step_ms,
		bench->batch / step_ms * 1e3, bench->gflops, bench->copy_gb_s,
		onednn_version() ? onednn_version() : "none");
}

int main(int argc, char **argv)
{
	static struct bench bench;
	struct unet_config net;
	const char *reason = NULL;
	struct error err;
	int batch = argc > 2 ? atoi(argv[2]) : 0, steps = argc > 4 ? atoi(argv[4]) : 5;

	if (argc < 4 || argc > 5 || batch < 1 || batch > 4096 || steps < 1 ||
		steps > TRACE_STEPS_MAX || net_named(argv[1], &net) < 0) {
		fprintf(stderr, "usage: bench_ops default|small|cifar BATCH ENGINE [STEPS]\n");
		return 2;
	}
	bench.net_name = argv[1];
	bench.batch = (uint32_t)batch;
	bench.steps = (uint32_t)steps;
	bench.engine = engine_named(argv[3], &reason);
	if (!bench.engine) {
		fprintf(stderr, "engine %s: %s\n", argv[3], reason);
		return EXIT_NO_ENGINE;
	}
	measure(&bench);
	if (run(&bench, &net, &err) < 0) {
		fprintf(stderr, "bench_ops: %s\n", err.text);
		return 1;
	}
	measure(&bench);
	print_table(&bench);
	return 0;
}
