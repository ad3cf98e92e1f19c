/* The time-embedding path: the embedding's golden values, linear and SiLU with their gradients; the
 * engines' products of matrices and names. */
#include "tests/unit/ops_check.h"

#include "daemon/ops/embed.h"
#include "tests/oracle/naive_ops.h"

static void test_golden_embedding(void **state)
{
	static const double plain[8] = {
		-.544021, .447671, .0215427, .001, -.839072, .894198, .999768, 1.0};
	static const double flipped[8] = {
		-.839072, .540302, .995004, .99995, -.544021, .841471, .0998334, .00999983};
	const float t = 10.0f;
	float out[9];
	timestep_embedding(1, 8, false, 1, &t, out);
	for (size_t i = 0; i < 8; i++)
		assert_near("(false, 1)", i, (double)out[i], plain[i], 1e-6);
	timestep_embedding(1, 8, true, 0, &t, out);
	for (size_t i = 0; i < 8; i++)
		assert_near("(true, 0)", i, (double)out[i], flipped[i], 1e-6);
}

static void test_embedding_definition(void **state)
{
	const float timesteps[3] = {0.0f, 123.0f, 999.0f};
	float out[3 * 33];
	double expected[33];
	timestep_embedding(3, 33, true, 1, timesteps, out);
	for (uint32_t image = 0; image < 3; image++) {
		naive_timestep_embedding((double)timesteps[image], 33, true, 1, expected);
		/* the frequency is rounded to fp32, as in PyTorch: t 2^-23 of an angle */
		for (size_t i = 0; i < 33; i++)
			assert_near("embedding", i, (double)out[image * 33 + i], expected[i], 1e-4);
	}
}

struct bench {
	double x[3 * 7], weight[5 * 7], bias[5], y[3 * 5], direction[3 * 5];
};

static double loss(void *context)
{
	struct bench *bench = context;
	naive_linear(3, 7, 5, bench->x, bench->weight, bench->bias, bench->y);
	return check_dot(bench->y, bench->direction, 15);
}

static void check_differences(
	const char *what, double *values, size_t count, const float *gradient, struct bench *bench)
{
	double *wide = check_widened(gradient, count);
	check_gradient(what, values, count, 1, wide, loss, bench, 1e-5);
	free(wide);
}

static void test_linear(void **state)
{
	const struct engine *engine = check_engine(state);
	struct bench bench;
	float x[21], weight[35], bias[5], y[3 * 8], dy[3 * 8] = {0}, direction[15];
	float dweight[35], dbias[5], dx[21];
	check_fill(1, ELEM_F32, bench.x, x, 21);
	check_fill(2, ELEM_F32, bench.weight, weight, 35);
	check_fill(3, ELEM_F32, bench.bias, bias, 5);
	check_fill(4, ELEM_F32, bench.direction, direction, 15);
	for (int i = 0; i < 15; i++)
		dy[i / 5 * 8 + i % 5] = direction[i];
	struct linear linear = {7, 5, weight, bias};
	loss(&bench);
	linear_forward(engine, &linear, 3, x, y, 8);
	for (size_t i = 0; i < 15; i++)
		assert_near("y", i, (double)y[i / 5 * 8 + i % 5], bench.y[i], 1e-6);
	linear_weights_gradient(engine, &linear, 3, x, dy, 8, dweight, dbias, false);
	linear_data_gradient(engine, &linear, 3, dy, 8, 0, 4, dx, false);
	linear_data_gradient(engine, &linear, 3, dy, 8, 4, 3, dx, false);
	check_differences("dw", bench.weight, 35, dweight, &bench);
	check_differences("db", bench.bias, 5, dbias, &bench);
	check_differences("dx", bench.x, 21, dx, &bench);
	float before = dweight[3], bias_before = dbias[3], dx_before = dx[3];
	linear_weights_gradient(engine, &linear, 3, x, dy, 8, dweight, dbias, true);
	linear_data_gradient(engine, &linear, 3, dy, 8, 0, 7, dx, true);
	assert_near("dw twice", 3, (double)dweight[3], 2.0 * (double)before, 1e-6);
	assert_near("db twice", 3, (double)dbias[3], 2.0 * (double)bias_before, 1e-6);
	assert_near("dx twice", 3, (double)dx[3], 2.0 * (double)dx_before, 1e-6);
}

static double silu_loss(void *context)
{
	double *values = context, sum = 0.0; /* x, then the direction */
	for (int i = 0; i < 50; i++)
		sum += naive_silu(values[i]) * values[50 + i];
	return sum;
}

static void test_silu(void **state)
{
	double values[100];
	float x[100], y[50], dx[50];
	check_fill(1, ELEM_F32, values, x, 100);
	values[0] = -90.0;
	x[0] = -90.0f;
	values[1] = 90.0;
	x[1] = 90.0f;
	silu_forward(50, x, y);
	for (size_t i = 0; i < 50; i++)
		assert_near("y", i, (double)y[i], naive_silu(values[i]), 5e-7);
	silu_backward(50, x, x + 50, dx);
	double *gradient = check_widened(dx, 50);
	check_gradient("dx", values, 50, 1, gradient, silu_loss, values, 1e-6);
	free(gradient);
}

