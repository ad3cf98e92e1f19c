/* See worker_record.h. */
#include "daemon/worker_record.h"

#include "base/panic.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool same_key(const char *a, const char *b)
{
	size_t length = strcspn(a, "=");

	return length == strcspn(b, "=") && memcmp(a, b, length) == 0;
}

/* Who chose it, behind the name; without, a ladder's of a time when there was one engine. */
static const char *const engine_by_texts[] = {
	[ENGINE_BY_CONFIG] = " (config)",
	[ENGINE_BY_AUTO] = " (auto)",
	[ENGINE_BY_LADDER] = " (ladder)",
};

static struct engine_entry engine_of(const struct intervention *entry)
{
	struct engine_entry engine = {.step = entry->step, .by = ENGINE_BY_LADDER};
	size_t length = strcspn(entry->value, " ");

	for (size_t i = 0; i < sizeof(engine_by_texts) / sizeof(engine_by_texts[0]); i++)
		if (strcmp(entry->value + length, engine_by_texts[i]) == 0)
			engine.by = (enum engine_by)i;
	snprintf(engine.name, sizeof(engine.name), "%.*s", (int)length, entry->value);
	return engine;
}

/* Entries of which only the last one counts. */
static bool same_matter(const struct intervention *a, const struct intervention *b)
{
	if (a->kind != b->kind)
		return false;
	if (a->kind == INTERVENTION_ENGINE)
		return engine_of(a).by == engine_of(b).by;
	return a->kind == INTERVENTION_CONFIG && same_key(a->value, b->value);
}

static bool is_superseded(const struct state_record *record, uint32_t index)
{
	for (uint32_t i = index + 1; i < record->intervention_count; i++)
		if (same_matter(&record->interventions[i], &record->interventions[index]))
			return true;
	return false;
}

/* The entry to give up: the oldest superseded one, else the oldest window. */
static uint32_t oldest_spare(const struct state_record *record)
{
	for (uint32_t i = 0; i < record->intervention_count; i++)
		if (is_superseded(record, i))
			return i;
	for (uint32_t i = 0; i < record->intervention_count; i++)
		if (record->interventions[i].kind == INTERVENTION_SKIP_WINDOW ||
			record->interventions[i].kind == INTERVENTION_DATA)
			return i;
	PANIC("more schedule keys than a record holds");
}

static void remove_at(struct state_record *record, uint32_t index)
{
	struct intervention *entries = record->interventions;

	record->intervention_count--;
	memmove(&entries[index], &entries[index + 1],
		(record->intervention_count - index) * sizeof(*entries));
	memset(&entries[record->intervention_count], 0, sizeof(*entries));
}

/* Replaces one spare entry by its digest, chained with that of those folded before it; the FOLDED
 * entry stands first. */
static void fold_one(struct state_record *record)
{
	struct intervention *folded = &record->interventions[0];
	uint32_t index = oldest_spare(record);
	struct digest_stream stream;
	struct digest digest;

	digest_begin(&stream);
	if (folded->kind == INTERVENTION_FOLDED)
		digest_add(&stream, folded, sizeof(*folded));
	digest_add(&stream, &record->interventions[index], sizeof(*folded));
	digest = digest_end(&stream);
	if (folded->kind == INTERVENTION_FOLDED) {
		remove_at(record, index);
	} else {
		memmove(folded + 1, folded, index * sizeof(*folded));
		memset(folded, 0, sizeof(*folded));
		folded->kind = INTERVENTION_FOLDED;
	}
	folded->step = record->step;
	bytes_to_hex(digest.bytes, 16, folded->value);
}

void record_add(
	struct state_record *record, enum intervention_kind kind, uint64_t step, const char *value)
{
	struct intervention *entry;

	/* Two rounds: the first fold only turns an entry into the FOLDED one. */
	while (record->intervention_count >= STATE_INTERVENTIONS_MAX)
		fold_one(record);
	CHECK(strlen(value) < sizeof(entry->value));
	entry = &record->interventions[record->intervention_count++];
	memset(entry, 0, sizeof(*entry));
	entry->step = step;
	entry->kind = kind;
	strcpy(entry->value, value);
}

bool record_has(const struct state_record *record, const struct intervention *intervention)
{
	for (uint32_t i = 0; i < record->intervention_count; i++) {
		const struct intervention *entry = &record->interventions[i];

		if (entry->step == intervention->step && entry->kind == intervention->kind &&
			strcmp(entry->value, intervention->value) == 0)
			return true;
	}
	return false;
}

static void add_key(
	struct state_record *record, const struct config *config, const struct config_key *key)
{
	char text[CONFIG_TEXT_MAX], value[sizeof(record->interventions[0].value) + CONFIG_TEXT_MAX];

