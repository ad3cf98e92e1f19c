/* Reading clocks and writing times for people. */
#include "base/clock.h"

#include "base/panic.h"

#include <stdio.h>
#include <time.h>

static nsec_t read_clock(clockid_t id)
{
	struct timespec now;

	CHECK(clock_gettime(id, &now) == 0);
	return (nsec_t)now.tv_sec * NSEC_PER_SEC + now.tv_nsec;
}

nsec_t clock_monotonic_ns(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

nsec_t clock_wall_ns(void)
{
	return read_clock(CLOCK_REALTIME);
}

void clock_format_utc(nsec_t wall_ns, char text[CLOCK_TEXT_SIZE])
{
	time_t seconds = (time_t)(wall_ns / NSEC_PER_SEC);
	int ms = (int)(wall_ns % NSEC_PER_SEC / NSEC_PER_MSEC);
	struct tm tm;

	if (wall_ns < 0 || !gmtime_r(&seconds, &tm) || tm.tm_year > 8099) {
		snprintf(text, CLOCK_TEXT_SIZE, "unknown time");
		return;
	}
	size_t used = strftime(text, CLOCK_TEXT_SIZE, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(text + used, CLOCK_TEXT_SIZE - used, ".%03dZ", ms);
}

nsec_t clock_parse_utc(const char *text)
{
	struct tm tm = {0};
	const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
	int ms = 0;

	if (rest == NULL || (*rest == '.' && sscanf(rest, ".%3dZ", &ms) != 1))
		return -1;
	return (nsec_t)timegm(&tm) * NSEC_PER_SEC + ms * NSEC_PER_MSEC;
}

void clock_format_duration(nsec_t duration_ns, char text[CLOCK_TEXT_SIZE])
{
	static const struct {
		const char *name;
		int64_t seconds;
	} units[] = {{"d", 86400}, {"h", 3600}, {"min", 60}, {"s", 1}};
	int64_t seconds;
	size_t i = 0;

	if (duration_ns < 0)
		duration_ns = 0;
	if (duration_ns < NSEC_PER_SEC) {
		snprintf(text, CLOCK_TEXT_SIZE, "%d ms", (int)(duration_ns / NSEC_PER_MSEC));
		return;
	}
	seconds = duration_ns / NSEC_PER_SEC;
	while (i < 3 && seconds < units[i].seconds)
		i++;
	int64_t first = seconds / units[i].seconds;
	int64_t rest = seconds % units[i].seconds;
	int64_t second = i < 3 ? rest / units[i + 1].seconds : 0;
	if (second)
		snprintf(text, CLOCK_TEXT_SIZE, "%lld %s %lld %s", (long long)first, units[i].name,
			(long long)second, units[i + 1].name);
	else
		snprintf(text, CLOCK_TEXT_SIZE, "%lld %s", (long long)first, units[i].name);
}
