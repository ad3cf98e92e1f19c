/* See store/sealed_json.h. */
#include "store/sealed_json.h"

#include "base/digest.h"
#include "base/file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int object_digest(json_t *object, struct digest *ret)
{
	AUTO_JSON bare = json_copy(object);
	char *text;

	if (bare == NULL)
		return -ENOMEM;
	json_object_del(bare, "check");
	text = json_dumps(bare, JSON_COMPACT | JSON_SORT_KEYS);
	if (text == NULL)
		return -ENOMEM;
	*ret = digest_of(text, strlen(text));
	free(text);
	return 0;
}

int sealed_json_seal(json_t *object)
{
	struct digest digest;
	char hex[DIGEST_HEX_SIZE];
	int rc = object_digest(object, &digest);

	if (rc < 0)
		return rc;
	digest_to_hex(&digest, hex);
	return json_object_set_new(object, "check", json_string(hex)) < 0 ? -ENOMEM : 0;
}

int sealed_json_text(json_t *object, char **ret_text)
{
	int rc = sealed_json_seal(object);

	if (rc < 0)
		return rc;
	*ret_text = json_dumps(object, JSON_INDENT(2));
	return *ret_text == NULL ? -ENOMEM : 0;
}

static int parse(const char *text, size_t size, int64_t format, json_t **ret, struct error *err)
{
	AUTO_JSON object = NULL;
	json_error_t where;
	struct digest digest;
	char hex[DIGEST_HEX_SIZE];

	object = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
	if (!json_is_object(object))
		return error_set(err, -EBADMSG, "it is not a JSON object (%s)",
			object == NULL ? where.text : "another type");
	if (json_get_int(object, "format", 0) > format)
		return error_set(err, -EPROTONOSUPPORT, "it was written by a newer version");
	if (object_digest(object, &digest) < 0)
		return error_set(err, -ENOMEM, "no memory");
	digest_to_hex(&digest, hex);
	if (strcmp(json_get_text(object, "check", ""), hex) != 0)
		return error_set(err, -EBADMSG, "its check does not match its content");
	*ret = json_incref(object);
	return 0;
}

int sealed_json_read(int dir_fd, const char *name, int64_t format, json_t **ret, struct error *err)
{
	char *text = NULL;
	size_t size = 0;
	int rc = file_read_all(dir_fd, name, SEALED_JSON_BYTES_MAX, &text, &size);

	if (rc < 0)
		return error_set(err, rc == -EFBIG ? -EBADMSG : rc, "cannot read %s: %s", name,
			strerror(-rc));
	rc = parse(text, size, format, ret, err);
	free(text);
	if (rc < 0)
		error_prefix(err, rc, "%s is broken", name);
	return rc;
}
