/* The rules of the tree, as a test: includes point down, each foreign library has one door, files
 * and lines keep their size, nothing unfinished is left, the tests that docs/FAULTS.md names are
 * there. Prints file:line and the rule. */
#include <dirent.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_LINES_MAX 700
#define LINE_COLUMNS_MAX 100
#define TAB_COLUMNS 8
#define DEPTH_MAX 8

/* Who may include from whom: a file under `from` may include headers under the listed folders. The
 * longest matching `from` holds. */
static const struct {
	const char *from;
	const char *may[12];
} layers[] = {
	{"base/", {"base/"}},
	{"proto/", {"proto/", "base/"}},
	{"store/", {"store/", "proto/", "base/"}},
	{"supervisor/", {"supervisor/", "store/", "proto/", "base/"}},
	{"ctl/", {"ctl/", "store/", "proto/", "base/"}},
	{"daemon/ops/", {"daemon/ops/", "base/"}},
	{"daemon/model/", {"daemon/model/", "daemon/ops/", "base/"}},
	{"daemon/diffusion/", {"daemon/diffusion/", "base/"}},
	{"daemon/optim/", {"daemon/optim/", "base/"}},
	{"daemon/data/", {"daemon/data/", "daemon/image/", "base/"}},
	{"daemon/image/", {"daemon/image/", "base/"}},
	{"daemon/train/",
		{"daemon/train/", "daemon/model/", "daemon/diffusion/", "daemon/optim/",
			"daemon/data/", "daemon/image/", "base/"}},
	{"daemon/", {"daemon/", "store/", "proto/", "base/"}},
	{"tests/", {"tests/", "daemon/", "ctl/", "supervisor/", "store/", "proto/", "base/"}},
	{"bench/", {"bench/", "daemon/", "store/", "proto/", "base/"}},
};

/* Each foreign library's header, and the files or folders that may include it. */
static const struct {
	const char *header;
	const char *doors[4];
} doors[] = {
	{"uv.h", {"supervisor/"}},
	{"sqlite3.h", {"store/catalog", "store/history", "store/database.c"}},
	{"sodium.h", {"base/digest.c", "base/rng.c", "base/sign.c"}},
	{"cblas.h", {"daemon/ops/gemm_openblas.c"}},
	{"openblas_config.h", {"daemon/ops/gemm_openblas.c"}},
	{"jansson.h", {"proto/", "store/"}},
	{"oneapi/dnnl/dnnl.h", {"bench/onednn.c"}},
	{"spng.h", {"daemon/image/"}},
	{"jpeglib.h", {"daemon/image/"}},
	{"ini.h", {"base/config.c"}},
};

/* Written in two halves, so that this line is not found itself. */
static const char *const unfinished[][2] = {{"TO", "DO"}, {"FIX", "ME"}};

static unsigned finding_count, file_count;
static bool quiet; /* while the rules themselves are tested */

static void report(const char *path, unsigned line, const char *rule, const char *what)
{
	if (!quiet)
		fprintf(stderr, "%s:%u: %s%s%s\n", path, line, rule, *what ? ": " : "", what);
	finding_count++;
}

static bool starts_with(const char *text, const char *prefix)
{
	return strncmp(text, prefix, strlen(prefix)) == 0;
}

static void check_own_include(const char *path, unsigned line, const char *header)
{
	size_t best = 0, best_length = 0;

	for (size_t i = 0; i < sizeof(layers) / sizeof(*layers); i++)
		if (starts_with(path, layers[i].from) && strlen(layers[i].from) > best_length) {
			best = i;
			best_length = strlen(layers[i].from);
		}
	if (best_length == 0)
		return;
	for (size_t j = 0; j < 12 && layers[best].may[j]; j++)
		if (starts_with(header, layers[best].may[j]))
			return;
	report(path, line, "this include does not point down", header);
}

static void check_foreign_include(const char *path, unsigned line, const char *header)
{
	/* Tests may look behind a door. */
	if (starts_with(path, "tests/"))
		return;
	for (size_t i = 0; i < sizeof(doors) / sizeof(*doors); i++) {
		if (strcmp(doors[i].header, header) != 0)
			continue;
		for (size_t j = 0; j < 4 && doors[i].doors[j]; j++)
			if (starts_with(path, doors[i].doors[j]))
				return;
		report(path, line, "this library has another door", header);
	}
}