	config_value_text(config, key, text);
	snprintf(value, sizeof(value), "%s=%s", key->key, text);
	record_add(record, INTERVENTION_CONFIG, record->step, value);
}

void record_begin(struct state_record *record, const struct config *config)
{
	for (size_t i = 0; i < config_key_count(); i++)
		if (config_key_at(i)->class == CONFIG_SCHEDULE)
			add_key(record, config, config_key_at(i));
}

int record_config(const struct state_record *record, const struct config *base, struct config *ret,
	struct error *err)
{
	*ret = *base;
	for (uint32_t i = 0; i < record->intervention_count; i++) {
		const struct intervention *entry = &record->interventions[i];
		char name[sizeof(entry->value)];
		size_t length = strcspn(entry->value, "=");
		int r;

		if (entry->kind != INTERVENTION_CONFIG)
			continue;
		if (!entry->value[length])
			return error_set(err, -EBADMSG, "the record's entry '%s' is not key=value",
				entry->value);
		memcpy(name, entry->value, length);
		name[length] = 0;
		r = config_set(ret, name, entry->value + length + 1, "the record", err);
		if (r < 0)
			return r == -ENOMEM ? r : -EBADMSG;
	}
	return 0;
}

uint32_t record_changes(struct state_record *record, const struct config *before,
	const struct config *after, void (*tell)(void *context, const char *text), void *context)
{
	const struct config_key *key = NULL;
	uint32_t count = 0;

	while ((key = config_next_difference(before, after, CONFIG_SCHEDULE, key))) {
		char old[CONFIG_TEXT_MAX], new[CONFIG_TEXT_MAX], text[3 * CONFIG_TEXT_MAX];

		config_value_text(before, key, old);
		config_value_text(after, key, new);
		add_key(record, after, key);
		snprintf(text, sizeof(text), "%s: %s -> %s from step %" PRIu64, key->key, old, new,
			record->step);
		tell(context, text);
		count++;
	}
	/* With another batch size or learning rate other numbers are usual. */
	if (count > 0)
		memset(&record->usual, 0, sizeof(record->usual));
	return count;
}

bool record_engine(const struct state_record *record, struct engine_entry *ret)
{
	for (uint32_t i = record->intervention_count; i-- > 0;)
		if (record->interventions[i].kind == INTERVENTION_ENGINE) {
			*ret = engine_of(&record->interventions[i]);
			return true;
		}
	return false;
}

bool record_auto_engine(const struct state_record *record, struct engine_entry *ret)
{
	for (uint32_t i = record->intervention_count; i-- > 0;) {
		const struct intervention *entry = &record->interventions[i];

		if (entry->kind == INTERVENTION_CONFIG && same_key(entry->value, "engine"))
			return false;
		if (entry->kind != INTERVENTION_ENGINE)
			continue;
		*ret = engine_of(entry);
		if (ret->by == ENGINE_BY_AUTO)
			return true;
	}
	return false;
}

bool record_set_engine(struct state_record *record, const char *name, enum engine_by by,
	void (*tell)(void *context, const char *text), void *context)
{
	char value[sizeof(record->interventions[0].value)], text[160];
	struct engine_entry before;
	bool known = record_engine(record, &before);

	if (known && before.by == by && strcmp(before.name, name) == 0)
		return false;
	snprintf(value, sizeof(value), "%s%s", name, engine_by_texts[by]);
	record_add(record, INTERVENTION_ENGINE, record->step, value);
	if (known && tell && strcmp(before.name, name) != 0) {
		snprintf(text, sizeof(text), "%s computes from step %" PRIu64 ", %s before", name,
			record->step, before.name);
		tell(context, text);
	}
	return true;
}

static void skip_window(struct state_record *record, const struct intervention *intervention,
	void (*tell)(void *context, const char *text), void *context)
{
	uint64_t images = strtoull(intervention->value, NULL, 10);
	char text[160];

	record->images_seen += images;
	record_add(record, intervention->kind, intervention->step, intervention->value);
	snprintf(text, sizeof(text), "skipping %" PRIu64 " images at step %" PRIu64, images,
		record->step);
	tell(context, text);
}

uint32_t record_apply_branch(struct state_record *record, const struct line *line,
	void (*tell)(void *context, const char *text), void *context)
{
	const struct line_branch *branch = line_find(line, record->branch);
	uint32_t count = 0;

	/* What a branch asks for holds on the branches forked from it, too. */
	for (; branch; branch = line_before(line, branch))
		for (uint32_t i = 0; i < branch->intervention_count; i++) {
			const struct intervention *intervention = &branch->interventions[i];

			if (intervention->kind != INTERVENTION_SKIP_WINDOW ||
				intervention->step != record->step ||
				record_has(record, intervention))
				continue;
			skip_window(record, intervention, tell, context);
			count++;
		}
	return count;
}
