/* See tests/crash/model.h. */
#include "tests/crash/model.h"

#include "base/panic.h"

#include <stdlib.h>
#include <string.h>

#define NEVER UINT32_MAX

uint64_t model_random(uint64_t *seed)
{
	uint64_t z = *seed += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint64_t mix(uint64_t hash, uint64_t value)
{
	uint64_t seed = hash ^ value;

	return model_random(&seed);
}

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t size)
{
	const uint8_t *bytes = data;
	uint64_t word;

	for (; size >= sizeof(word); size -= sizeof(word), bytes += sizeof(word)) {
		memcpy(&word, bytes, sizeof(word));
		hash = (hash ^ word) * 0x9fb21c651e98df25u;
		hash ^= hash >> 29;
	}
	word = 0;
	memcpy(&word, bytes, size);
	return mix(hash, word + size);
}

static uint64_t hash_content(const struct trace_content *content)
{
	uint64_t hash = mix(content->size, 1);

	for (uint32_t i = 0; i < content->page_count; i++)
		if (content->pages[i] != NULL)
			hash += mix(hash_bytes(0, content->pages[i], TRACE_PAGE), i + 1);
	return hash;
}

static void *make(size_t count, size_t size)
{
	void *array = calloc(count + 1, size);

	CHECK(array != NULL);
	return array;
}

/* -- the trace, as mutated -- */

static bool is_named(const struct trace_op *op)
{
	return op->kind <= TRACE_UNLINK;
}

/* What a sync of which node makes durable. */
static uint32_t synced_node(const struct trace_op *op)
{
	return is_named(op) ? op->folder : op->node;
}

static void find_syncs(struct model *model)
{
	for (uint32_t i = 0; i < model->count; i++) {
		const struct trace_op *op = &model->trace->ops[model->order[i]];

		model->synced_at[i] = NEVER;
		for (uint32_t j = i + 1; op->kind < TRACE_SYNC && j < model->count; j++) {
			const struct trace_op *sync = &model->trace->ops[model->order[j]];

			if (sync->kind == TRACE_SYNC && sync->node == synced_node(op)) {
				model->synced_at[i] = sync->failed ? NEVER : j;
				break;
			}
		}
	}
}

static bool is_dropped(const struct trace *trace, const struct mutation *mutation, uint32_t op)
{
	const struct trace_op *at = &trace->ops[op], *muted = &trace->ops[mutation->op];

	switch (mutation->kind) {
	case MUTATE_DROP:
	case MUTATE_MOVE:
		return op == mutation->op;
	case MUTATE_MUTE:
		return at->kind == TRACE_SYNC &&
			strcmp(trace->nodes[at->node].label, trace->nodes[muted->node].label) == 0;
	case MUTATE_NOTHING:
		break;
	}
	return false;
}

void model_init(struct model *model, const struct trace *trace, const struct mutation *mutation)
{
	memset(model, 0, sizeof(*model));
	model->trace = trace;
	model->order = make(trace->op_count, sizeof(*model->order));
	model->synced_at = make(trace->op_count, sizeof(*model->synced_at));
	model->volatiles = make(trace->op_count, sizeof(*model->volatiles));
	model->unsettled = make(trace->node_count, sizeof(*model->unsettled));
	model->cached = make(trace->node_count, sizeof(*model->cached));
	for (uint32_t i = 0; i < trace->op_count; i++) {
		if (mutation->kind == MUTATE_MOVE && i == mutation->before)
			model->order[model->count++] = mutation->op;
		if (!is_dropped(trace, mutation, i))
			model->order[model->count++] = i;
	}
	find_syncs(model);
}

static void forget(struct model_cached *cached)
{
	if (cached->valid)
		trace_content_fini(&cached->content);
	cached->valid = false;
}

void model_fini(struct model *model)
{
	for (uint32_t i = 0; i < model->trace->node_count; i++)
		forget(&model->cached[i]);
	free(model->order);
	free(model->synced_at);
	free(model->volatiles);
	free(model->unsettled);
	free(model->cached);
}

/* -- a point -- */

