/* Finds one number in an EXIF block: the orientation. Every offset in it is foreign, so each is
 * checked against the block's size; anything odd means "upright". */
#include "daemon/image/decode.h"

#define TAG_ORIENTATION 0x0112
#define TYPE_SHORT 3
#define ENTRY_SIZE 12

static uint32_t read_number(const uint8_t *bytes, unsigned width, bool big_endian)
{
	uint32_t value = 0;

	for (unsigned i = 0; i < width; i++)
		value |= (uint32_t)bytes[i] << 8 * (big_endian ? width - 1 - i : i);
	return value;
}

unsigned exif_orientation(const uint8_t *tiff, size_t size)
{
	if (size < 8)
		return 1;
	bool big_endian = tiff[0] == 'M' && tiff[1] == 'M';
	if (!big_endian && !(tiff[0] == 'I' && tiff[1] == 'I'))
		return 1;
	if (read_number(tiff + 2, 2, big_endian) != 42)
		return 1;

	size_t directory = read_number(tiff + 4, 4, big_endian);
	if (directory > size || size - directory < 2)
		return 1;
	size_t entry_count = read_number(tiff + directory, 2, big_endian);
	size_t room = (size - directory - 2) / ENTRY_SIZE;
	if (entry_count > room)
		entry_count = room;

	for (size_t i = 0; i < entry_count; i++) {
		const uint8_t *entry = tiff + directory + 2 + i * ENTRY_SIZE;
		if (read_number(entry, 2, big_endian) != TAG_ORIENTATION)
			continue;
		uint32_t value = read_number(entry + 8, 2, big_endian);
		bool valid = read_number(entry + 2, 2, big_endian) == TYPE_SHORT && value >= 1 &&
			value <= 8;
		return valid ? value : 1;
	}
	return 1;
}
