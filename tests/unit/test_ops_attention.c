/* Attention against its definition, gradients against finite differences: heads of odd width, more
 * tokens than one block of queries, thread counts (P2). */
#include "tests/unit/ops_check.h"

#include "daemon/ops/attention.h"
#include "tests/oracle/naive_ops.h"

struct example {
	uint32_t n, tokens, heads, dim, width;
	size_t gradient_step;
};

static const struct example examples[] = {
	{2, 9, 3, 5, 16, 1}, {2, 16, 1, 16, 16, 7},
	{1, 145, 2, 4, 16, 97}, /* two blocks of queries, one of them short */
};

struct bench {
	struct example example;
	size_t elems;                /* of q: [n][tokens][width] */
	double *values[3], *o, *dir; /* q, k, v */
	float *fast[3], *fast_o, *dout, *grads[3];
	struct attention attention;
};

static double loss(void *context)
{
	struct bench *bench = context;
	const struct example *e = &bench->example;
	for (uint32_t image = 0; image < e->n; image++)
		for (uint32_t head = 0; head < e->heads; head++) {
			size_t at = (size_t)image * e->tokens * e->width + head * e->dim;
			naive_attention(e->tokens, e->dim, e->width, bench->values[0] + at,
				bench->values[1] + at, bench->values[2] + at, bench->o + at);
		}
	return check_dot(bench->o, bench->dir, bench->elems);
}

static void bench_init(struct bench *bench, struct example example)
{
	*bench = (struct bench){.example = example};
	bench->elems = (size_t)example.n * example.tokens * example.width;
	for (int i = 0; i < 3; i++) {
		bench->values[i] = check_doubles(bench->elems);
		bench->fast[i] = check_floats(bench->elems);
		bench->grads[i] = check_floats(bench->elems);
		check_fill((uint64_t)i + 1, bench->values[i], bench->fast[i], bench->elems);
	}
	bench->o = check_doubles(bench->elems);
	bench->dir = check_doubles(bench->elems);
	bench->fast_o = check_floats(bench->elems);
	bench->dout = check_floats(bench->elems);
	check_fill(9, bench->dir, bench->dout, bench->elems);
	for (size_t i = 0; i < bench->elems; i++) /* columns of no head */
		if (i % example.width >= example.heads * example.dim)
			bench->dir[i] = 0.0;
	bench->attention = (struct attention){
		.engine = engine_openblas(),
		.tokens = example.tokens,
		.heads = example.heads,
		.head_dim = example.dim,
		.width = example.width,
		.thread_count = 4, /* fewer than the test runs: it must hold to them */
		.scratch = check_floats(4 * attention_scratch_elems(example.tokens, true)),
	};
}

static void bench_fini(struct bench *bench)
{
	for (int i = 0; i < 3; i++) {
		free(bench->values[i]);
		free(bench->fast[i]);
		free(bench->grads[i]);
	}
	free(bench->o);
	free(bench->dir);
	free(bench->fast_o);
	free(bench->dout);
	free(bench->attention.scratch);
}

static void run_forward(void *context)
{
	struct bench *bench = context;
	attention_forward(&bench->attention, bench->example.n, bench->fast[0], bench->fast[1],
		bench->fast[2], bench->fast_o);
}

static void run_backward(void *context)
{
	struct bench *bench = context;
	attention_backward(&bench->attention, bench->example.n, bench->fast[0], bench->fast[1],
		bench->fast[2], bench->dout, bench->grads[0], bench->grads[1], bench->grads[2]);
}

static void test_definition_and_gradients(void **state)
{
	static const char *const names[] = {"dq", "dk", "dv"};
	for (size_t i = 0; i < sizeof(examples) / sizeof(*examples); i++) {
		struct bench bench;
		bench_init(&bench, examples[i]);
		loss(&bench);
		run_forward(&bench);
		assert_all_near("o", bench.fast_o, bench.o, bench.elems, 2e-6);
		run_backward(&bench);
		for (int j = 0; j < 3; j++)
			check_gradient(names[j], bench.values[j], bench.elems,
				examples[i].gradient_step, bench.grads[j], loss, &bench, 1e-5);
		bench_fini(&bench);
	}
}

/* A row of large logits keeps its weight on the largest, without overflow. */
static void test_large_logits(void **state)
{
	struct bench bench;
	bench_init(&bench, (struct example){1, 3, 1, 16, 16, 1});
	for (size_t i = 0; i < bench.elems; i++) {
		bench.fast[0][i] = 100.0f;
		bench.fast[1][i] = i / 16 == 2 ? 100.0f : 1.0f;
	}
	run_forward(&bench);
	for (size_t i = 0; i < bench.elems; i++)
		assert_near(
			"o", i, (double)bench.fast_o[i], (double)bench.fast[2][32 + i % 16], 1e-6);
	bench_fini(&bench);
}

static void test_p2_threads(void **state)
{
	for (size_t i = 0; i < sizeof(examples) / sizeof(*examples); i++) {
		struct bench bench;
		bench_init(&bench, examples[i]);
		check_threads("forward", run_forward, &bench, bench.fast_o, bench.elems);
		for (int j = 0; j < 3; j++)
			check_threads(
				"backward", run_backward, &bench, bench.grads[j], bench.elems);
		bench_fini(&bench);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_definition_and_gradients),
		cmocka_unit_test(test_large_logits),
		cmocka_unit_test(test_p2_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
