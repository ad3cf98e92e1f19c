/* Attention on every engine against its definition, gradients against finite differences and, all
 * of their values, against the openblas engine's: narrow and wide heads, more tokens than one group
 * of queries, fewer images than the plan, thread counts (P2). */
#include "tests/unit/ops_check.h"

#include "daemon/ops/attention.h"
#include "tests/oracle/naive_ops.h"

struct example {
	uint32_t batch, n, tokens, heads, dim;
	bool any_width; /* no multiple of 32: not for amx */
	unsigned probes;
};

static const struct example examples[] = {
	{2, 2, 9, 3, 5, true, 270}, {2, 2, 16, 1, 16, true, 70}, {3, 2, 9, 4, 8, false, 40},
	{3, 2, 16, 4, 16, false, 40}, {2, 1, 64, 2, 32, false, 5}, {2, 2, 64, 2, 64, false, 3},
	{2, 2, 16, 1, 96, false, 20}, /* one head of the whole width */
	{1, 1, 145, 2, 4, true, 10},  /* two blocks of queries, one of them short */
	{3, 2, 256, 4, 8, false, 2},  /* as many as a group */
	{1, 1, 400, 2, 16, false, 2}, /* a second group, and a square that is half full */
	{1, 1, 520, 1, 64, false, 1}, /* three groups */
};
#define EXAMPLES (sizeof(examples) / sizeof(*examples))

/* Values are [n][tokens][channels] in double, the engine's tensors tokens of a dense layout. */
struct bench {
	struct example example;
	uint32_t channels;
	size_t elems;
	double *values[3], *o, *direction; /* q, k, v */
	struct layout layout;
	struct field fast[3], fast_o, dout, grads[3];
	struct attention attention;
	void *scratch, *back_scratch;
};

static double loss(void *context)
{
	struct bench *bench = context;
	const struct example *e = &bench->example;
	for (uint32_t image = 0; image < e->n; image++)
		for (uint32_t head = 0; head < e->heads; head++) {
			size_t at = (size_t)image * e->tokens * bench->channels + head * e->dim;
			naive_attention(e->tokens, e->dim, bench->channels, bench->values[0] + at,
				bench->values[1] + at, bench->values[2] + at, bench->o + at);
		}
	return check_dot(bench->o, bench->direction, bench->elems);
}

/* [n][tokens][channels] <-> [n][channels][tokens] */
static double *turned(const struct bench *bench, const double *values, bool to_planes)
{
	uint32_t tokens = bench->example.tokens, channels = bench->channels;
	double *result = check_doubles(bench->elems);
	for (uint32_t image = 0; image < bench->example.n; image++)
		for (uint32_t token = 0; token < tokens; token++)
			for (uint32_t c = 0; c < channels; c++) {
				size_t begin = (size_t)image * tokens * channels;
				size_t row = begin + (size_t)token * channels + c;
				size_t plane = begin + (size_t)c * tokens + token;
				result[to_planes ? plane : row] = values[to_planes ? row : plane];
			}
	return result;
}

static void set(const struct bench *bench, struct field *field, const double *values)
{
	double *planes = turned(bench, values, true);
	field_set(field, bench->example.n, planes);
	free(planes);
}

static double *get(const struct bench *bench, const struct field *field)
{
	double *planes = field_get(field, bench->example.n), *values = turned(bench, planes, false);
	free(planes);
	return values;
}

/* elem: what the inputs are rounded to. */
static void bench_init(
	struct bench *bench, const struct engine *engine, enum elem elem, struct example example)
{
	*bench = (struct bench){.example = example, .channels = example.heads * example.dim};
	bench->elems = (size_t)example.n * example.tokens * bench->channels;
	assert_int_equal(layout_init(&bench->layout, example.batch, example.tokens, 1, true), 0);
	for (int i = 0; i < 3; i++) {
		bench->values[i] = check_doubles(bench->elems);
		bench->fast[i] = field_new(&engine->form, &bench->layout, bench->channels);
		bench->grads[i] = field_new(&engine->form, &bench->layout, bench->channels);
		check_fill((uint64_t)i + 1, elem, bench->values[i], NULL, bench->elems);
		set(bench, &bench->fast[i], bench->values[i]);
	}
	bench->o = check_doubles(bench->elems);
	bench->direction = check_doubles(bench->elems);
	bench->fast_o = field_new(&engine->form, &bench->layout, bench->channels);
	bench->dout = field_new(&engine->form, &bench->layout, bench->channels);
	check_fill(9, elem, bench->direction, NULL, bench->elems);
	set(bench, &bench->dout, bench->direction);
	bench->attention = (struct attention){
		.engine = engine,
		.tokens = example.tokens,
		.heads = example.heads,
		.head_dim = example.dim,
		.thread_count = 4, /* fewer than the test runs: it must hold to them */
	};
	bench->scratch = check_bytes(attention_scratch_bytes(&bench->attention, false));
	bench->back_scratch = check_bytes(attention_scratch_bytes(&bench->attention, true));
}

static void bench_fini(struct bench *bench)
{
	for (int i = 0; i < 3; i++) {
		free(bench->values[i]);
		field_free(&bench->fast[i]);
		field_free(&bench->grads[i]);
	}
	free(bench->o);
	free(bench->direction);
	field_free(&bench->fast_o);
	field_free(&bench->dout);
	free(bench->scratch);
	free(bench->back_scratch);
	layout_fini(&bench->layout);
}

