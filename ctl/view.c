/* The live view. A line is written through struct line, which counts columns and cuts: nothing can
 * wrap, so the screen never scrolls. */
#include "ctl/view.h"

#include "ctl/text.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

#define WIDTH_MIN 20
#define CURVE_HEIGHT_MAX 12
#define CURVE_HEIGHT_MIN 3
#define LABEL_WIDTH 12
#define AXIS_WIDTH 9

enum paint { PAINT_PLAIN, PAINT_BOLD, PAINT_DIM, PAINT_GOOD, PAINT_BAD, PAINT_WARN, PAINT_BAR };

struct line {
	const struct view *view;
	FILE *out;
	int left;  /* columns of this line */
	int lines; /* left on the screen, this one included */
};

static void line_add(struct line *line, enum paint paint, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static void line_add(struct line *line, enum paint paint, const char *fmt, ...)
{
	static const char *const codes[] = {"", "1", "2", "32", "31;1", "33", "36"};
	char text[LOOK_LINE_MAX + 64];
	va_list args;

	if (line->lines <= 0)
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	size_t bytes = text_prefix(text, line->left);
	text[bytes] = '\0';
	line->left -= text_width(text);
	if (line->view->stale && paint != PAINT_BAD)
		paint = PAINT_DIM;
	if (line->view->color && paint != PAINT_PLAIN)
		fprintf(line->out, "\033[%sm%s\033[0m", codes[paint], text);
	else
		fputs(text, line->out);
}

static void line_end(struct line *line)
{
	if (line->lines > 1)
		fputc('\n', line->out);
	if (line->lines > 0)
		line->lines--;
	line->left = line->view->width;
}

static enum paint state_paint(const char *state)
{
	if (strcmp(state, "training") == 0 || strcmp(state, "finished") == 0)
		return PAINT_GOOD;
	if (strcmp(state, "failed") == 0 || strcmp(state, "restarting") == 0)
		return PAINT_BAD;
	return PAINT_WARN;
}

static void render_title(struct line *line, const struct look *look)
{
	const int used = text_width("ckptd ") + text_width(look->run_dir) + 1;

	line_add(line, PAINT_BOLD, "ckptd ");
	line_add(line, PAINT_DIM, "%s ", look->run_dir);
	if (line->left > 0 && used + text_width(look->state) < line->view->width)
		line_add(line, PAINT_PLAIN, "%*s", line->left - text_width(look->state), "");
	const bool stale = line->view->stale;
	line_add(line, stale ? PAINT_BAD : state_paint(look->state), "%s", look->state);
	line_end(line);
	if (strcmp(look->state_text, look->state) != 0)
		line_add(line, stale ? PAINT_BAD : PAINT_PLAIN, "%s", look->state_text);
	line_end(line);
}

static void render_bar(struct line *line, const struct look *look)
{
	char text[128], step[TEXT_NUMBER_SIZE], total[TEXT_NUMBER_SIZE];
	double share = look_share(look);

	snprintf(text, sizeof(text), " %5.1f %%  step %s of %s", 100.0 * share,
		text_count((uint64_t)look->step, step),
		text_count((uint64_t)look->steps_total, total));
	int width = line->view->width - text_width(text) - 1;
	int full = (int)(share * width + 0.5);
	for (int i = 0; width >= 5 && i < width; i++) {
		if (i < full)
			line_add(line, PAINT_BAR, "%s", line->view->utf8 ? "\u2588" : "#");
		else
			line_add(line, PAINT_DIM, "%s", line->view->utf8 ? "\u2591" : "-");
	}
	line_add(line, PAINT_BOLD, "%s", text);
	line_end(line);
}

static int count_facts(const struct look *look)
{
	char text[LOOK_LINE_MAX];
	const char *label;
	bool bad;
	int count = 0;

	while (look_fact(look, count, &label, text, &bad))
		count++;
	return count;
}

static void render_facts(struct line *line, const struct look *look, int keep)
{
	char text[LOOK_LINE_MAX];
	const char *label;
	bool bad;

	for (int i = 0; line->lines > keep && look_fact(look, i, &label, text, &bad); i++) {
		bad = bad && !line->view->stale;
		line_add(line, bad ? PAINT_BAD : PAINT_DIM, "%-*s", LABEL_WIDTH, label);
		line_add(line, bad ? PAINT_BAD : PAINT_PLAIN, "%s", text);
		line_end(line);
	}
}

/* -- the curve -- */

struct curve_lines {
	int count;
	char text[CURVE_HEIGHT_MAX][3 * 512 + 1];
};

static void keep_line(void *context, const char *text)
{
	struct curve_lines *lines = context;

	snprintf(lines->text[lines->count++], sizeof(lines->text[0]), "%s", text);
}

static void render_curve(struct line *line, const struct curve *curve, int height)
{
	static struct curve_lines lines; /* 18 KiB; one thread draws */
	char number[TEXT_NUMBER_SIZE];
	double low, high;
	int width = line->view->width - AXIS_WIDTH - 1;

	lines.count = 0;
	if (height < CURVE_HEIGHT_MIN || width < 8 ||
		!curve_draw(curve, width, height, line->view->utf8, keep_line, &lines, &low, &high))
		return;
	for (int i = 0; i < lines.count; i++) {
		const char *axis = "";

		if (i == 0)
			axis = text_real(high, number);
		else if (i == lines.count - 1)
			axis = text_real(low, number);
		line_add(line, PAINT_DIM, "%*s ", AXIS_WIDTH - 1, axis);
		line_add(line, PAINT_BAR, "%s", lines.text[i]);
		line_end(line);
	}
	char first[TEXT_NUMBER_SIZE], last[TEXT_NUMBER_SIZE];
	text_count(curve->points[0].step, first);
	text_count(curve->last_step, last);
	line_add(line, PAINT_DIM, "%*s %s%*s", AXIS_WIDTH - 1, "loss", first,
		width - text_width(first), last);
	line_end(line);
}

void view_render(
	const struct view *view, const struct look *look, const struct curve *curve, FILE *out)
{
	int width = view->width < WIDTH_MIN ? WIDTH_MIN : view->width;
	const struct view screen = {.width = width,
		.height = view->height,
		.color = view->color,
		.utf8 = view->utf8,
		.stale = view->stale,
		.hint = view->hint};
	struct line line = {.view = &screen, .out = out, .left = width, .lines = view->height};
	int hint_lines = view->height > 8 ? 2 : view->height > 1 ? 1 : 0;

	render_title(&line, look);
	if (look->run_dir[0] == '\0' && view->stale) { /* it never said anything */
		line_end(&line);
		line_add(&line, PAINT_DIM, "%s", view->hint);
		return;
	}
	render_bar(&line, look);
	if (view->height > 12)
		line_end(&line);
	/* The curve gets what the facts leave, with one line for its axis and one blank. */
	int height = line.lines - count_facts(look) - hint_lines - 2;
	render_facts(&line, look, hint_lines);
	if (height >= CURVE_HEIGHT_MIN && curve->count > 0) {
		line_end(&line);
		render_curve(&line, curve, height > CURVE_HEIGHT_MAX ? CURVE_HEIGHT_MAX : height);
	}
	if (hint_lines == 2)
		line_end(&line);
	line_add(&line, PAINT_DIM, "%s", view->hint);
}
