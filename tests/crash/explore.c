/* See tests/crash/explore.h. */
#include "tests/crash/explore.h"

#include "base/panic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKS_TRIED 64

/* -- which states -- */

static const struct trace_op *volatile_op(const struct model *model, uint32_t i)
{
	return &model->trace->ops[model->order[model->volatiles[i]]];
}

static bool can_tear(const struct trace_op *op)
{
	return op->kind == TRACE_WRITE && op->offset / 512 != (op->offset + op->size - 1) / 512;
}

static uint32_t tearable(const struct model *model)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < model->volatile_count; i++)
		count += can_tear(volatile_op(model, i));
	return count;
}

/* Mostly zeros: a block that says something is hit on purpose. */
static uint32_t pick_block(const struct trace_op *op, uint32_t block_bytes, uint64_t *seed)
{
	uint64_t blocks = (op->offset + op->size - 1) / block_bytes - op->offset / block_bytes + 1;
	uint32_t block = 0;

	for (int try = 0; try < BLOCKS_TRIED; try++) {
		uint64_t begin, end;

		block = (uint32_t)(model_random(seed) % blocks);
		begin = block == 0 ? 0
				   : (op->offset / block_bytes + block) * block_bytes - op->offset;
		end = begin + block_bytes < op->size ? begin + block_bytes : op->size;
		for (uint64_t at = begin; at < end; at++)
			if (op->data[at] != 0)
				return block;
	}
	return block;
}

static struct keep tear(const struct trace_op *op, uint64_t *seed)
{
	struct keep keep = {.how = TORN};

	keep.block_bytes = (model_random(seed) & 1) != 0 ? 512 : 4096;
	keep.mode = (uint8_t)(model_random(seed) % (2 * TEAR_MODES));
	if (keep.mode >= TEAR_MODES)
		keep.mode = TEAR_RANDOM;
	keep.grown = (model_random(seed) & 1) != 0 || keep.mode == TEAR_NONE;
	keep.at = pick_block(op, keep.block_bytes, seed);
	keep.seed = model_random(seed);
	return keep;
}

static void keep_all(const struct model *model, struct keep *keeps, uint8_t how)
{
	for (uint32_t i = 0; i < model->volatile_count; i++)
		keeps[i] = (struct keep){.how = how};
}

static uint32_t plain_count(const struct model *model, const struct effort *effort)
{
	uint32_t n = model->volatile_count;

	return n <= effort->exhaustive ? 1u << n : 2 + 3 * n + effort->subsets;
}

static void choose_plain(const struct model *model, const struct effort *effort, uint32_t k,
	uint64_t *seed, struct keep *keeps)
{
	uint32_t n = model->volatile_count;

	keep_all(model, keeps, LOST);
	if (n <= effort->exhaustive) {
		for (uint32_t i = 0; i < n; i++)
			keeps[i].how = (k >> i & 1) != 0 ? KEPT : LOST;
		return;
	}
	if (k == 0)
		return;
	k -= 1;
	if (k < n + 1) { /* prefixes, and all */
		for (uint32_t i = 0; i < k; i++)
			keeps[i].how = KEPT;
	} else if (k < 2 * n + 1) {
		keep_all(model, keeps, KEPT);
		keeps[k - n - 1].how = LOST;
	} else if (k < 3 * n + 1) {
		keeps[k - 2 * n - 1].how = KEPT;
	} else {
		for (uint32_t i = 0; i < n; i++)
			keeps[i].how = (model_random(seed) & 1) != 0 ? KEPT : LOST;
	}
}

/* One torn, and of the others all, none, or those before it. */
static void choose_torn(
	const struct model *model, uint32_t which, uint64_t *seed, struct keep *keeps)
{
	uint32_t at = 0, others = (uint32_t)(model_random(seed) % 4);

	while (!can_tear(volatile_op(model, at)) || which-- > 0)
		at++;
	keep_all(model, keeps, others == 0 ? LOST : KEPT);
	for (uint32_t i = at; others == 1 && i < model->volatile_count; i++)
		keeps[i].how = LOST;
	keeps[at] = tear(volatile_op(model, at), seed);
}

static void choose_mixed(const struct model *model, uint64_t *seed, struct keep *keeps)
{
	for (uint32_t i = 0; i < model->volatile_count; i++) {
		uint64_t how = model_random(seed) % 8;

		keeps[i] = (struct keep){.how = how == 0 ? LOST : KEPT};
		if (how > 3 && can_tear(volatile_op(model, i)))
			keeps[i] = tear(volatile_op(model, i), seed);
	}
}

/* False when there is no k-th state at this point. */
static bool choose(
	const struct model *model, const struct effort *effort, uint32_t k, struct keep *keeps)
{
	uint64_t seed = (uint64_t)model->point << 32 | k;
	uint32_t plain = plain_count(model, effort), torn = tearable(model);

	if (k < plain) {
		choose_plain(model, effort, k, &seed, keeps);
		return true;
	}
	k -= plain;
	if (k < torn * effort->tears) {
		choose_torn(model, k / effort->tears, &seed, keeps);
		return true;
	}
	if (torn == 0 || k - torn * effort->tears >= effort->mixed)
		return false;
	choose_mixed(model, &seed, keeps);
	return true;
}

/* -- what was promised -- */