static void check_include(const char *path, unsigned line, const char *text)
{
	char header[256], close;

	if (sscanf(text, "#include \"%255[^\"]%c", header, &close) == 2)
		check_own_include(path, line, header);
	else if (sscanf(text, "#include <%255[^>]%c", header, &close) == 2)
		check_foreign_include(path, line, header);
}

static void check_line(const char *path, unsigned line, const char *text, bool code)
{
	size_t length = strlen(text);
	unsigned columns = 0;

	for (size_t i = 0; i < length; i++) {
		if (text[i] == '\t')
			columns += TAB_COLUMNS - columns % TAB_COLUMNS;
		else if ((text[i] & 0xc0) != 0x80)
			columns++;
	}
	if (code && columns > LINE_COLUMNS_MAX)
		report(path, line, "longer than 100 columns", "");
	if (length > 0 && (text[length - 1] == ' ' || text[length - 1] == '\t'))
		report(path, line, "ends in white space", "");
	for (size_t i = 0; i < sizeof(unfinished) / sizeof(*unfinished); i++) {
		char word[8];

		snprintf(word, sizeof(word), "%s%s", unfinished[i][0], unfinished[i][1]);
		if (strstr(text, word))
			report(path, line, "unfinished", word);
	}
	if (code)
		check_include(path, line, text);
}

static bool ends_with(const char *text, const char *suffix)
{
	size_t length = strlen(text), tail = strlen(suffix);

	return length >= tail && strcmp(text + length - tail, suffix) == 0;
}

static void check_file(const char *path)
{
	bool code = ends_with(path, ".c") || ends_with(path, ".h");
	char text[4096];
	unsigned line = 0;
	FILE *file = fopen(path, "r");

	if (!file) {
		report(path, 0, "cannot be opened", "");
		return;
	}
	file_count++;
	while (fgets(text, sizeof(text), file)) {
		text[strcspn(text, "\n")] = 0;
		line++;
		if (line == 1 && code && !starts_with(text, "/*"))
			report(path, line, "does not open with a comment", "");
		check_line(path, line, text, code);
	}
	if (code && line > FILE_LINES_MAX)
		report(path, line, "longer than 700 lines", "");
	fclose(file);
}

static bool is_source(const char *name)
{
	static const char *const suffixes[] = {".c", ".h", ".def", ".build", ".py", ".sh", ".conf",
		".service", ".socket", ".varlink"};

	for (size_t i = 0; i < sizeof(suffixes) / sizeof(*suffixes); i++)
		if (ends_with(name, suffixes[i]))
			return true;
	return false;
}

/* Any name will do: meson setup gives each its build.ninja. */
static bool is_build_folder(const char *path)
{
	char inside[PATH_MAX];
	int length = snprintf(inside, sizeof(inside), "%s/build.ninja", path);

	return length < (int)sizeof(inside) && access(inside, F_OK) == 0;
}

static void walk(const char *folder, int depth)
{
	DIR *dir = opendir(folder);
	struct dirent *entry;

	if (!dir)
		return;
	while ((entry = readdir(dir))) {
		char path[PATH_MAX];
		struct stat st;

		if (entry->d_name[0] == '.')
			continue;
		int length = snprintf(path, sizeof(path), "%s%s%s", depth ? folder : "",
			depth ? "/" : "", entry->d_name);
		if (length >= (int)sizeof(path) || lstat(path, &st) < 0)
			continue;
		if (S_ISDIR(st.st_mode) && depth < DEPTH_MAX && !is_build_folder(path))
			walk(path, depth + 1);
		else if (S_ISREG(st.st_mode) && is_source(entry->d_name))
			check_file(path);
	}
	closedir(dir);
}

/* -- what the documents name -- */

#define FAULTS "docs/FAULTS.md"

/* A word of letters, digits and more than one underscore: a test case, not a state or a call. */
static bool is_case(const char *word)
{
	unsigned underscores = 0;

	for (const char *at = word; *at; at++) {
		if (!strchr("abcdefghijklmnopqrstuvwxyz0123456789_", *at))
			return false;
		underscores += *at == '_';
	}
	return underscores > 1;
}

