/* The time-embedding path: the embedding's golden values, linear and SiLU with their gradients. */
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

static void test_linear(void **state)
{
	struct bench bench;
	float x[21], weight[35], bias[5], y[3 * 8], dy[3 * 8] = {0}, direction[15];
	float dweight[35], dbias[5], dx[21];
	check_fill(1, bench.x, x, 21);
	check_fill(2, bench.weight, weight, 35);
	check_fill(3, bench.bias, bias, 5);
	check_fill(4, bench.direction, direction, 15);
	for (int i = 0; i < 15; i++)
		dy[i / 5 * 8 + i % 5] = direction[i];
	struct linear linear = {7, 5, weight, bias};
	const struct engine *engine = engine_openblas();
	loss(&bench);
	linear_forward(engine, &linear, 3, x, y, 8);
	for (size_t i = 0; i < 15; i++)
		assert_near("y", i, (double)y[i / 5 * 8 + i % 5], bench.y[i], 1e-6);
	linear_weights_gradient(engine, &linear, 3, x, dy, 8, dweight, dbias, false);
	linear_data_gradient(engine, &linear, 3, dy, 8, 0, 4, dx, false);
	linear_data_gradient(engine, &linear, 3, dy, 8, 4, 3, dx, false);
	check_gradient("dw", bench.weight, 35, 1, dweight, loss, &bench, 1e-5);
	check_gradient("db", bench.bias, 5, 1, dbias, loss, &bench, 1e-5);
	check_gradient("dx", bench.x, 21, 1, dx, loss, &bench, 1e-5);
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
	check_fill(1, values, x, 100);
	values[0] = -90.0;
	x[0] = -90.0f;
	values[1] = 90.0;
	x[1] = 90.0f;
	silu_forward(50, x, y);
	for (size_t i = 0; i < 50; i++)
		assert_near("y", i, (double)y[i], naive_silu(values[i]), 5e-7);
	silu_backward(50, x, x + 50, dx);
	check_gradient("dx", values, 50, 1, dx, silu_loss, values, 1e-6);
}

struct product {
	struct matmul call;
	float *c;
};

static void run_product(void *context)
{
	engine_openblas()->matmul(&((struct product *)context)->call);
}

/* Outside of a parallel region too, the library must not take threads of its own: it would change
 * the order of long sums. */
static void test_p2_one_blas_thread(void **state)
{
	const uint32_t side = 96, k = 17424;
	float *a = check_floats(side * k), *b = check_floats(side * k),
	      *c = check_floats(side * side);
	check_fill(1, NULL, a, side * k);
	check_fill(2, NULL, b, side * k);
	struct product product = {{.m = side,
					  .n = side,
					  .k = k,
					  .alpha = 1.0f,
					  .a = a,
					  .b = b,
					  .c = c,
					  .lda = k,
					  .ldb = side,
					  .ldc = side},
		c};
	check_threads("matmul", run_product, &product, c, side * side);
	assert_int_equal(strncmp(ops_engine_library(), "OpenBLAS ", 9), 0);
	assert_string_equal(ops_engine_name(), "openblas");
	free(a);
	free(b);
	free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden_embedding),
		cmocka_unit_test(test_embedding_definition),
		cmocka_unit_test(test_linear),
		cmocka_unit_test(test_silu),
		cmocka_unit_test(test_p2_one_blas_thread),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