struct shape {
	uint32_t m, n, k;
};

/* a [rows][ld], ld wider than the columns; op(a) at (i, j). */
static double element(const float *a, uint32_t ld, bool transpose, uint32_t i, uint32_t j)
{
	return (double)(transpose ? a[(size_t)j * ld + i] : a[(size_t)i * ld + j]);
}

static void check_product(
	const struct engine *engine, struct shape s, bool transpose_a, bool transpose_b, float beta)
{
	uint32_t lda = (transpose_a ? s.m : s.k) + 3, ldb = (transpose_b ? s.k : s.n) + 5;
	uint32_t ldc = s.n + 2;
	size_t a_elems = (size_t)(transpose_a ? s.k : s.m) * lda;
	size_t b_elems = (size_t)(transpose_b ? s.n : s.k) * ldb, c_elems = (size_t)s.m * ldc;
	float *a = check_floats(a_elems), *b = check_floats(b_elems), *c = check_floats(c_elems);
	float *before = check_floats(c_elems);
	check_fill(1, ELEM_F32, NULL, a, a_elems);
	check_fill(2, ELEM_F32, NULL, b, b_elems);
	if (beta != 0.0f) /* else NaN, which is not read */
		check_fill(3, ELEM_F32, NULL, c, c_elems);
	memcpy(before, c, c_elems * sizeof(float));
	engine->matmul(&(struct matmul){
		transpose_a, transpose_b, s.m, s.n, s.k, 0.5f, beta, a, b, c, lda, ldb, ldc});
	for (uint32_t i = 0; i < s.m; i++)
		for (uint32_t j = 0; j < ldc; j++) {
			size_t at = (size_t)i * ldc + j;
			double sum = 0.0;
			if (j >= s.n) {
				assert_memory_equal(&c[at], &before[at], sizeof(float));
				continue;
			}
			for (uint32_t p = 0; p < s.k; p++)
				sum += element(a, lda, transpose_a, i, p) *
					element(b, ldb, transpose_b, p, j);
			sum *= 0.5;
			if (beta != 0.0f)
				sum += (double)beta * (double)before[at];
			assert_near("c", at, (double)c[at], sum, fmax(1e-6, 0x1p-24 * s.k));
		}
	free(a);
	free(b);
	free(c);
	free(before);
}

/* Both operands either way, odd sizes, results beside which something else lies. */
static void test_matmul(void **state)
{
	static const struct shape shapes[] = {{1, 1, 1}, {3, 5, 7}, {7, 70, 33}, {13, 64, 16},
		{6, 129, 20}, {40, 17, 300}, {2, 96, 513}};
	const struct engine *engine = check_engine(state);
	for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
		for (int way = 0; way < 4; way++) {
			check_product(engine, shapes[i], way & 1, way & 2, 0.0f);
			check_product(engine, shapes[i], way & 1, way & 2, 1.0f);
		}
}

struct product {
	const struct engine *engine;
	struct matmul call;
};

static uint64_t run_product(void *context)
{
	struct product *product = context;
	product->engine->matmul(&product->call);
	return check_bits(
		0, product->call.c, (size_t)product->call.m * product->call.ldc * sizeof(float));
}

/* Outside of a parallel region too, the library must not take threads of its own: it would change
 * the order of long sums. */
static void test_p2_matmul(void **state)
{
	const uint32_t side = 96, k = 17424;
	const struct engine *engine = check_engine(state);
	float *a = check_floats(side * k), *b = check_floats(side * k),
	      *c = check_floats(side * side);
	check_fill(1, ELEM_F32, NULL, a, side * k);
	check_fill(2, ELEM_F32, NULL, b, side * k);
	struct product product = {
		.engine = engine,
		.call = {.m = side,
			.n = side,
			.k = k,
			.alpha = 1.0f,
			.a = a,
			.b = b,
			.c = c,
			.lda = k,
			.ldb = side,
			.ldc = side},
	};
	check_threads("matmul", run_product, &product);
	free(a);
	free(b);
	free(c);
}

static void test_names(void **state)
{
	const struct engine *engine = check_engine(state);
	const char *reason = NULL;
	assert_string_equal(engine->name, *state);
	assert_ptr_equal(engine_named(engine->name, &reason), engine);
	assert_true(strlen(engine->library()) > 0);
	if (engine == engine_openblas())
		assert_int_equal(strncmp(engine->library(), "OpenBLAS ", 9), 0);
	assert_null(engine_named("cuda", &reason));
	assert_true(strlen(reason) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden_embedding),
		cmocka_unit_test(test_embedding_definition),
		cmocka_unit_test(test_silu),
		ON_EACH_ENGINE(test_linear),
		ON_EACH_ENGINE(test_matmul),
		ON_EACH_ENGINE(test_p2_matmul),
		ON_EACH_ENGINE(test_names),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
