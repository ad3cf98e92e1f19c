/* Images of disks after a lost power: where they lie, and what a start finds on them. Every helper
 * fails the running cmocka test when something is not as it must be. */
#pragma once

#include "base/digest.h"

#include <stdbool.h>
#include <stdint.h>

#define DISK_PATH_MAX 128
#define DISK_MAKE_MAX 12

/* A folder for images in which a copy takes milliseconds (an xfs of our own), in a namespace of
 * mounts: gone with this process. */
void disk_nest(void);
void disk_finish(void);
/* name in that folder. */
void disk_path(const char *name, char path[DISK_PATH_MAX]);

struct disk_fs {
	const char *name, *type, *options; /* of a mount */
	const char *make[DISK_MAKE_MAX];   /* mkfs and its options */
	bool check;                        /* e2fsck before each mount */
	unsigned needs;                    /* syncs of a save, by bits: test_replay.c */
};
extern const struct disk_fs disk_ext4;

/* What a start finds on a disk whose power is off, with fsck on a copy. */
struct disk_found {
	bool whole;   /* fsck repairs what it finds, and the newest verified one reads as it must */
	int64_t step; /* of the newest verified one; 0: none */
	struct digest digest; /* of its four sections */
	char text[256];       /* why not whole */
};
void disk_look(const char *disk, const struct disk_fs *fs, struct disk_found *ret);
/* What a power that just went interrupted: training, saving, catalog write, deletion (ext4). */
const char *disk_under_way(const char *disk);
