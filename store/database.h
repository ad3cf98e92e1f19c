/* SQLite on the seam for faults: its "unix" file system, with every call that matters to durability
 * made by base/sys.h under the points db.*. Private to store/. */
#pragma once

/* The name for sqlite3_open_v2, registered at the first call. */
const char *database_vfs(void);