static uint64_t run_forward(void *context)
{
	struct bench *bench = context;
	bench->attention.scratch = bench->scratch;
	field_spoil(&bench->fast_o);
	attention_forward(&bench->attention, bench->example.n, &bench->fast[0].tensor,
		&bench->fast[1].tensor, &bench->fast[2].tensor, &bench->fast_o.tensor);
	assert_clean(&bench->fast_o, bench->example.n);
	return field_bits(0, &bench->fast_o);
}

static uint64_t run_backward(void *context)
{
	struct bench *bench = context;
	const struct tensor *qkv[3], *dqkv[3];
	uint64_t bits = 0;
	for (int i = 0; i < 3; i++) {
		qkv[i] = &bench->fast[i].tensor;
		dqkv[i] = &bench->grads[i].tensor;
		field_spoil(&bench->grads[i]);
	}
	bench->attention.scratch = bench->back_scratch;
	attention_backward(&bench->attention, bench->example.n, qkv, &bench->dout.tensor, dqkv);
	for (int i = 0; i < 3; i++) {
		assert_clean(&bench->grads[i], bench->example.n);
		bits = field_bits(bits, &bench->grads[i]);
	}
	return bits;
}

/* The probabilities and their gradients are rounded to bf16 on their way, and then the result. */
static void check_gradients(struct bench *bench, enum elem elem)
{
	static const char *const names[] = {"dq", "dk", "dv"};
	struct bound bound = {elem == ELEM_BF16 ? 2 : 0, 1e-5};
	struct bench other;
	bench_init(&other, engine_openblas(), elem, bench->example);
	run_backward(&other);
	for (int i = 0; i < 3; i++) {
		double *values = get(bench, &bench->grads[i]);
		double *expected = get(&other, &other.grads[i]);
		assert_all_near(names[i], values, expected, bench->elems, bound);
		if (elem == ELEM_F32)
			check_gradient(names[i], bench->values[i], bench->elems,
				bench->elems / bench->example.probes + 1, values, loss, bench,
				1e-5);
		free(values);
		free(expected);
	}
	bench_fini(&other);
}

static bool fits(const struct engine *engine, const struct example *example)
{
	return !example->any_width || engine->form.block == 0;
}

static void test_definition_and_gradients(void **state)
{
	const struct engine *engine = check_engine(state);
	enum elem elem = engine->form.elem;
	for (size_t i = 0; i < EXAMPLES; i++) {
		struct bench bench;
		if (!fits(engine, &examples[i]))
			continue;
		print_message("# example %zu\n", i);
		bench_init(&bench, engine, elem, examples[i]);
		loss(&bench);
		run_forward(&bench);
		double *o = get(&bench, &bench.fast_o);
		assert_all_near("o", o, bench.o, bench.elems,
			(struct bound){elem == ELEM_BF16 ? 2 : 0, 2e-6});
		free(o);
		run_backward(&bench);
		check_gradients(&bench, elem);
		bench_fini(&bench);
	}
}

/* A row of large logits keeps its weight on the largest, without overflow. */
static void test_large_logits(void **state)
{
	const struct engine *engine = check_engine(state);
	struct bench bench;
	bench_init(&bench, engine, engine->form.elem, (struct example){2, 1, 3, 1, 32, false, 1});
	for (size_t i = 0; i < bench.elems; i++) {
		bench.values[0][i] = 100.0;
		bench.values[1][i] = i / 32 == 2 ? 100.0 : 1.0;
	}
	set(&bench, &bench.fast[0], bench.values[0]);
	set(&bench, &bench.fast[1], bench.values[1]);
	run_forward(&bench);
	double *o = get(&bench, &bench.fast_o);
	for (size_t i = 0; i < bench.elems; i++)
		assert_near("o", i, o[i], bench.values[2][64 + i % 32], 1e-6);
	free(o);
	bench_fini(&bench);
}

static void test_p2_threads(void **state)
{
	const struct engine *engine = check_engine(state);
	for (size_t i = 0; i < EXAMPLES; i++) {
		struct bench bench;
		if (!fits(engine, &examples[i]))
			continue;
		bench_init(&bench, engine, engine->form.elem, examples[i]);
		check_threads("forward", run_forward, &bench);
		check_threads("backward", run_backward, &bench);
		bench_fini(&bench);
	}
}

/* A NaN is not lost in the softmax: it comes out of its image, and of no other. */
static void test_nan_stays_in_its_image(void **state)
{
	const struct engine *engine = check_engine(state);
	for (int at = 0; at < 3; at++) {
		struct bench bench;
		bench_init(&bench, engine, engine->form.elem,
			(struct example){2, 2, 9, 1, 32, false, 1});
		bench.values[at][0] = NAN;
		set(&bench, &bench.fast[at], bench.values[at]);
		run_forward(&bench);
		run_backward(&bench);
		double *o = get(&bench, &bench.fast_o), *dq = get(&bench, &bench.grads[0]);
		assert_true(isnan(o[0]));
		assert_true(isnan(dq[0]));
		for (size_t i = bench.elems / 2; i < bench.elems; i++)
			assert_true(isfinite(o[i]) && isfinite(dq[i]));
		free(o);
		free(dq);
		bench_fini(&bench);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_EACH_ENGINE(test_definition_and_gradients),
		ON_EACH_ENGINE(test_large_logits),
		ON_EACH_ENGINE(test_p2_threads),
		ON_EACH_ENGINE(test_nan_stays_in_its_image),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
