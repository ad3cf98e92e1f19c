/* Every death gets an obituary: cause, kind, one printable sentence. */
#include "proto/link.h"
#include "supervisor/obituary.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static struct ending trainer(void)
{
	return (struct ending){
		.role = "trainer", .phase = "backward", .step = 1234, .last_words = ""};
}

static struct obituary write_of(const struct ending *ending)
{
	struct obituary obituary;

	obituary_write(ending, &obituary);
	return obituary;
}

static void an_end_as_asked_is_no_death(void **unused)
{
	struct ending ending = trainer();

	ending.asked = true;
	assert_true(write_of(&ending).planned);
	ending.exit_status = LINK_EXIT_FAILED;
	assert_false(write_of(&ending).planned);
	ending = trainer();
	assert_false(write_of(&ending).planned);
}

static void each_exit_has_its_kind(void **unused)
{
	static const struct {
		int status;
		enum death_kind kind;
		bool person;
		const char *cause;
	} table[] = {
		{LINK_EXIT_FAILED, DEATH_OWN, false, "exit code 1"},
		{LINK_EXIT_STORAGE, DEATH_STORAGE, false, "storage error"},
		{LINK_EXIT_TRANSIENT, DEATH_TRANSIENT, false, "cannot go on now"},
		{LINK_EXIT_MEMORY_CORRUPT, DEATH_MEMORY_CORRUPT, false, "memory corrupt"},
		{LINK_EXIT_NONFINITE, DEATH_NONFINITE, false, "non-finite updates in a row"},
		{LINK_EXIT_CONFIG, DEATH_OWN, true, "configuration"},
		{5, DEATH_OWN, false, "exit code 5"},
	};

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		struct ending ending = trainer();

		ending.exit_status = table[i].status;
		struct obituary obituary = write_of(&ending);

		assert_int_equal(obituary.kind, table[i].kind);
		assert_int_equal(obituary.person, table[i].person);
		assert_string_equal(obituary.cause, table[i].cause);
	}
}

static void its_own_signals_count_and_others_do_not(void **unused)
{
	static const int own[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL};
	static const int outside[] = {SIGKILL, SIGTERM, SIGINT, SIGHUP};
	struct ending ending = trainer();

	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
		ending.term_signal = own[i];
		assert_int_equal(write_of(&ending).kind, DEATH_OWN);
	}
	for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
		ending.term_signal = outside[i];
		assert_int_equal(write_of(&ending).kind, DEATH_OUTSIDE);
	}
	ending.term_signal = SIGKILL;
	ending.out_of_memory = true;
	struct obituary obituary = write_of(&ending);

	assert_int_equal(obituary.kind, DEATH_OUTSIDE);
	assert_string_equal(obituary.cause, "killed by SIGKILL (out of memory)");
	/* Killed by us for a hang: that is its own doing. */
	ending.hang = true;
	obituary = write_of(&ending);
	assert_int_equal(obituary.kind, DEATH_OWN);
	assert_string_equal(obituary.cause, "hang");
}

static void equal_causes_have_equal_numbers(void **unused)
{
	struct ending a = trainer(), b = trainer();

	a.term_signal = b.term_signal = SIGSEGV;
	b.step = 99;
	assert_int_equal(write_of(&a).cause_number, write_of(&b).cause_number);
	b.term_signal = SIGABRT;
	assert_int_not_equal(write_of(&a).cause_number, write_of(&b).cause_number);
	b.term_signal = 0;
	b.exit_status = SIGSEGV;
	assert_int_not_equal(write_of(&a).cause_number, write_of(&b).cause_number);
}

static void the_sentence_says_what_where_and_why(void **unused)
{
	struct ending ending = trainer();
	char hostile[600];

	ending.exit_status = 1;
	ending.last_words = "no such picture";
	struct obituary obituary = write_of(&ending);

	assert_string_equal(obituary.sentence,
		"trainer died: exit code 1, after step 1234 in phase backward: no such picture");
	memset(hostile, 'x', sizeof(hostile));
	memcpy(hostile, "a\n\033[31mb", 8);
	hostile[sizeof(hostile) - 1] = '\0';
	ending.last_words = hostile;
	obituary = write_of(&ending);
	for (const char *c = obituary.sentence; *c; c++)
		assert_true((unsigned char)*c >= 0x20 && *c != 0x7f);
	assert_true(strlen(obituary.sentence) < sizeof(obituary.sentence));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_end_as_asked_is_no_death),
		cmocka_unit_test(each_exit_has_its_kind),
		cmocka_unit_test(its_own_signals_count_and_others_do_not),
		cmocka_unit_test(equal_causes_have_equal_numbers),
		cmocka_unit_test(the_sentence_says_what_where_and_why),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
