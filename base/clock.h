/* One time type: nanoseconds in an int64_t. Durations come from the monotonic clock; the wall
 * clock is only for what a person reads. */
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef int64_t nsec_t;

#define NSEC_PER_USEC INT64_C(1000)
#define NSEC_PER_MSEC INT64_C(1000000)
#define NSEC_PER_SEC INT64_C(1000000000)

nsec_t clock_monotonic_ns(void);
nsec_t clock_wall_ns(void); /* since the epoch, UTC */

#define CLOCK_TEXT_SIZE 32
/* "2026-11-23T04:31:05.123Z" */
void clock_format_utc(nsec_t wall_ns, char text[CLOCK_TEXT_SIZE]);
/* The time of such a text, or -1. */
nsec_t clock_parse_utc(const char *text);
/* "3 h 12 min", "45 s", "120 ms": two units at most, for people. */
void clock_format_duration(nsec_t duration_ns, char text[CLOCK_TEXT_SIZE]);