static bool has_text(const char *path, const char *part)
{
	char text[4096];
	FILE *file = fopen(path, "r");
	bool found = false;

	while (file && !found && fgets(text, sizeof(text), file))
		found = strstr(text, part) != NULL;
	if (file)
		fclose(file);
	return found;
}

/* `tests/...` names a file, and a case after it one in that file. Returns the number of files. */
static unsigned check_named_tests(unsigned line, char *text)
{
	char *rest = text, *word, path[PATH_MAX] = "";
	unsigned files = 0;

	for (bool quoted = false; (word = strsep(&rest, "`")) != NULL; quoted = !quoted) {
		if (!quoted)
			continue;
		if (starts_with(word, "tests/") && ends_with(word, ".c")) {
			snprintf(path, sizeof(path), "%s", word);
			files++;
			if (access(path, F_OK) < 0)
				report(FAULTS, line, "there is no such test", word);
		} else if (*path && is_case(word) && !has_text(path, word)) {
			report(FAULTS, line, "there is no such case", word);
		}
	}
	return files;
}

static void check_faults(void)
{
	char text[4096];
	unsigned line = 0, files = 0;
	FILE *file = fopen(FAULTS, "r");

	while (file && fgets(text, sizeof(text), file))
		files += check_named_tests(++line, text);
	if (file)
		fclose(file);
	if (files == 0)
		report(FAULTS, line, "it names no test", "");
}

/* Each rule finds what it is for, and only that. */
static bool rules_work(void)
{
	static const struct {
		const char *path, *text;
		bool code;
		unsigned findings;
	} cases[] = {
		{"base/a.c", "#include \"base/b.h\"", true, 0},
		{"base/a.c", "#include \"proto/b.h\"", true, 1},
		{"base/a.c", "#include \"b.h\"", true, 1},
		{"store/a.c", "#include \"proto/b.h\"", true, 0},
		{"store/a.c", "#include \"supervisor/b.h\"", true, 1},
		{"daemon/ops/a.c", "#include \"daemon/model/b.h\"", true, 1},
		{"daemon/train/a.c", "#include \"store/b.h\"", true, 1},
		{"daemon/worker_a.c", "#include \"store/b.h\"", true, 0},
		{"ctl/a.c", "#include \"supervisor/b.h\"", true, 1},
		{"ctl/a.c", "#include <uv.h>", true, 1},
		{"supervisor/a.c", "#include <uv.h>", true, 0},
		{"base/rng.c", "#include <sodium.h>", true, 0},
		{"base/sys.c", "#include <sodium.h>", true, 1},
		{"base/a.c", "blank behind ", true, 1},
		{"base/a.c", "tab behind\t", true, 1},
		{"base/a.conf", "blank behind ", false, 1},
		{"base/a.c", "\t\t\t\t\t\t\t\t\t\t\t\t100!", true, 0},
		{"base/a.c", "\t\t\t\t\t\t\t\t\t\t\t\t101!!", true, 1},
	};
	bool right = true;

	quiet = true;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		finding_count = 0;
		check_line(cases[i].path, 1, cases[i].text, cases[i].code);
		if (finding_count != cases[i].findings) {
			printf("# %s: '%s' gives %u findings\n", cases[i].path, cases[i].text,
				finding_count);
			right = false;
		}
	}
	char wrong[] = "| `tests/tidy/tidy.c` `is_case`, `no_such_"
		       "case_there` | `tests/no.c` |";

	finding_count = 0;
	if (check_named_tests(1, wrong) != 2 || finding_count != 2) {
		printf("# names of tests give %u findings\n", finding_count);
		right = false;
	}
	finding_count = 0;
	quiet = false;
	return right;
}

int main(int argc, char **argv)
{
	if (argc != 2 || chdir(argv[1]) < 0) {
		fprintf(stderr, "usage: tidy SOURCE_FOLDER\n");
		return 2;
	}
	bool work = rules_work();
	walk(".", 0);
	check_faults();
	/* A walk that found nothing has checked nothing. */
	bool hold = finding_count == 0 && file_count > 50;
	printf("1..2\n%s 1 - the rules find what they are for\n", work ? "ok" : "not ok");
	printf("%s 2 - the rules of the tree hold in %u files\n", hold ? "ok" : "not ok",
		file_count);
	return work && hold ? 0 : 1;
}
