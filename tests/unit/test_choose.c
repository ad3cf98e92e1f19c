/* The choice of the engine (P9, P11): what runs here and fits, and one line that says why. */
#include "daemon/model/choose.h"
#include "daemon/ops/engine.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct unet_config net(uint32_t width, uint32_t head_dim)
{
	return (struct unet_config){
		.sample_size = 8,
		.in_channels = 3,
		.out_channels = 3,
		.level_count = 2,
		.channels = {32, width},
		.down_attention = {false, true},
		.up_attention = {true, false},
		.layers_per_block = 1,
		.head_dim = head_dim,
		.groups = 8,
		.norm_eps = 1e-5f,
	};
}

struct answer {
	int r;
	const struct engine *engine;
	char reason[128];
	struct error err;
};

static struct answer ask(struct unet_config config, const char *wanted)
{
	struct answer answer = {0};

	answer.r = unet_choose_engine(
		&config, wanted, &answer.engine, answer.reason, sizeof(answer.reason), &answer.err);
	return answer;
}

static void assert_says(const char *text, const char *part)
{
	if (!strstr(text, part) || strchr(text, '\n'))
		fail_msg("'%s' does not say '%s' in one line", text, part);
}

static void openblas_takes_any_net(void **unused)
{
	struct answer answer = ask(net(40, 40), "openblas");

	assert_int_equal(answer.r, 0);
	assert_string_equal(answer.engine->name, "openblas");
	assert_string_equal(answer.reason, "as configured");
}

static void p11_auto_takes_the_fastest_that_runs_and_says_what_a_faster_one_lacks(void **unused)
{
	static const char *const names[] = {"amx", "avx512", "openblas"};
	struct answer answer = ask(net(64, 32), "auto");
	const struct engine *engine = NULL;
	char expected[160] = "auto: the fastest here";
	const char *refusal;

	for (int i = 0; i < 3 && !engine; i++) {
		engine = engine_named(names[i], &refusal);
		if (!engine)
			snprintf(expected, sizeof(expected), "auto: not %s: %s", names[i], refusal);
	}
	assert_int_equal(answer.r, 0);
	assert_ptr_equal(answer.engine, engine);
	assert_string_equal(answer.reason, expected);
}

static void p11_auto_names_the_width_that_does_not_fit(void **unused)
{
	struct answer answer = ask(net(48, 16), "auto");
	const char *refusal;

	assert_int_equal(answer.r, 0);
	if (engine_named("avx512", &refusal)) {
		assert_string_equal(answer.engine->name, "avx512");
		assert_says(answer.reason, "channels divisible by 32, not 48");
	} else {
		assert_string_equal(answer.engine->name, "openblas");
		assert_says(answer.reason, refusal);
	}
}

static void amx_takes_whole_squares_and_even_shares_of_one(void **unused)
{
	static const struct {
		uint32_t width, head_dim;
		const char *says; /* NULL: fits */
	} rows[] = {
		{96, 0, NULL},
		{96, 96, NULL},
		{64, 64, NULL},
		{64, 32, NULL},
		{64, 16, NULL},
		{64, 1, NULL},
		{96, 48, "head_dim that divides 32 or is divisible by it, not 48"},
		{96, 12, "not 12"},
		{33, 0, "not 33"},
		{16, 8, "channels divisible by 32, not 16"},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct answer answer = ask(net(rows[i].width, rows[i].head_dim), "amx");
		const char *refusal;

		if (rows[i].says) {
			assert_int_equal(answer.r, -ENOTSUP);
			assert_null(answer.engine);
			assert_says(answer.reason, rows[i].says);
		} else if (engine_named("amx", &refusal)) {
			assert_int_equal(answer.r, 0);
			assert_string_equal(answer.engine->name, "amx");
		} else {
			assert_string_equal(answer.reason, refusal);
		}
	}
}

static void p9_a_named_engine_that_cannot_run_gets_one_line_with_the_way_out(void **unused)
{
	static const char *const wanted[] = {"amx", "cuda"};

	for (int i = 0; i < 2; i++) {
		struct answer answer = ask(net(48, 16), wanted[i]);

		assert_int_equal(answer.r, -ENOTSUP);
		assert_says(answer.err.text, "engine = ");
		assert_says(answer.err.text, wanted[i]);
		assert_says(answer.err.text, answer.reason);
		assert_says(answer.err.text, "set engine = auto");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(openblas_takes_any_net),
		cmocka_unit_test(
			p11_auto_takes_the_fastest_that_runs_and_says_what_a_faster_one_lacks),
		cmocka_unit_test(p11_auto_names_the_width_that_does_not_fit),
		cmocka_unit_test(amx_takes_whole_squares_and_even_shares_of_one),
		cmocka_unit_test(p9_a_named_engine_that_cannot_run_gets_one_line_with_the_way_out),
	};

	return cmocka_run_group_tests_name("choice of the engine", tests, NULL, NULL);
}
