/* A row to and from the columns of SQLite. What comes back is believed only when its digest matches
 * all of it; what a version-1 digest does not cover is empty. Must never read a database itself. */
#include "store/catalog_row.h"

#include <errno.h>
#include <math.h>
#include <string.h>

static void add_text(struct digest_stream *stream, const char *text)
{
	uint64_t length = strlen(text);

	digest_add(stream, &length, sizeof(length));
	digest_add(stream, text, length);
}

static void add_number(struct digest_stream *stream, uint64_t number)
{
	digest_add(stream, &number, sizeof(number));
}

static void row_digest(const struct catalog_row *row, int version, char hex[DIGEST_HEX_SIZE])
{
	struct digest_stream stream;
	struct digest digest;
	uint64_t loss_bits = 0;

	/* SQLite keeps no NaN: all unknown losses are one. */
	if (!isnan(row->loss))
		memcpy(&loss_bits, &row->loss, sizeof(loss_bits));
	digest_begin(&stream);
	add_text(&stream, row->id);
	add_number(&stream, row->step);
	add_number(&stream, row->branch);
	add_text(&stream, checkpoint_state_name(row->state));
	digest_add(&stream, &row->root, sizeof(row->root));
	digest_add(&stream, &row->parent_root, sizeof(row->parent_root));
	add_number(&stream, row->file_bytes);
	add_number(&stream, isnan(row->loss));
	add_number(&stream, loss_bits);
	add_number(&stream, row->trained_seconds);
	add_number(&stream, row->keep);
	add_text(&stream, row->created);
	add_text(&stream, row->readback);
	add_text(&stream, row->text);
	if (version >= 2) {
		add_text(&stream, row->verified_at);
		add_text(&stream, row->signer);
		add_text(&stream, row->mirrored_at);
	}
	digest = digest_end(&stream);
	digest_to_hex(&digest, hex);
}

static void bind_text(sqlite3_stmt *statement, int index, const char *text)
{
	sqlite3_bind_text(statement, index, text, -1, SQLITE_TRANSIENT);
}

static void bind_number(sqlite3_stmt *statement, int index, uint64_t number)
{
	sqlite3_bind_int64(statement, index, (sqlite3_int64)number);
}

void catalog_row_bind(sqlite3_stmt *statement, const struct catalog_row *row)
{
	char root[DIGEST_HEX_SIZE], parent[DIGEST_HEX_SIZE], digest[DIGEST_HEX_SIZE];

	digest_to_hex(&row->root, root);
	digest_to_hex(&row->parent_root, parent);
	row_digest(row, CATALOG_VERSION, digest);
	bind_text(statement, 1, row->id);
	bind_number(statement, 2, row->step);
	bind_number(statement, 3, row->branch);
	bind_text(statement, 4, checkpoint_state_name(row->state));
	bind_text(statement, 5, root);
	bind_text(statement, 6, parent);
	bind_number(statement, 7, row->file_bytes);
	sqlite3_bind_double(statement, 8, row->loss); /* NaN becomes NULL */
	bind_number(statement, 9, row->trained_seconds);
	bind_number(statement, 10, row->keep);
	bind_text(statement, 11, row->created);
	bind_text(statement, 12, row->readback);
	bind_text(statement, 13, row->text);
	bind_text(statement, 14, row->verified_at);
	bind_text(statement, 15, row->signer);
	bind_text(statement, 16, row->mirrored_at);
	bind_text(statement, 17, digest);
}

static int copy_text(sqlite3_stmt *statement, int column, char *ret, size_t size)
{
	const char *text = (const char *)sqlite3_column_text(statement, column);

	if (text == NULL || strlen(text) >= size ||
		strlen(text) != (size_t)sqlite3_column_bytes(statement, column))
		return -EBADMSG;
	memcpy(ret, text, strlen(text) + 1);
	return 0;
}

static int copy_digest(sqlite3_stmt *statement, int column, struct digest *ret)
{
	const char *text = (const char *)sqlite3_column_text(statement, column);

	return text != NULL ? digest_from_hex(text, strlen(text), ret) : -EBADMSG;
}

int catalog_row_read(sqlite3_stmt *statement, int version, struct catalog_row *ret)
{
	char state[16], said[DIGEST_HEX_SIZE], computed[DIGEST_HEX_SIZE];
	int64_t branch, keep;

	memset(ret, 0, sizeof(*ret));
	if (copy_text(statement, 0, ret->id, sizeof(ret->id)) < 0 ||
		copy_text(statement, 3, state, sizeof(state)) < 0 ||
		checkpoint_state_parse(state, &ret->state) < 0 ||
		copy_digest(statement, 4, &ret->root) < 0 ||
		copy_digest(statement, 5, &ret->parent_root) < 0 ||
		copy_text(statement, 10, ret->created, sizeof(ret->created)) < 0 ||
		copy_text(statement, 11, ret->readback, sizeof(ret->readback)) < 0 ||
		copy_text(statement, 12, ret->text, sizeof(ret->text)) < 0 ||
		copy_text(statement, 13, ret->verified_at, sizeof(ret->verified_at)) < 0 ||
		copy_text(statement, 14, ret->signer, sizeof(ret->signer)) < 0 ||
		copy_text(statement, 15, ret->mirrored_at, sizeof(ret->mirrored_at)) < 0 ||
		copy_text(statement, 16, said, sizeof(said)) < 0)
		return -EBADMSG;
	ret->step = (uint64_t)sqlite3_column_int64(statement, 1);
	branch = sqlite3_column_int64(statement, 2);
	keep = sqlite3_column_int64(statement, 9);
	/* The digest sees them only after they were narrowed. */
	if (branch < 0 || branch > UINT32_MAX || keep < 0 || keep > 1)
		return -EBADMSG;
	ret->branch = (uint32_t)branch;
	ret->file_bytes = (uint64_t)sqlite3_column_int64(statement, 6);
	ret->loss = sqlite3_column_type(statement, 7) == SQLITE_NULL
		? (double)NAN
		: sqlite3_column_double(statement, 7);
	ret->trained_seconds = (uint64_t)sqlite3_column_int64(statement, 8);
	ret->keep = keep == 1;
	row_digest(ret, version, computed);
	return strcmp(said, computed) == 0 ? 0 : -EBADMSG;
}