static const struct trace_op *op_at(const struct model *model, uint32_t position)
{
	return &model->trace->ops[model->order[position]];
}

static bool is_volatile(const struct model *model, uint32_t position)
{
	return op_at(model, position)->kind < TRACE_SYNC &&
		model->synced_at[position] >= model->point;
}

/* Nodes that some state at this point can give a name. */
static void find_reachable(const struct model *model, bool *reachable)
{
	for (uint32_t i = 0; i < model->trace->entry_count; i++)
		reachable[model->trace->entries[i].node] = true;
	for (uint32_t i = 0; i < model->point; i++) {
		const struct trace_op *op = op_at(model, i);

		if (op->kind == TRACE_UNLINK && !is_volatile(model, i))
			reachable[op->node] = false;
		else if (is_named(op))
			reachable[op->node] = true;
	}
}

void model_at(struct model *model, uint32_t point)
{
	bool *reachable = make(model->trace->node_count, sizeof(*reachable));

	model->point = point;
	model->volatile_count = 0;
	memset(model->unsettled, 0, model->trace->node_count * sizeof(*model->unsettled));
	find_reachable(model, reachable);
	for (uint32_t i = 0; i < point; i++) {
		const struct trace_op *op = op_at(model, i);

		if (!is_volatile(model, i) || !reachable[op->node])
			continue;
		model->volatiles[model->volatile_count++] = i;
		if (!is_named(op))
			model->unsettled[op->node] = true;
	}
	free(reachable);
}

/* -- data -- */

static bool is_block_kept(const struct keep *keep, uint32_t block)
{
	uint64_t seed = keep->seed + block;

	switch ((enum tear_mode)keep->mode) {
	case TEAR_PREFIX:
		return block < keep->at;
	case TEAR_SUFFIX:
		return block >= keep->at;
	case TEAR_HOLE:
		return block != keep->at;
	case TEAR_RANDOM:
		return (model_random(&seed) & 1) != 0;
	case TEAR_NONE:
	case TEAR_MODES:
		break;
	}
	return false;
}

/* Blocks lie on the file's own grid. */
static void write_torn(
	struct trace_content *content, const struct trace_op *op, const struct keep *keep)
{
	uint64_t end = op->offset + op->size, at = op->offset;

	for (uint32_t block = 0; at < end; block++) {
		uint64_t next = (at / keep->block_bytes + 1) * keep->block_bytes;

		if (next > end)
			next = end;
		if (is_block_kept(keep, block))
			trace_content_write(content, at, op->data + (at - op->offset), next - at);
		at = next;
	}
	if (keep->grown && content->size < end)
		trace_content_resize(content, end);
}

static void apply(struct trace_content *content, const struct trace_op *op, const struct keep *keep)
{
	if (op->kind == TRACE_RESIZE)
		trace_content_resize(content, op->size);
	else if (op->kind == TRACE_GROW && content->size < op->size)
		trace_content_resize(content, op->size);
	else if (op->kind == TRACE_WRITE && keep != NULL && keep->how == TORN)
		write_torn(content, op, keep);
	else if (op->kind == TRACE_WRITE)
		trace_content_write(content, op->offset, op->data, op->size);
}

/* by_position: NULL where all are kept. Returns the number of the node's operations. */
static uint32_t replay(const struct model *model, uint32_t node, const struct keep *const *keeps,
	struct trace_content *ret)
{
	uint32_t count = 0;

	trace_content_copy(&model->trace->nodes[node].content, ret);
	for (uint32_t i = 0; i < model->point; i++) {
		const struct trace_op *op = op_at(model, i);
		const struct keep *keep = keeps != NULL ? keeps[i] : NULL;

		if (is_named(op) || op->kind >= TRACE_SYNC || op->node != node)
			continue;
		count++;
		if (keep == NULL || keep->how != LOST)
			apply(ret, op, keep);
	}
	return count;
}

static uint32_t count_ops(const struct model *model, uint32_t node)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < model->point; i++) {
		const struct trace_op *op = op_at(model, i);

		count += !is_named(op) && op->kind < TRACE_SYNC && op->node == node;
	}
	return count;
}

