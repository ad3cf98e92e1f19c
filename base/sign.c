/* The door of libsodium's signatures. What held a secret is wiped on every way out. */
#include "base/sign.h"

#include "base/digest.h"
#include "base/file.h"
#include "base/panic.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECRET_WORD "ckptd-ed25519-secret-1 "
#define PUBLIC_WORD "ckptd-ed25519-public-1 "
#define CREDENTIAL "credential:"
#define KEY_FILE_MAX 4096
#define TRUSTED_FILE_MAX (1 << 16)
#define HEX (SIGN_PUBLIC_HEX_SIZE - 1)

_Static_assert(SIGN_PUBLIC_BYTES == crypto_sign_PUBLICKEYBYTES, "Ed25519");
_Static_assert(SIGN_SECRET_BYTES == crypto_sign_SECRETKEYBYTES, "Ed25519");
_Static_assert(SIGN_SEED_BYTES == crypto_sign_SEEDBYTES, "Ed25519");
_Static_assert(SIGN_BYTES == crypto_sign_BYTES, "Ed25519");

void sign_key_from_seed(const uint8_t seed[SIGN_SEED_BYTES], struct sign_key *ret)
{
	CHECK(sodium_init() >= 0);
	CHECK(crypto_sign_seed_keypair(ret->public.bytes, ret->secret, seed) == 0);
}

void sign_key_wipe(struct sign_key *key)
{
	sodium_memzero(key, sizeof(*key));
}

void sign_make(const struct sign_key *key, const void *data, size_t size, uint8_t ret[SIGN_BYTES])
{
	CHECK(crypto_sign_detached(ret, NULL, data, size, key->secret) == 0);
}

bool sign_verify(const struct sign_public *key, const void *data, size_t size,
	const uint8_t signature[SIGN_BYTES])
{
	CHECK(sodium_init() >= 0);
	return crypto_sign_verify_detached(signature, data, size, key->bytes) == 0;
}

