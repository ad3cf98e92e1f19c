/* Reads tests/oracle/pictures.ref: small picture files and the RGB they stand for. */
#pragma once

#include "tests/unit/oracle.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct picture {
	char name[64];
	uint32_t width, height;
	int tolerance;
	uint8_t *file, *rgb; /* owned */
	size_t file_size, rgb_size;
};

struct pictures {
	struct picture *all; /* owned */
	size_t count;
};

static inline uint8_t *bytes_of_hex(const char *hex, size_t *ret_size)
{
	size_t size = strlen(hex) / 2;
	uint8_t *bytes = malloc(size);

	for (size_t i = 0; bytes && i < size; i++) {
		char pair[3] = {hex[2 * i], hex[2 * i + 1], '\0'};
		bytes[i] = (uint8_t)strtoul(pair, NULL, 16);
	}
	*ret_size = size;
	return bytes;
}

static inline void pictures_read(struct pictures *pictures)
{
	static char line[65536], file_hex[32768], rgb_hex[32768];
	FILE *file = oracle_open("pictures.ref");

	*pictures = (struct pictures){.all = calloc(256, sizeof(*pictures->all))};
	while (pictures->all && fgets(line, sizeof(line), file)) {
		struct picture *p = &pictures->all[pictures->count];
		if (line[0] == '#')
			continue;
		if (pictures->count == 256 ||
			sscanf(line, "%63s %u %u %d %32767s %32767s", p->name, &p->width,
				&p->height, &p->tolerance, file_hex, rgb_hex) != 6) {
			fprintf(stderr, "pictures.ref is malformed\n");
			exit(1);
		}
		p->file = bytes_of_hex(file_hex, &p->file_size);
		p->rgb = bytes_of_hex(rgb_hex, &p->rgb_size);
		pictures->count++;
	}
	fclose(file);
}

static inline void pictures_free(struct pictures *pictures)
{
	for (size_t i = 0; i < pictures->count; i++) {
		free(pictures->all[i].file);
		free(pictures->all[i].rgb);
	}
	free(pictures->all);
}

static inline const struct picture *pictures_find(const struct pictures *pictures, const char *name)
{
	for (size_t i = 0; i < pictures->count; i++)
		if (strcmp(pictures->all[i].name, name) == 0)
			return &pictures->all[i];
	return NULL;
}