static void promise_at(const struct model *model, const struct promise *base, struct promise *ret)
{
	*ret = *base;
	for (uint32_t i = 0; i < model->point; i++) {
		const struct trace_op *op = &model->trace->ops[model->order[i]];
		uint32_t bit = 1u << op->value;

		if (op->kind != TRACE_EVENT)
			continue;
		switch (op->event) {
		case EVENT_SAVED:
			ret->saved |= bit;
			break;
		case EVENT_CATALOGUED:
			ret->catalogued |= bit;
			break;
		case EVENT_RETIRING:
			ret->retired |= bit;
			break;
		case EVENT_BRANCH:
			ret->branches |= bit;
			break;
		case EVENT_KEPT:
			ret->kept |= bit;
			break;
		case EVENT_WANTED_ASKED:
			ret->wanted |= bit;
			break;
		case EVENT_WANTED:
			ret->wanted = bit;
			break;
		}
	}
}

/* -- the walk -- */

static void say(struct exploration *x, const struct model *model, const struct mutation *mutation,
	uint32_t k, const char *violation)
{
	char at[192] = "the end", mutated[64] = "";

	if (x->violations++ > 0)
		return;
	if (model->point < model->count)
		trace_describe(model->trace, model->order[model->point], at);
	if (mutation->kind != MUTATE_NOTHING) {
		snprintf(mutated, sizeof(mutated), " %s:%u:%u",
			mutation->kind == MUTATE_DROP           ? "drop"
				: mutation->kind == MUTATE_MUTE ? "mute"
								: "move",
			mutation->op, mutation->before);
	}
	snprintf(x->first, sizeof(x->first), "CKPTD_CRASH=\"%s%s %u:%u\" (before %s): %s", x->what,
		mutated, model->point, k, at, violation);
}

/* A start on this state is itself cut off anywhere. */
static void explore_recovery(struct exploration *x, const struct model_state *state,
	const struct promise *promise, uint32_t point, uint32_t k)
{
	static const struct effort effort = {.exhaustive = 3, .subsets = 2, .tears = 1, .mixed = 2};
	const struct mutation none = {.kind = MUTATE_NOTHING};
	char what[256], text[VIOLATION_MAX];
	struct exploration inner = {.checker = x->checker,
		.effort = &effort,
		.base = *promise,
		.what = what,
		.parts = 1,
		.only_point = UINT32_MAX,
		.only_k = UINT32_MAX};
	struct trace trace;

	snprintf(what, sizeof(what), "%.100s %u:%u then a start", x->what, point, k);
	checker_lay(x->checker, state);
	trace_begin(&trace, x->checker->dir);
	checker_start(x->checker, text);
	trace_end();
	explore(&inner, &trace, &none);
	trace_fini(&trace);
	x->states += inner.states;
	x->nested_unique += inner.unique;
	if (inner.violations > 0 && x->violations == 0)
		memcpy(x->first, inner.first, sizeof(x->first));
	x->violations += inner.violations;
}

/* Without a daemon: whatever was promised, one repair is enough. */
static void try_repair(struct exploration *x, const struct model *model,
	const struct model_state *state, const struct mutation *mutation, uint32_t k)
{
	char violation[VIOLATION_MAX];

	x->repaired++;
	checker_repair(x->checker, state, violation);
	if (violation[0] != '\0')
		say(x, model, mutation, k, violation);
}

static bool is_chosen(const struct exploration *x, const struct model *model, uint32_t k)
{
	return (x->only_point == UINT32_MAX || x->only_point == model->point) &&
		(x->only_k == UINT32_MAX || x->only_k == k);
}

static void try_state(struct exploration *x, struct model *model, const struct mutation *mutation,
	const struct promise *promise, uint32_t k, const struct keep *keeps)
{
	const struct outcome *outcome;
	struct model_state state;
	char violation[VIOLATION_MAX];
	bool is_new;

	model_state(model, keeps, &state);
	x->states++;
	if (state.hash % x->parts == x->part) {
		outcome = checker_look(x->checker, &state, &is_new);
		x->unique += is_new;
		checker_hold(x->checker, outcome, promise, violation);
		if (violation[0] != '\0')
			say(x, model, mutation, k, violation);
		if (is_new && x->effort->repaired != 0 && x->unique % x->effort->repaired == 0)
			try_repair(x, model, &state, mutation, k);
		if (is_new && x->effort->nested != 0 && x->unique % x->effort->nested == 0)
			explore_recovery(x, &state, promise, model->point, k);
	}
	model_state_fini(&state);
}

static void explore_point(
	struct exploration *x, struct model *model, const struct mutation *mutation)
{
	struct keep *keeps = calloc(model->volatile_count + 1, sizeof(*keeps));
	struct promise promise;

	CHECK(keeps != NULL);
	promise_at(model, &x->base, &promise);
	x->points++;
	x->capped += model->volatile_count > x->effort->exhaustive;
	for (uint32_t k = 0; choose(model, x->effort, k, keeps); k++) {
		if (is_chosen(x, model, k))
			try_state(x, model, mutation, &promise, k, keeps);
		if (x->stop_at_first && x->violations > 0)
			break;
	}
	free(keeps);
}

static bool is_point(const struct model *model, uint32_t point)
{
	const struct trace_op *next;

	if (point == model->count)
		return true;
	next = &model->trace->ops[model->order[point]];
	return next->kind == TRACE_SYNC || next->kind == TRACE_EVENT;
}

void explore(struct exploration *x, const struct trace *trace, const struct mutation *mutation)
{
	struct model model;

	model_init(&model, trace, mutation);
	for (uint32_t point = 0; point <= model.count; point++) {
		if (!is_point(&model, point))
			continue;
		model_at(&model, point);
		explore_point(x, &model, mutation);
		if (x->stop_at_first && x->violations > 0)
			break;
	}
	model_fini(&model);
}