static struct model_cached *settled(struct model *model, uint32_t node)
{
	struct model_cached *cached = &model->cached[node];

	if (cached->valid && cached->ops == count_ops(model, node))
		return cached;
	forget(cached);
	cached->ops = replay(model, node, NULL, &cached->content);
	cached->hash = hash_content(&cached->content);
	cached->valid = true;
	return cached;
}

/* -- names -- */

static void set_name(struct model_state *state, uint32_t folder, const char *name, uint32_t node)
{
	uint32_t i = 0;

	while (i < state->count &&
		(state->files[i].folder != folder || strcmp(state->files[i].name, name) != 0))
		i++;
	if (i == state->count)
		state->count++;
	state->files[i].folder = folder;
	strcpy(state->files[i].name, name);
	state->nodes[i] = node;
}

/* Only while it names this node: what came later stays. */
static void drop_name(struct model_state *state, uint32_t folder, const char *name, uint32_t node)
{
	for (uint32_t i = 0; i < state->count; i++) {
		if (state->nodes[i] != node || state->files[i].folder != folder ||
			strcmp(state->files[i].name, name) != 0)
			continue;
		state->count--;
		state->files[i] = state->files[state->count];
		state->nodes[i] = state->nodes[state->count];
		return;
	}
}

static void apply_names(
	const struct model *model, const struct keep *const *keeps, struct model_state *state)
{
	for (uint32_t i = 0; i < model->trace->entry_count; i++)
		set_name(state, model->trace->entries[i].folder, model->trace->entries[i].name,
			model->trace->entries[i].node);
	for (uint32_t i = 0; i < model->point; i++) {
		const struct trace_op *op = op_at(model, i);

		if (!is_named(op) || (keeps[i] != NULL && keeps[i]->how == LOST))
			continue;
		if (op->kind == TRACE_RENAME || op->kind == TRACE_UNLINK)
			drop_name(state, op->folder, op->name, op->node);
		if (op->kind == TRACE_RENAME || op->kind == TRACE_LINK)
			set_name(state, op->folder, op->to, op->node);
		else if (op->kind != TRACE_UNLINK)
			set_name(state, op->folder, op->name, op->node);
	}
}

static void fill_files(
	struct model *model, const struct keep *const *keeps, struct model_state *state)
{
	for (uint32_t i = 0; i < state->count; i++) {
		struct model_file *file = &state->files[i];
		uint32_t node = state->nodes[i];

		file->is_folder = model->trace->nodes[node].folder;
		if (file->is_folder) {
			file->hash = 2;
		} else if (!model->unsettled[node]) {
			file->content = &settled(model, node)->content;
			file->hash = settled(model, node)->hash;
		} else {
			if (!state->has[node])
				replay(model, node, keeps, &state->contents[node]);
			state->has[node] = true;
			file->content = &state->contents[node];
			file->hash = hash_content(file->content);
		}
		state->hash += mix(
			hash_bytes(file->folder, file->name, strlen(file->name)), file->hash);
	}
}

void model_state(struct model *model, const struct keep *keeps, struct model_state *ret)
{
	const struct trace *trace = model->trace;
	const struct keep **by_position = make(trace->op_count, sizeof(*by_position));
	size_t names = trace->entry_count + (size_t)trace->op_count;

	memset(ret, 0, sizeof(*ret));
	ret->files = make(names, sizeof(*ret->files));
	ret->nodes = make(names, sizeof(*ret->nodes));
	ret->contents = make(trace->node_count, sizeof(*ret->contents));
	ret->has = make(trace->node_count, sizeof(*ret->has));
	ret->node_count = trace->node_count;
	for (uint32_t i = 0; i < model->volatile_count; i++)
		by_position[model->volatiles[i]] = &keeps[i];
	apply_names(model, by_position, ret);
	fill_files(model, by_position, ret);
	free(by_position);
}

void model_state_fini(struct model_state *state)
{
	for (uint32_t i = 0; i < state->node_count; i++)
		if (state->has[i])
			trace_content_fini(&state->contents[i]);
	free(state->files);
	free(state->nodes);
	free(state->contents);
	free(state->has);
	memset(state, 0, sizeof(*state));
}