bool sign_public_equal(const struct sign_public *a, const struct sign_public *b)
{
	return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

void sign_public_hex(const struct sign_public *key, char hex[SIGN_PUBLIC_HEX_SIZE])
{
	bytes_to_hex(key->bytes, sizeof(key->bytes), hex);
}

/* -- making one -- */

static int write_line(const char *path, const char *word, const uint8_t bytes[SIGN_SEED_BYTES],
	mode_t mode, struct error *err)
{
	char hex[HEX + 1], line[sizeof(SECRET_WORD) + HEX + 1];
	int fd = sys_openat(
		AT_FDCWD, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
	int rc = fd < 0 ? fd : 0;

	bytes_to_hex(bytes, SIGN_SEED_BYTES, hex);
	int length = snprintf(line, sizeof(line), "%s%s\n", word, hex);

	if (rc == 0)
		rc = file_write_exact(fd, line, (size_t)length, 0);
	if (rc == 0)
		rc = sys_fsync(fd);
	sodium_memzero(line, sizeof(line));
	sodium_memzero(hex, sizeof(hex));
	if (fd >= 0)
		sys_close(fd);
	if (rc < 0 && fd >= 0)
		sys_unlinkat(AT_FDCWD, path);
	if (rc == -EEXIST)
		return error_set(err, rc, "%s is there already: keys are not overwritten", path);
	return rc < 0 ? error_set(err, rc, "cannot write %s: %s", path, strerror(-rc)) : 0;
}

/* Or a power cut leaves no name behind. */
static int sync_folder_of(const char *path, struct error *err)
{
	const char *slash = strrchr(path, '/');
	char dir[PATH_MAX] = ".";
	int fd, rc;

	if (slash != NULL)
		snprintf(dir, sizeof(dir), "%.*s", slash == path ? 1 : (int)(slash - path), path);
	fd = sys_openat(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	rc = fd < 0 ? fd : file_sync_dir(fd);
	if (fd >= 0)
		sys_close(fd);
	return rc < 0 ? error_set(err, rc, "cannot sync %s: %s", dir, strerror(-rc)) : 0;
}

int sign_key_create(const char *path, struct sign_public *ret, struct error *err)
{
	char public_path[PATH_MAX];
	uint8_t seed[SIGN_SEED_BYTES];
	struct sign_key key;
	int rc;

	if (snprintf(public_path, sizeof(public_path), "%s.pub", path) >= (int)sizeof(public_path))
		return error_set(err, -ENAMETOOLONG, "the path is too long");
	CHECK(sodium_init() >= 0);
	randombytes_buf(seed, sizeof(seed));
	sign_key_from_seed(seed, &key);
	*ret = key.public;
	rc = write_line(path, SECRET_WORD, seed, 0600, err);
	if (rc == 0) {
		rc = write_line(public_path, PUBLIC_WORD, key.public.bytes, 0644, err);
		if (rc < 0)
			sys_unlinkat(AT_FDCWD, path);
	}
	sodium_memzero(seed, sizeof(seed));
	sign_key_wipe(&key);
	return rc < 0 ? rc : sync_folder_of(path, err);
}

/* -- reading -- */

/* The 64 digits after word at the beginning of line; what follows them begins with a space. */
static int parse_line(const char *line, const char *word, uint8_t bytes[SIGN_SEED_BYTES])
{
	size_t length = strlen(word);
	char hex[HEX + 1];
	int rc;

	if (strncmp(line, word, length) != 0 || strnlen(line + length, HEX) < HEX ||
		(line[length + HEX] != '\0' && line[length + HEX] != ' '))
		return -EINVAL;
	memcpy(hex, line + length, HEX);
	hex[HEX] = '\0';
	rc = bytes_from_hex(hex, bytes, SIGN_SEED_BYTES);
	sodium_memzero(hex, sizeof(hex));
	return rc;
}

static int find_key(const char *where, char path[PATH_MAX], struct error *err)
{
	const char *dir = getenv("CREDENTIALS_DIRECTORY"), *name = where + strlen(CREDENTIAL);

	if (strncmp(where, CREDENTIAL, strlen(CREDENTIAL)) != 0) {
		snprintf(path, PATH_MAX, "%s", where);
		return 0;
	}
	if (dir == NULL)
		return error_set(err, -ENOENT,
			"signing key %s: there are no credentials: see SIGNING in ckptd(8), or "
			"give "
			"LoadCredential=%s:PATH in the unit",
			where, name);
	if (name[0] == '\0' || strchr(name, '/') != NULL)
		return error_set(
			err, -EINVAL, "signing key %s: '%s' is no credential's name", where, name);
	snprintf(path, PATH_MAX, "%s/%s", dir, name);
	return 0;
}

/* A credential's folder is closed as a whole, and its files carry access lists. */
static int check_mode(const char *where, int fd, struct error *err)
{
	struct stat stat;
	int rc = sys_fstat(fd, &stat);

	if (rc < 0)
		return error_set(err, rc, "signing key %s: %s", where, strerror(-rc));
	if (!S_ISREG(stat.st_mode))
		return error_set(err, -EINVAL, "signing key %s: it is not a regular file", where);
	if (strncmp(where, CREDENTIAL, strlen(CREDENTIAL)) == 0)
		return 0;
	if (stat.st_uid != geteuid() && stat.st_uid != 0)
		return error_set(err, -EPERM, "signing key %s: it belongs to uid %u, not to uid %u",
			where, (unsigned)stat.st_uid, (unsigned)geteuid());
	if ((stat.st_mode & 077) != 0)
		return error_set(err, -EPERM,
			"signing key %s: others may read it (mode %03o): chmod 600, or make a new "
			"one",
			where, (unsigned)stat.st_mode & 0777);
	return 0;
}

static int read_seed(int fd, uint8_t seed[SIGN_SEED_BYTES])
{
	char text[KEY_FILE_MAX];
	ssize_t length = sys_pread(fd, text, sizeof(text) - 1, 0);
	int rc = length < 0 ? (int)length : 0;

	if (rc == 0) {
		text[length] = '\0';
		text[strcspn(text, "\n")] = '\0';
		rc = parse_line(text, SECRET_WORD, seed);
	}
	sodium_memzero(text, sizeof(text));
	return rc;
}

int sign_key_open(const char *where, struct error *err)
{
	char path[PATH_MAX];
	int fd, rc = find_key(where, path, err);

	if (rc < 0)
		return rc;
	fd = sys_openat(AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0);
	if (fd < 0)
		return error_set(err, fd, "signing key %s: %s", where, strerror(-fd));
	rc = check_mode(where, fd, err);
	if (rc == 0)
		return fd;
	sys_close(fd);
	return rc;
}

int sign_key_take(int fd, const char *where, struct sign_key *ret, struct error *err)
{
	uint8_t seed[SIGN_SEED_BYTES];
	int rc = check_mode(where, fd, err);

	if (rc == 0) {
		rc = read_seed(fd, seed);
		if (rc == -EINVAL)
			error_set(err, rc, "signing key %s: it is not a key of 'ckptctl keygen'",
				where);
		else if (rc < 0)
			error_set(err, rc, "signing key %s: %s", where, strerror(-rc));
	}
	if (rc == 0)
		sign_key_from_seed(seed, ret);
	sodium_memzero(seed, sizeof(seed));
	return rc;
}

int sign_key_read(const char *where, struct sign_key *ret, struct error *err)
{
	int fd = sign_key_open(where, err), rc;

	if (fd < 0)
		return fd;
	rc = sign_key_take(fd, where, ret, err);
	sys_close(fd);
	return rc;
}

int sign_trusted_read(const char *path, struct sign_public *keys, uint32_t max, uint32_t *count,
	struct error *err)
{
	char *text, *at;
	size_t size;
	int rc = file_read_all(AT_FDCWD, path, TRUSTED_FILE_MAX, &text, &size);

	if (rc < 0)
		return error_set(err, rc, "trusted keys %s: %s", path, strerror(-rc));
	at = text;
	for (unsigned number = 1; rc == 0 && at != NULL; number++) {
		char *line = strsep(&at, "\n");

		if (line[0] == '\0' || line[0] == '#')
			continue;
		if (*count == max)
			rc = error_set(err, -E2BIG, "trusted keys %s: more than %u", path, max);
		else if (parse_line(line, PUBLIC_WORD, keys[*count].bytes) < 0)
			rc = error_set(err, -EINVAL,
				"trusted keys %s:%u: no line of a .pub file of 'ckptctl keygen'",
				path, number);
		else
			++*count;
	}
	free(text);
	return rc;
}
